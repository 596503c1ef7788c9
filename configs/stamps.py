"""Transfer a small PaliGemma to captions in eight languages on Tux Paint's stamps.

    vla stamps outputs/stamps/data            # fetches 161 MB from Debian, a minute
    vla train configs/stamps.py               # half an hour of one core
    vla score-captions outputs/stamps/data --model outputs/stamps/run/paligemma \\
      --trained outputs/stamps/run            # CIDEr-D per language, a page of examples

The small tokenizer knows English; other scripts fall back to bytes, which the model learns to
spell. A fifth of the pictures, none of them near one that is trained on, is kept for the validation
loss and the scores.
"""

from pathlib import Path

from backbone.pretrained import read_config
from vla.assets import PALIGEMMA_TABLETOP_FINE
from vla.config import OptimConfig
from vla.data.augment import Augment
from vla.data.image_text.formats import Caption
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.mixture import MixtureData, Part
from vla.training.schedule import Schedule
from vla.training.stage_job import StageConfig

DATA = Path("outputs/stamps/data")

config = StageConfig(
    output_dir=Path("outputs/stamps/run"),
    model=read_config(PALIGEMMA_TABLETOP_FINE),
    init=PALIGEMMA_TABLETOP_FINE,
    data=MixtureData(
        (
            Part(
                "stamps",
                Jsonl(DATA / "train.jsonl"),
                Caption(),
                validation=Jsonl(DATA / "val.jsonl"),
            ),
        ),
        augment=Augment(),
    ),
    text_length=128,
    dropout=0.1,
    steps=2000,
    batch_size=32,
    optim=OptimConfig(
        lr=1e-3, muon_lr=8e-3, schedule=Schedule(warmup_share=0.05), weight_decay=1e-4
    ),
    precision="auto",
    ema=0.995,
    ema_ramp=True,
    workers=1,
    log_every=50,
    eval_every=250,
    eval_batches=5,
    save_every=500,
)
