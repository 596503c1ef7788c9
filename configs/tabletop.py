"""A policy for Tabletop-v0: crowded tables where colours repeat, so shapes matter too.

    vla collect Tabletop-v0 --episodes 3000 --image-size 72 --root outputs/tabletop/dataset
    vla train configs/tabletop.py
    vla eval outputs/tabletop/run/policy --env Tabletop-v0 --episodes 100 --replan-every 5
    vla eval outputs/tabletop/run/policy --env Tabletop-v0 --episodes 100 --replan-every 5 --swap

Starts from the small PaliGemma of configs/tabletop_pretrain_fine.py that ships with the package.
Times and success stand in docs/results.md.
"""

from dataclasses import replace
from pathlib import Path

from backbone.pretrained import read_config
from vla.assets import PALIGEMMA_TABLETOP_FINE
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.pi0 import PI0_SMALL

config = TrainConfig(
    output_dir=Path("outputs/tabletop/run"),
    model=replace(PI0_SMALL, backbone=read_config(PALIGEMMA_TABLETOP_FINE)),
    data=DataConfig(
        root=Path("outputs/tabletop/dataset"), allow_short_episodes=True, prompt_length=24
    ),
    init=PALIGEMMA_TABLETOP_FINE,
    optim=OptimConfig(lr=1e-3, warmup=100, end_lr=1e-5, weight_decay=1e-4),
    steps=2400,
    batch_size=32,
    draws=4,
    ema=0.995,
    ema_ramp=True,
    log_every=50,
    eval_every=500,
    save_every=1000,
)
