"""A sharper, deeper image encoder than that of configs/tabletop_vision.py, which also learns how
many things there are.

    vla train configs/tabletop_vlm_vision.py
    vla train configs/tabletop_vlm.py --vision outputs/tabletop_vlm_vision/vision \\
      --model.vision.depth 4 --model.vision.patch 12 --model.vision.resolution 108

Pictures have 108 pixels for 9 × 9 patches: small squares and circles differ more than in 72, at no
more tokens. The corners also tell how many things there are of each kind, for counting.
docs/results.md says what that is worth, and what it costs.
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
