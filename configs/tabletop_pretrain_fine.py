"""Pretrain the small PaliGemma that policies for crowded tables start from.

    vla train configs/tabletop_vision.py
    vla train configs/tabletop_pretrain_fine.py

Differs from configs/tabletop_pretrain.py in what shapes need: patches of 8 pixels instead of 12,
and an image encoder that knows the names and boxes of things already.
"""

from dataclasses import replace
from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.config import OptimConfig
from vla.training.text_job import TextConfig

config = TextConfig(
    output_dir=Path("outputs/tabletop_pretrain_fine"),
    model=replace(PALIGEMMA_SMALL, vision=replace(PALIGEMMA_SMALL.vision, patch=8)),
    vision=Path("outputs/tabletop_vision/vision"),
    steps=3500,
    batch_size=32,
    seeing=300,
    ramp=300,
    standard=0.9,
    optim=OptimConfig(
        lr=1e-3,
        warmup=60,
        end_lr=1e-5,
        weight_decay=1e-4,
        muon_lr=8e-3,
        lr_factors=(("vision", 0.03),),
    ),
    ema=0.995,
    ema_ramp=True,
    workers=1,
    log_every=25,
    eval_every=500,
    save_every=500,
)
