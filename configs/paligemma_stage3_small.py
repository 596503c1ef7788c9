"""Stage 3 at small size: a transfer to questions about scenes, from stage 2.

    vla train configs/paligemma_stage3_small.py     # after stage 2

Two CPU-minutes. A cosine down to zero after 5 % of linear warm-up, decay of the image
encoder's and the connector's kernels alone.
"""

from dataclasses import replace
from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.config import OptimConfig
from vla.data.examples import TabletopData
from vla.training.optimiser import BIG_VISION_DECAY
from vla.training.schedule import Schedule
from vla.training.stage_job import StageConfig

config = StageConfig(
    output_dir=Path("outputs/paligemma_small/stage3"),
    model=replace(PALIGEMMA_SMALL, vision=replace(PALIGEMMA_SMALL.vision, resolution=144)),
    data=TabletopData(shares=(("question", 1.0),), easy=0.0),
    init=Path("outputs/paligemma_small/stage2/paligemma"),
    text_length=32,
    steps=400,
    batch_size=16,
    optim=OptimConfig(
        lr=3e-4,
        muon_lr=2.4e-3,
        betas=(0.9, 0.999),
        weight_decay=3e-5,
        decay=BIG_VISION_DECAY,
        decay_by_rate=False,
        schedule=Schedule(warmup_share=0.05),
    ),
    precision="auto",
    ema=None,
    workers=1,
    log_every=25,
    eval_every=50,
    save_every=50,
)
