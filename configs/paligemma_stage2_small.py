"""Stage 2 at small size: twice the resolution, longer text, the schedule of stage 1 goes on.

    vla train configs/paligemma_stage2_small.py     # after stage 1

Three CPU-minutes. Position embeddings are resampled from 72 to 144 pixels; detection and
segmentation are asked for more often, as at full size, where OCR is too.
"""

from dataclasses import replace
from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.assets import MASK_CODEC_TABLETOP
from vla.config import OptimConfig
from vla.data.examples import TabletopData
from vla.training.schedule import Schedule, continued
from vla.training.stage_job import StageConfig

STAGE_1 = {"steps": 2500, "batch_size": 32, "new_batch_size": 16}

config = StageConfig(
    output_dir=Path("outputs/paligemma_small/stage2"),
    model=replace(PALIGEMMA_SMALL, vision=replace(PALIGEMMA_SMALL.vision, resolution=144)),
    data=TabletopData(
        shares=(
            ("locate", 0.3),
            ("detect", 0.3),
            ("segment", 0.2),
            ("question", 0.15),
            ("caption", 0.05),
        ),
        easy=0.3,
        codec=MASK_CODEC_TABLETOP,
    ),
    init=Path("outputs/paligemma_small/stage1/paligemma"),
    init_resolution=72,
    text_length=96,
    steps=400,
    batch_size=16,
    optim=OptimConfig(
        lr=1e-3,
        muon_lr=8e-3,
        betas=(0.9, 0.95),
        schedule=continued(Schedule("rsqrt", warmup=60, timescale=300), **STAGE_1),
        schedules=(("vision", continued(Schedule("rsqrt", warmup=200, timescale=300), **STAGE_1)),),
    ),
    precision="auto",
    ema=None,
    workers=1,
    log_every=25,
    eval_every=50,
    save_every=50,
)
