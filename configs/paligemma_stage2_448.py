"""Stage 2 of PaliGemma at 3B, 448 pixels: 50 M examples more, longer text, the same schedule.

    torchrun --nnodes 32 --nproc-per-node 8 … -m vla train configs/paligemma_stage2_448.py

256 H100s; see docs/scaling.md and docs/recipe.md. From the paper (arXiv 2407.07726, section 3.2):
50 M examples, 512 text tokens, nothing frozen, position embeddings resampled, the learning rate of
stage 1 goes on without a break, and the same data with OCR, detection and segmentation taken more
often. Never published, so chosen here: the batch, and by how much they are.
"""

from pathlib import Path

from backbone.paligemma import PALIGEMMA_3B_448
from vla.config import OptimConfig, ParallelConfig
from vla.data.augment import Augment
from vla.data.image_text.formats import (
    Answer,
    AnyFormat,
    Caption,
    Detect,
    ObjectQuestion,
    Ocr,
    Question,
    Region,
    Segment,
)
from vla.data.image_text.mixture import MixtureData, Part
from vla.data.image_text.tars import Tars
from vla.training.schedule import Schedule, continued
from vla.training.stage_job import StageConfig

BATCH = 2048
STAGE_1 = {"steps": 1_000_000_000 // 8192, "batch_size": 8192, "new_batch_size": BATCH}
FAST = continued(Schedule("rsqrt", warmup=2_000, timescale=10_000), **STAGE_1)
SLOW = continued(Schedule("rsqrt", warmup=20_000, timescale=10_000), **STAGE_1)
CODEC = Path("models/paligemma/vae-oid.npz")
SHARDS = Path("data/paligemma")  # folders of WebDataset tars: key.jpg, key.json


def part(name: str, ask: AnyFormat, weight: float) -> Part:
    return Part(name, Tars((SHARDS / name,)), ask, weight, Tars((SHARDS / f"{name}_validation",)))


config = StageConfig(
    output_dir=Path("outputs/paligemma/stage2_448"),
    model=PALIGEMMA_3B_448,
    data=MixtureData(
        (
            part("captions", Caption(), 0.35),
            part("ocr", Ocr(), 0.15),
            part("questions", Answer(), 0.15),
            part("asking", Question(), 0.05),
            part("objects", ObjectQuestion(), 0.05),
            part("detect", Detect(), 0.1),
            part("segment", Segment(CODEC), 0.1),
            part("regions", Region(), 0.05),
        ),
        augment=Augment(),
        weights=(("ocr", 0.4), ("detect", 0.3), ("segment", 0.3)),  # the parts' own are stage 1's
    ),
    init=Path("outputs/paligemma/stage1/paligemma"),
    init_resolution=224,
    text_length=512,
    steps=50_000_000 // BATCH,
    batch_size=BATCH,
    optim=OptimConfig(
        lr=2e-5,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        schedule=FAST,
        schedules=(("vision", SLOW),),
    ),
    parallel=ParallelConfig(recompute=1),
    precision="bfloat16",
    ema=None,
    workers=8,
    log_every=20,
    eval_every=2_000,
    save_every=5_000,
)
