"""The papers' form of π0 and π0.5, as plain as possible: one pass, two sets of weights.

Every token is there in every layer; keys and values of both halves meet in one softmax. It shares
the parameters of our models, not its attention, masks, norms or cache. Only for comparison.
"""

import torch
from torch import Tensor

from action_expert.adaptive import AdaptiveBlock, AdaptiveGemma, AdaptiveRMSNorm
from backbone.gemma import Block, Gemma, RMSNorm
from vla.batch import Batch
from vla.pi0 import Pi0
from vla.pi05 import Pi05


def velocity(model: Pi0 | Pi05, batch: Batch, x_t: Tensor, t: Tensor) -> Tensor:
    """The velocity at x_t [B, H, A] and t [B], by one joint pass."""
    prefix, prefix_valid = model.backbone.embed_prefix(
        batch.images, batch.image_valid, batch.tokens, batch.token_valid
    )
    # openpi's flags: π0's state opens a block, the first action opens the next
    if isinstance(model, Pi05):
        suffix, condition = model.expert.embed_suffix(x_t, t)
        opens = [1] + [0] * (suffix.shape[1] - 1)
    else:
        suffix, condition = model.expert.embed_suffix(x_t, t, batch.state), None
        opens = [1, 1] + [0] * (suffix.shape[1] - 2)
    suffix_valid = torch.ones(suffix.shape[:2], dtype=torch.bool)
    _, suffix = joint_stack(
        model.backbone.language,
        model.expert.gemma,
        prefix,
        suffix,
        torch.cat([prefix_valid, suffix_valid], dim=1),
        [0] * prefix.shape[1] + opens,
        condition,
    )
    return model.expert.action_out_proj(suffix[:, -x_t.shape[1] :])


def joint_stack(
    big: Gemma,
    small: Gemma | AdaptiveGemma,
    prefix: Tensor,
    suffix: Tensor,
    valid: Tensor,
    opens: list[int],
    condition: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Both streams through all layers; returns both after their final norms."""
    block = torch.tensor(opens).cumsum(0)
    mask = (block[None, :] <= block[:, None]) & valid[:, None, :]  # [B, S, S]
    position = valid.cumsum(1) - 1
    cut = prefix.shape[1]
    heads, size = big.config.heads, big.config.head_dim
    for one, two in zip(layers(big), layers(small), strict=True):
        q, k, v, gates = [], [], [], []
        for x, layer in ((prefix, one), (suffix, two)):
            h, gate = norm(x, layer.attention_norm, condition)
            q.append(turn(split(layer.attention.q_proj(h), size), position_of(x, cut, position)))
            k.append(turn(split(layer.attention.k_proj(h), size), position_of(x, cut, position)))
            v.append(split(layer.attention.v_proj(h), size))
            gates.append(gate)
        queries, keys, values = (torch.cat(part, dim=1) for part in (q, k, v))
        keys = keys.repeat_interleave(heads // keys.shape[2], dim=2)
        values = values.repeat_interleave(heads // values.shape[2], dim=2)
        scores = torch.einsum("bqnh,bknh->bnqk", queries, keys) / size**0.5
        scores = scores.masked_fill(~mask[:, None], -1e30)
        read = torch.einsum("bnqk,bknh->bqnh", scores.softmax(-1), values).flatten(2)
        prefix = prefix + one.attention.o_proj(read[:, :cut]) * gates[0]
        suffix = suffix + two.attention.o_proj(read[:, cut:]) * gates[1]
        prefix = prefix + feed_forward(prefix, one, condition)
        suffix = suffix + feed_forward(suffix, two, condition)
    return norm(prefix, big.norm, condition)[0], norm(suffix, small.norm, condition)[0]


def layers(stack: Gemma | AdaptiveGemma) -> list[Block | AdaptiveBlock]:
    return [block for block in stack.blocks if isinstance(block, Block | AdaptiveBlock)]


def position_of(x: Tensor, cut: int, position: Tensor) -> Tensor:
    return position[:, :cut] if x.shape[1] == cut else position[:, cut:]


def split(x: Tensor, size: int) -> Tensor:
    return x.unflatten(-1, (-1, size))  # [B, S, heads, H]


def norm(
    x: Tensor, module: RMSNorm | AdaptiveRMSNorm, condition: Tensor | None
) -> tuple[Tensor, Tensor | float]:
    """(the normed tokens, what gates the block that reads them)."""
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    if isinstance(module, RMSNorm):
        return x * (1 + module.weight), 1.0
    assert condition is not None
    scale, shift, gate = module.modulation(condition)[:, None].tensor_split(3, dim=-1)
    return x + x * scale + shift, gate


def turn(x: Tensor, position: Tensor) -> Tensor:
    """Rotary positions: the complex pair (j, j + H/2) times exp(i · position · 10000^(−2j/H))."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    angle = position[:, :, None, None].to(x.dtype) * frequency
    pair = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pair.real, pair.imag], dim=-1)


def feed_forward(x: Tensor, layer: Block | AdaptiveBlock, condition: Tensor | None) -> Tensor:
    h, outer = norm(x, layer.mlp_norm, condition)
    gate = layer.mlp.gate_proj(h)
    gate = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    return layer.mlp.down_proj(gate * layer.mlp.up_proj(h)) * outer


def loss(model, batch, noise, t):
    """The mean over rows of the mean over their real action steps, by the joint pass."""
    x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * batch.actions
    error = (velocity(model, batch, x_t, t) - (noise - batch.actions)) ** 2
    rows = [e[valid].mean() for e, valid in zip(error, batch.action_valid, strict=True)]
    return torch.stack(rows).mean()


def assert_equal(ours, theirs, name=""):
    """To 1e-9 of the reference's largest element: float64 with another order of sums."""
    difference = (ours - theirs).abs().max().item()
    assert difference <= 1e-9 * max(1.0, theirs.abs().max().item()), f"{name}: {difference}"


def gradients(model: Pi0 | Pi05, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }
