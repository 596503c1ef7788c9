"""Stages at 3B without weights: they build, shard over 256 processes and count their FLOPs."""

from dataclasses import replace
from pathlib import Path

import pytest

from backbone.paligemma import PALIGEMMA_TINY, PaliGemma, PaliGemmaConfig
from vla.config import OptimConfig, ParallelConfig, load_config
from vla.data.examples import TabletopData
from vla.training.dry_run import dry_run
from vla.training.stage_job import StageConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def stage(**fields) -> StageConfig:
    values = {
        "output_dir": Path("nowhere"),
        "model": PALIGEMMA_TINY,
        "data": TabletopData(),
        "fresh": ("vision", "language"),
        "steps": 1,
        "batch_size": 32,
        "text_length": 24,
    }
    return StageConfig(**{**values, **fields})


def forward_flops(model: PaliGemmaConfig, text: int) -> float:
    """Two for every multiply-add: matrices, attention, and logits at text positions. Of images the
    last block takes keys and values alone."""
    v, g, p = model.vision, model.language, model.image_tokens
    s = p + text
    patches = 2 * p * 3 * v.patch**2 * v.width
    seeing = v.depth * (2 * p * (4 * v.width**2 + 2 * v.width * v.mlp) + 4 * p * p * v.width)
    inner = g.heads * g.head_dim
    asking = g.width * 2 * inner + 3 * g.width * g.mlp  # queries, what they find, and the MLP
    asked = g.width * 2 * g.kv_heads * g.head_dim
    reading = sum(
        2 * s * asked + 2 * wanted * asking + 4 * wanted * s * inner
        for wanted in (*[s] * (g.depth - 1), text)
    )
    return patches + seeing + 2 * p * v.width * g.width + reading + 2 * text * g.width * model.vocab


def test_a_small_model_takes_three_times_the_flops_of_its_forward_pass():
    """Fused attention computes its logits once more in the backward pass; the patch embedding has
    no gradient to pass on, and logits are taken everywhere but at the last position."""
    found = dry_run(stage(), processes=4)
    assert found.examples == 8
    assert found.parameters == sum(p.numel() for p in PaliGemma(PALIGEMMA_TINY).parameters())
    assert found.parameters / 4 <= found.shard < found.parameters / 4 * 1.1
    assert found.flops == pytest.approx(3 * forward_flops(PALIGEMMA_TINY, 24), rel=0.05)


def test_recomputed_blocks_cost_nearly_a_forward_pass_more():
    plain = dry_run(stage(), processes=4).flops
    again = dry_run(stage(parallel=ParallelConfig(recompute=1)), processes=4).flops
    logits = 2 * 24 * PALIGEMMA_TINY.language.width * PALIGEMMA_TINY.vocab
    blocks = forward_flops(PALIGEMMA_TINY, 24) - logits
    assert plain + 0.6 * blocks < again < plain + blocks  # a block's last product isn't needed


def test_what_is_frozen_is_not_trained():
    vision = sum(p.numel() for p in PaliGemma(PALIGEMMA_TINY).vision.parameters())
    found = dry_run(stage(freeze=("vision",)), processes=4)
    assert found.trained == found.parameters - vision


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"32 does not divide into 1 micro-batch.* 5 proc"):
        dry_run(stage(), processes=5)
    with pytest.raises(ValueError, match=r"parallel\.shards is 3, which does not divide 4"):
        dry_run(stage(parallel=ParallelConfig(shards=3)), processes=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "text"),
    [
        ("1", 2_923_335_408, 128),
        ("2_448", 2_924_220_144, 512),
        ("2_896", 2_927_759_088, 512),
        ("3_cococap", 2_924_220_144, 32),
    ],
)
def test_stages_at_3b_build_and_shard_over_256_processes(name, parameters, text):
    """Parameters are big_vision's; recomputing makes four forward passes of nearly three."""
    config = load_config(CONFIGS / f"paligemma_stage{name}.py")
    assert isinstance(config, StageConfig)
    found = dry_run(replace(config, batch_size=256))
    assert found.parameters == found.trained == parameters
    assert found.shard == pytest.approx(parameters / 256, rel=0.02)
    forward = forward_flops(config.model, text)
    assert 3.4 * forward < found.flops < 4.1 * forward


def test_the_optimiser_is_made_as_in_a_run():
    config = stage(optim=OptimConfig(lr_factors=(("visoin", 0.1),)))
    with pytest.raises(ValueError, match="no parameter under 'visoin'; did you mean 'vision'"):
        dry_run(config, processes=4)
