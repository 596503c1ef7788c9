"""Teach the image encoder of configs/tabletop_pretrain_fine.py what lies where.

    vla train configs/tabletop_vision.py

Stage 0 of a small PaliGemma, as SigLIP is of the large one: colours are learned from answers in
text soon, shapes and exact places hardly ever, and from this in a few minutes on one core.
"""

from dataclasses import replace
from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.config import OptimConfig
from vla.training.vision_job import VisionConfig

config = VisionConfig(
    output_dir=Path("outputs/tabletop_vision"),
    model=replace(PALIGEMMA_SMALL.vision, patch=8),
    steps=6000,
    batch_size=16,
    optim=OptimConfig(lr=1e-3, warmup=60, end_lr=1e-5, weight_decay=1e-4, muon_lr=8e-3),
    ema=0.99,
    ema_ramp=True,
    workers=1,
    log_every=25,
    eval_every=500,
    save_every=1000,
)
