"""π0.5: two passes are the joint one, as for π0; flow time acts through the norms alone."""

import dataclasses

import joint
import pytest
import torch
from joint import assert_equal, gradients

from action_expert.adaptive import AdaptiveRMSNorm
from backbone.numerics import LEROBOT, OPENPI_JAX
from vla.pi05 import PI05, PI05_TINY, Pi05, Pi05Config

LAST = f"backbone.language.blocks.{PI05_TINY.backbone.language.depth - 1}"


def test_velocity_of_two_passes_equals_the_joint_pass(model05, batch, noise, t):
    with torch.no_grad():
        expected = joint.velocity(model05, batch, noise, t)
        ours = model05.expert(noise, t, model05.prefill(batch))
    assert expected.std() > 0.1
    assert_equal(ours, expected)


def test_loss_and_every_gradient_equal_the_joint_pass(model05, batch, noise, t):
    expected_loss = joint.loss(model05, batch, noise, t)
    loss = model05(batch, noise[:, None], t[:, None])
    assert_equal(loss, expected_loss)
    expected = gradients(model05, expected_loss)
    ours = gradients(model05, loss)
    for name, gradient in expected.items():
        if gradient is None or ours[name] is None:
            assert ours[name] is None, name
            assert gradient is None or not gradient.any(), name
        elif name.startswith("expert.gemma.norm."):
            assert_equal(ours[name], gradient, name)  # the last norm's gate opens nothing
        else:
            assert gradient.any(), name
            assert_equal(ours[name], gradient, name)


def test_exactly_the_dead_parameters_of_the_last_block_get_no_gradient(model05, batch, noise, t):
    found = gradients(model05, model05(batch, noise[:, None], t[:, None]))
    assert {name for name, gradient in found.items() if gradient is None} == {
        f"{LAST}.attention.q_proj.weight",
        f"{LAST}.attention.o_proj.weight",
        f"{LAST}.mlp_norm.weight",
        f"{LAST}.mlp.gate_proj.weight",
        f"{LAST}.mlp.up_proj.weight",
        f"{LAST}.mlp.down_proj.weight",
        "backbone.language.norm.weight",
    }
    width = PI05_TINY.expert.gemma.width
    last = found["expert.gemma.norm.modulation.bias"]
    assert last is not None
    assert last[: 2 * width].all()
    assert not last[2 * width :].any()  # its gate


def test_the_state_reaches_the_model_through_the_prompt_alone(model05, batch, noise):
    base = model05.sample_actions(batch, noise, steps=2)
    silent = dataclasses.replace(batch, state=torch.full_like(batch.state, torch.nan))
    assert torch.equal(model05.sample_actions(silent, noise, steps=2), base)
    told = dataclasses.replace(batch, tokens=batch.tokens.flip(1))
    assert not torch.equal(model05.sample_actions(told, noise, steps=2), base)


def test_padding_does_not_change_actions(model05, batch, noise):
    padded = model05.sample_actions(batch, noise, steps=3)
    for row in range(3):
        one, cameras, tokens = slice(row, row + 1), batch.image_valid[row], batch.token_valid[row]
        alone = dataclasses.replace(
            batch,
            images=batch.images[one, cameras],
            image_valid=batch.image_valid[one, cameras],
            tokens=batch.tokens[one, tokens],
            token_valid=batch.token_valid[one, tokens],
        )
        assert_equal(model05.sample_actions(alone, noise[one], steps=3), padded[one])


def test_a_new_experts_blocks_do_nothing(batch, noise, t):
    torch.manual_seed(0)
    model = Pi05(PI05_TINY).double()
    x, condition = model.expert.embed_suffix(noise, t)
    hidden = torch.nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6)
    ours = model.expert(noise, t, model.prefill(batch))
    assert_equal(ours, model.expert.action_out_proj(hidden))
    assert condition.std() > 0


@pytest.mark.parametrize("numerics", [OPENPI_JAX, LEROBOT])
def test_modulation_is_float32_where_the_weights_were_trained_so(numerics):
    torch.manual_seed(0)
    norm = AdaptiveRMSNorm(16, numerics)
    torch.nn.init.normal_(norm.modulation.weight)
    torch.nn.init.normal_(norm.modulation.bias)
    x, condition = torch.randn(2, 3, 16).bfloat16(), torch.randn(2, 16)
    if not numerics.float32_modulation:
        norm = norm.bfloat16()
        condition = condition.bfloat16().float()  # it is rounded on the way in
    normed, gate = norm(x, condition)
    assert (normed.dtype, gate.dtype) == (torch.bfloat16, torch.bfloat16)
    modulation = (
        norm.modulation.weight.float() @ condition.T + norm.modulation.bias.float()[:, None]
    )
    if not numerics.float32_modulation:
        modulation = modulation.bfloat16().float()
    scale, shift, wanted = modulation.T[:, None].chunk(3, dim=-1)
    if not numerics.float32_modulation:
        scale = (1 + scale).bfloat16().float() - 1
    wide = x.float()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift
    assert (gate.float() - wanted).abs().max() <= 0.01 * wanted.abs().max()
    near = 2**-8 * expected.abs() + 1e-6  # half a step of bfloat16
    assert ((normed.float() - expected).abs() <= near).float().mean() > 0.97


def test_pi05_has_openpis_number_of_useful_parameters():
    with torch.device("meta"):
        model = Pi05(PI05)
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_modules()}
    assert counts[""] == 3_353_433_872
    assert counts["backbone"] == 2_923_335_408
    assert counts["expert.gemma"] == 424_783_872 + 3_148_800
    assert counts["expert"] - counts["expert.gemma"] == 2_165_792


def test_an_expert_that_cannot_read_the_cache_is_refused():
    gemma = dataclasses.replace(PI05.expert.gemma, kv_heads=2)
    with pytest.raises(ValueError, match="expert's kv_heads is 2 but the backbone's is 1"):
        Pi05Config(PI05.backbone, dataclasses.replace(PI05.expert, gemma=gemma))


def test_a_loss_without_actions_is_refused(model05, batch):
    with pytest.raises(ValueError, match="a loss needs actions"):
        model05(dataclasses.replace(batch, actions=None))
