"""Attention maps are those of the model, though the model never forms them."""

import pytest
import torch

from backbone.gemma import Attention, GemmaConfig, rope_angles
from vla.batch import Batch
from vla.evaluation.attention import attention_maps, attention_weights
from vla.pi0 import PI0_TINY, Pi0


def tiny_batch(images: int = 2, text: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(0)
    size, rows = PI0_TINY.backbone.vision.resolution, 2
    return Batch(
        images=torch.rand(rows, images, 3, size, size, generator=generator) * 2 - 1,
        image_valid=torch.tensor([[True] * images, [True] + [False] * (images - 1)]),
        tokens=torch.randint(0, 100, (rows, text), generator=generator),
        token_valid=torch.arange(text) < torch.tensor([[text], [4]]),
        state=torch.randn(rows, PI0_TINY.expert.state_dim, generator=generator),
    )


def tiny_model() -> Pi0:
    torch.manual_seed(0)
    model = Pi0(PI0_TINY).eval()
    torch.nn.init.normal_(
        model.backbone.projector.get_parameter("weight")
    )  # starts at zero, which hides images
    return model


def test_recomputed_weights_reproduce_the_fused_attention():
    torch.manual_seed(0)
    attention = Attention(GemmaConfig(width=32, depth=1, mlp=8, heads=4, kv_heads=2, head_dim=8))
    x, k, v = torch.randn(2, 5, 32), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = torch.rand(2, 1, 5, 9) > 0.3
    mask[..., 0] = True
    angles = rope_angles(torch.arange(5)[None].expand(2, -1), 8, torch.float32)
    cos, sin = angles.cos(), angles.sin()
    weights = attention_weights(attention, x, k, mask, cos, sin)
    out = weights @ v.repeat_interleave(2, dim=1)
    expected = attention(x, k, v, mask, cos, sin)
    torch.testing.assert_close(attention.o_proj(out.transpose(1, 2).flatten(2)), expected)


def test_shares_sum_to_one_and_padding_gets_none():
    maps = attention_maps(tiny_model(), tiny_batch(), steps=2)
    assert maps.images.shape == (2, 2, 4, 4)
    assert maps.text.shape == (2, 7)
    total = maps.images.sum((1, 2, 3)) + maps.text.sum(1)
    torch.testing.assert_close(total, torch.ones(2))
    assert maps.images[1, 1].sum() == 0
    assert maps.text[1, 4:].sum() == 0


def test_looking_does_not_change_the_actions():
    model, batch = tiny_model(), tiny_batch()
    noise = torch.randn(2, PI0_TINY.expert.horizon, PI0_TINY.expert.action_dim)
    before = model.sample_actions(batch, noise)
    attention_maps(model, batch, noise)
    assert torch.equal(model.sample_actions(batch, noise), before)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"layers from 0 to 1, got \[5\]"):
        attention_maps(tiny_model(), tiny_batch(), layers=[5])
