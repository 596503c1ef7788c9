"""Stage 3 of PaliGemma at 3B: the transfer to COCO captions at 448 pixels, as published.

    torchrun --nproc-per-node 8 -m vla train configs/paligemma_stage3_cococap.py

The same run, scored too, for any published task: `vla transfer cococap --resolution 448 …`; this
file is for those who would rather see every number. 113,287 pictures of Karpathy's training split,
5 passes, of whose 5 captions each takes another one.
"""

from pathlib import Path

from backbone.paligemma import PALIGEMMA_3B_448
from vla.config import OptimConfig, ParallelConfig
from vla.data.image_text.formats import Caption
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.mixture import MixtureData, Part
from vla.training.optimiser import BIG_VISION_DECAY
from vla.training.schedule import Schedule
from vla.training.stage_job import StageConfig

config = StageConfig(
    output_dir=Path("outputs/paligemma/stage3_cococap"),
    model=PALIGEMMA_3B_448,
    data=MixtureData(
        (
            Part(
                "cococap",
                Jsonl(Path("data/coco/train.jsonl")),
                Caption(langs=("en",)),
                validation=Jsonl(Path("data/coco/val.jsonl")),
            ),
        )
    ),
    init=Path("outputs/paligemma/stage2_448/paligemma"),
    text_length=32,
    steps=5 * 113_287 // 256,
    batch_size=256,
    optim=OptimConfig(
        lr=1e-5,
        betas=(0.9, 0.999),
        weight_decay=1e-6,
        decay=BIG_VISION_DECAY,
        decay_by_rate=False,
        schedule=Schedule(warmup_share=0.05),
    ),
    parallel=ParallelConfig(recompute=1),
    precision="bfloat16",
    ema=None,
    workers=8,
)
