"""Stage 0 at small size, before its SigLIP: what lies where in a picture.

    vla train configs/paligemma_stage0_vision_small.py

SigLIP 2 and LocCa ask the image encoder for boxes as well as for captions, and a small PaliGemma
learns to tell places far sooner from an encoder that knows them (docs/results.md). The
result, outputs/paligemma_small/stage0_vision/vision, is what configs/paligemma_stage0_small.py
starts from.
"""

from dataclasses import replace
from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.config import OptimConfig
from vla.training.vision_job import VisionConfig

config = VisionConfig(
    output_dir=Path("outputs/paligemma_small/stage0_vision"),
    model=replace(PALIGEMMA_SMALL.vision, patch=12),
    cameras=("top",),
    steps=5000,
    batch_size=32,
    optim=OptimConfig(lr=1e-3, warmup=60, end_lr=1e-5, weight_decay=1e-4, muon_lr=8e-3),
    ema=0.99,
    ema_ramp=True,
    workers=1,
    log_every=25,
    eval_every=500,
    save_every=500,
)
