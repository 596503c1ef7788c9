"""A small PaliGemma that captions, answers, detects and segments on Tabletop-v0, from nothing.

    vla train configs/tabletop_vlm_vision.py    # the image encoder: what lies where
    vla train configs/tabletop_vlm.py           # the mask codec first, two minutes, then all tasks

About 16 and 80 minutes of two cores without AVX-512; accuracy stands in docs/results.md.
"""

from dataclasses import replace
from pathlib import Path

from backbone.gemma import GemmaConfig
from backbone.paligemma import PALIGEMMA_SMALL
from vla.config import OptimConfig
from vla.training.vlm_job import VLMConfig

config = VLMConfig(
    output_dir=Path("outputs/tabletop_vlm"),
    model=replace(
        PALIGEMMA_SMALL,
        vision=replace(PALIGEMMA_SMALL.vision, resolution=108, depth=4),
        language=GemmaConfig(width=128, depth=5, mlp=256, heads=4, head_dim=64),
    ),
    vision=Path("outputs/tabletop_vlm_vision/vision"),
    steps=5000,
    batch_size=24,
    texts=4,
    accumulate=4,  # of similar lengths of text, so that less of it is padding
    seeing=300,
    ramp=300,
    optim=OptimConfig(
        lr=1e-3,
        warmup=60,
        end_lr=1e-5,
        weight_decay=1e-4,
        muon_lr=8e-3,
        lr_factors=(("vision", 0.03),),
    ),
    precision="auto",
    ema=0.995,
    ema_ramp=True,
    workers=0,  # one beside two computing threads on two cores costs more than it saves
    log_every=50,
    eval_every=500,
    save_every=1000,
)
