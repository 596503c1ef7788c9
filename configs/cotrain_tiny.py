"""The smallest run that trains a policy on demonstrations and on image-text examples: seconds.

    vla collect Tabletop-easy-v0 --episodes 20 --root outputs/tiny/dataset
    vla collect-vlm Tabletop-easy-v0 --scenes 100 --seed 0 --root outputs/tiny/vlm
    vla train configs/cotrain_tiny.py

Both losses are reported by themselves, action_loss and text_loss. `--insulated` keeps the action
loss from the backbone, `--action-weight` weighs it.
"""

from pathlib import Path

from vla.config import DataConfig, OptimConfig
from vla.data.image_text.formats import Answer, Caption, Detect
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.mixture import MixtureData, Part
from vla.pi0 import PI0_TINY
from vla.training.cotrain_job import CoTrainConfig

VLM = Path("outputs/tiny/vlm")

config = CoTrainConfig(
    output_dir=Path("outputs/tiny/cotrain"),
    model=PI0_TINY,
    data=DataConfig(root=Path("outputs/tiny/dataset"), held_out=0.1),
    text=MixtureData(
        (
            Part("questions", Jsonl(VLM / "questions.jsonl"), Answer(), weight=0.5),
            Part("captions", Jsonl(VLM / "captions.jsonl"), Caption(), weight=0.2),
            Part("boxes", Jsonl(VLM / "detect.jsonl"), Detect(), weight=0.3),
        )
    ),
    text_batch=8,
    text_length=64,
    optim=OptimConfig(lr=1e-3, warmup=20, end_lr=1e-5),
    steps=100,
    batch_size=16,
    draws=4,
    ema=0.99,
    ema_ramp=True,
    log_every=10,
    eval_every=50,
    save_every=50,
)
