"""Stage 1 of PaliGemma at 3B: SigLIP and Gemma together, everything trained, 224 pixels.

    torchrun --nnodes 32 --nproc-per-node 8 … -m vla train configs/paligemma_stage1.py

256 H100s; docs/scaling.md says how long, docs/recipe.md how this differs from what was published.
From the papers (arXiv 2407.07726 section 3.2, 2412.03555): 1 B examples, 128 text tokens, 2e-5 for
everything, an rsqrt schedule that is never annealed, a slow linear warm-up of the image encoder
alone, Adam with its default betas, clipping at 1, the loss on answers. For PaliGemma 2 take half
of the rate at 3B and a quarter at 10B and 28B.
Never published, so chosen here: the batch, the warm-ups, the timescale, weight decay (none), the
weights of the mixture, how often pictures are cropped and re-encoded.
"""

from pathlib import Path

from backbone.paligemma import PALIGEMMA_3B_224
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
from vla.training.schedule import Schedule
from vla.training.stage_job import StageConfig

BATCH = 8192
CODEC = Path("models/paligemma/vae-oid.npz")
SHARDS = Path("data/paligemma")  # folders of WebDataset tars: key.jpg, key.json


def part(name: str, ask: AnyFormat, weight: float) -> Part:
    return Part(name, Tars((SHARDS / name,)), ask, weight, Tars((SHARDS / f"{name}_validation",)))


config = StageConfig(
    output_dir=Path("outputs/paligemma/stage1"),
    model=PALIGEMMA_3B_224,
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
    ),
    siglip=Path("models/siglip-so400m-patch14-224"),
    gemma=Path("models/gemma-2b"),
    text_length=128,
    steps=1_000_000_000 // BATCH,
    batch_size=BATCH,
    optim=OptimConfig(
        lr=2e-5,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        schedule=Schedule("rsqrt", warmup=2_000, timescale=10_000),
        schedules=(("vision", Schedule("rsqrt", warmup=20_000, timescale=10_000)),),
    ),
    parallel=ParallelConfig(recompute=1),
    precision="bfloat16",
    ema=None,
    workers=8,
    log_every=20,
    eval_every=5_000,
    save_every=10_000,
    keep_every=20_000,
)
