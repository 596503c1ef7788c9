"""Stage 1 at small size: both parts of stage 0 together, everything trained, at 72 pixels.

    vla train configs/paligemma_stage1_small.py     # after the two of stage 0

15 CPU-minutes. As at full size: zero projection, one rsqrt schedule without an end,
the image encoder with a slow linear warm-up of its own, the loss on answers alone.
"""

from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.assets import MASK_CODEC_TABLETOP
from vla.config import OptimConfig
from vla.data.examples import TabletopData
from vla.training.schedule import Schedule
from vla.training.stage_job import StageConfig

config = StageConfig(
    output_dir=Path("outputs/paligemma_small/stage1"),
    model=PALIGEMMA_SMALL,
    data=TabletopData(
        shares=(
            ("locate", 0.3),
            ("detect", 0.15),
            ("segment", 0.1),
            ("question", 0.3),
            ("caption", 0.15),
        ),
        codec=MASK_CODEC_TABLETOP,
    ),
    siglip=Path("outputs/paligemma_small/stage0/siglip"),
    gemma=Path("outputs/paligemma_small/stage0_text/gemma"),
    new_rows="ordered",
    text_length=64,
    steps=2500,
    batch_size=32,
    optim=OptimConfig(
        lr=1e-3,
        muon_lr=8e-3,
        betas=(0.9, 0.95),
        schedule=Schedule("rsqrt", warmup=60, timescale=300),
        schedules=(("vision", Schedule("rsqrt", warmup=200, timescale=300)),),
    ),
    precision="auto",
    ema=None,
    workers=1,
    log_every=25,
    eval_every=250,
    save_every=250,
)
