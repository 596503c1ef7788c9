"""Teach the image encoder of configs/tabletop_vlm.py what lies where.

    vla train configs/tabletop_vlm_vision.py

Sharper and deeper than that of configs/tabletop_vision.py: 108 pixels for 9 × 9 patches, in which
small squares and circles differ more than in 72 at no more tokens, and four blocks.
"""

from dataclasses import replace
from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.config import OptimConfig
from vla.training.vision_job import VisionConfig

config = VisionConfig(
    output_dir=Path("outputs/tabletop_vlm_vision"),
    model=replace(PALIGEMMA_SMALL.vision, resolution=108, depth=4),
    standard=0.8,
    steps=5200,
    cameras=("top",),
    batch_size=32,
    optim=OptimConfig(lr=1e-3, warmup=60, end_lr=1e-5, weight_decay=1e-4, muon_lr=8e-3),
    ema=0.99,
    ema_ramp=True,
    workers=0,  # one beside two computing threads on two cores costs more than it saves
    log_every=25,
    eval_every=500,
    save_every=1000,
)
