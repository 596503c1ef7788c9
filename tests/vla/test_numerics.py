"""What each field of `Numerics` changes, by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from action_expert.expert import time_embedding
from backbone.gemma import Gemma, RMSNorm, TextEmbedding
from backbone.numerics import Numerics
from backbone.paligemma import PALIGEMMA_TINY
from backbone.tokenizer import Tokenizer
from vla.data.stats import FeatureStats, NormStats
from vla.pi0 import PI0_TINY, Pi0, Pi0Config
from vla.pi05 import PI05_TINY, Pi05
from vla.policy_config import PolicyConfig
from vla.precision import cast
from vla.processor import Processor

LANGUAGE = PALIGEMMA_TINY.language


def with_numerics(sizes, numerics: Numerics):
    return replace(sizes, backbone=replace(sizes.backbone, numerics=numerics))


def rotary(numerics: Numerics, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.zeros(1, 4, LANGUAGE.width, dtype=dtype)
    block, valid = torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool)
    _, cos, sin = Gemma(LANGUAGE, numerics).geometry(x, block, valid, None)
    return cos, sin


@pytest.mark.parametrize("rounded", [True, False])
def test_rotary_frequencies(rounded):
    half = LANGUAGE.head_dim // 2
    frequency = 10_000.0 ** (-torch.arange(half) / half)
    frequency = frequency.bfloat16().float() if rounded else frequency
    angle = torch.arange(4)[:, None] * frequency
    cos, sin = rotary(Numerics(round_rope_frequencies=rounded), torch.bfloat16)
    torch.testing.assert_close(cos[0, 0], angle.cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[0, 0], angle.sin(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rounded", [True, False])
def test_the_rotations_precision(rounded):
    wide, _ = rotary(Numerics(rotate_in_activation=rounded), torch.float32)
    cos, _ = rotary(Numerics(rotate_in_activation=rounded), torch.bfloat16)
    assert cos.dtype == (torch.bfloat16 if rounded else torch.float32)
    assert torch.equal(cos, wide.to(cos.dtype))


@pytest.mark.parametrize("rounded", [True, False])
def test_a_norms_scale(rounded):
    norm = RMSNorm(2, rounded).bfloat16()
    torch.nn.init.constant_(
        norm.weight.data, 0.0042
    )  # 1.0042 is 1.0078 in bfloat16, or 1 if it were 0
    scale = 1 + norm.weight.tolist()[0]
    scale = torch.tensor(scale).bfloat16().item() if rounded else scale
    x = torch.tensor([[3.0, -4.0]])
    expected = x * (12.5 + 1e-6) ** -0.5 * scale
    torch.testing.assert_close(norm(x), expected, atol=1e-6, rtol=0)
    assert (
        norm.round_scale
        is Pi0(
            with_numerics(PI0_TINY, Numerics(round_norm_scale=rounded))
        ).backbone.language.norm.round_scale
    )


@pytest.mark.parametrize(("rounded", "scale"), [(True, 45.25), (False, 2048**0.5)])
def test_the_scale_of_text_rows(rounded, scale):
    table = TextEmbedding(1, 2048, rounded).bfloat16()
    torch.nn.init.ones_(table.weight)
    row = table(torch.zeros(1, 1, dtype=torch.int64))
    assert row[0, 0, 0] == torch.tensor(scale).bfloat16()
    with_float32_rows = torch.nn.functional.embedding(
        torch.zeros(1, dtype=torch.int64), table.weight
    )
    assert torch.equal(row[0], with_float32_rows * scale)


@pytest.mark.parametrize("wide", [True, False])
def test_what_keeps_float32_weights(wide):
    numerics = Numerics(float32_vision=wide, float32_heads=wide, float32_modulation=wide)
    kept = torch.float32 if wide else torch.bfloat16
    pi0 = cast(Pi0(with_numerics(PI0_TINY, numerics)), torch.bfloat16)
    pi05 = cast(Pi05(with_numerics(PI05_TINY, numerics)), torch.bfloat16)
    for model in (pi0, pi05):
        assert {p.dtype for p in model.backbone.vision.parameters()} == {kept}
        assert {p.dtype for p in model.backbone.projector.parameters()} == {kept}
        assert model.expert.action_out_proj.weight.dtype == kept
        inside = model.backbone.language.get_parameter("blocks.0.mlp.up_proj.weight")
        assert inside.dtype == torch.bfloat16
    assert pi05.expert.get_parameter("gemma.norm.modulation.weight").dtype == kept


@pytest.mark.parametrize("wide", [True, False])
def test_sines_of_flow_time(wide):
    t = torch.rand(64, generator=torch.Generator().manual_seed(0))
    period = 4e-3 * 1000.0 ** np.linspace(0, 1, 32)
    angle = 2 * np.pi / period * t.double().numpy()[:, None]
    exact = torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], 1)).float()
    error = (time_embedding(t, 64, wide) - exact).abs().max()
    assert error < 1e-7 if wide else 1e-6 < error < 1e-3
    model = Pi0(with_numerics(PI0_TINY, Numerics(float64_time=wide)))
    assert model.expert.numerics.float64_time is wide


def processor(numerics: Numerics) -> Processor:
    stats = FeatureStats(np.full(2, 1.0), np.full(2, 0.5))
    config = PolicyConfig(
        model=with_numerics(PI0_TINY, numerics),
        cameras=("top",),
        state_dim=2,
        action_dim=2,
        prompt_length=16,
    )
    return Processor(config, NormStats(stats, stats), Tokenizer.small())


@pytest.mark.parametrize("counts", [True, False])
def test_padded_action_dimensions_in_the_loss(counts):
    sizes: Pi0Config = PI0_TINY
    item = {
        "images": {"top": np.zeros((sizes.backbone.vision.resolution,) * 2 + (3,), np.uint8)},
        "state": np.zeros(2, np.float32),
        "task": "red",
        "actions": np.zeros((sizes.expert.horizon, 2), np.float32),
        "action_valid": np.ones(sizes.expert.horizon, bool),
    }
    batch = processor(Numerics(loss_over_padding=counts)).collate([item])
    width = sizes.expert.action_dim
    assert batch.action_dim_valid is not None
    assert batch.action_dim_valid.sum() == (width if counts else 2)


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_the_epsilon_beside_a_std(epsilon):
    normalise = processor(Numerics(std_epsilon=epsilon))._state
    assert normalise.forward(np.array([2.0, 1.0]))[0] == pytest.approx(1 / (0.5 + epsilon))
    assert normalise.inverse(np.array([1.0, 0.0]))[0] == pytest.approx(1.5 + epsilon)
    plain = processor(Numerics(std_epsilon=epsilon, epsilon_in_inverse=False))._state
    assert plain.inverse(np.array([1.0, 0.0]))[0] == pytest.approx(1.5)
