"""A policy for Tabletop-v0: crowded tables where colours repeat, so shapes matter too.

    vla collect Tabletop-v0 --episodes 2000 --image-size 72 --root outputs/tabletop/dataset
    vla train configs/tabletop.py
    vla eval outputs/tabletop/run/policy --env Tabletop-v0 --episodes 100 \\
        --replan-every 5 --image-size 72    # and once more with --swap

Starts from the small PaliGemma of configs/tabletop_pretrain.py that ships with the package.
What a short run reaches stands in docs/results.md; this length is not measured yet.
"""

from pathlib import Path

from vla.assets import PALIGEMMA_TABLETOP
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.pi0 import PI0_SMALL

config = TrainConfig(
    output_dir=Path("outputs/tabletop/run"),
    model=PI0_SMALL,
    data=DataConfig(
        root=Path("outputs/tabletop/dataset"), allow_short_episodes=True, prompt_length=24
    ),
    init=PALIGEMMA_TABLETOP,
    optim=OptimConfig(lr=1e-3, warmup=100, end_lr=1e-5, weight_decay=1e-4),
    steps=6000,
    batch_size=32,
    draws=4,
    ema=0.995,
    ema_ramp=True,
    log_every=50,
    eval_every=500,
    save_every=1000,
)
