"""The image encoder of configs/tabletop_vlm.py: what lies where, and what the whole picture holds.

    vla train configs/tabletop_vlm_vision.py

Stage 0 of a small PaliGemma, as SigLIP is of the large one. Pictures have 108 pixels for 9 × 9
patches: small squares and circles differ more than in the 72 of configs/tabletop_vision.py, at
no more tokens. Patches with nothing on them tell which things there are and how many.
"""

from dataclasses import replace
from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.config import OptimConfig
from vla.training.vision_job import VisionConfig

config = VisionConfig(
    output_dir=Path("outputs/tabletop_vlm_vision"),
    model=replace(PALIGEMMA_SMALL.vision, resolution=108, depth=4),
    summary=3.0,
    standard=0.8,
    steps=6000,
    cameras=("top",),
    batch_size=32,
    optim=OptimConfig(lr=1e-3, warmup=60, end_lr=1e-5, weight_decay=1e-4, muon_lr=8e-3),
    ema=0.99,
    ema_ramp=True,
    workers=1,
    log_every=25,
    eval_every=500,
    save_every=1000,
)
