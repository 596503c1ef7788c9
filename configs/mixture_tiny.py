"""The smallest run that trains a PaliGemma on a mixture of files: a CPU, seconds.

    vla collect-vlm Tabletop-easy-v0 --scenes 200 --seed 0 --root outputs/tiny/vlm
    vla train configs/mixture_tiny.py

`data.parts` is where other sources go: tars, parquet files, folders of pictures (docs/data.md).
"""

from pathlib import Path

from backbone.paligemma import PALIGEMMA_TINY
from vla.config import OptimConfig
from vla.data.augment import Augment
from vla.data.image_text.formats import Answer, Caption, Detect, ObjectQuestion
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.mixture import MixtureData, Part
from vla.training.stage_job import StageConfig

VLM = Path("outputs/tiny/vlm")

config = StageConfig(
    output_dir=Path("outputs/tiny/mixture"),
    model=PALIGEMMA_TINY,
    data=MixtureData(
        (
            Part("questions", Jsonl(VLM / "questions.jsonl"), Answer(), weight=0.5),
            Part("captions", Jsonl(VLM / "captions.jsonl"), Caption(), augment=Augment()),
            Part("boxes", Jsonl(VLM / "detect.jsonl"), Detect(), weight=0.3),
            Part("objects", Jsonl(VLM / "detect.jsonl"), ObjectQuestion(), weight=0.2),
        )
    ),
    fresh=("vision", "language"),
    new_rows="ordered",
    text_length=64,
    steps=100,
    batch_size=16,
    optim=OptimConfig(lr=1e-3, warmup=20, end_lr=1e-5),
    log_every=10,
    save_every=50,
)
