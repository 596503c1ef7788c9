"""The smallest run that trains a policy: a CPU, seconds. It shows that everything works.

    vla collect Tabletop-easy-v0 --episodes 20 --root outputs/tiny/dataset
    vla train configs/tiny.py
    vla eval outputs/tiny/run/policy --env Tabletop-easy-v0 --episodes 10

The loss falls from about 1.9 to 0.7; a policy that solves the task needs more: `vla demo`.
"""

from pathlib import Path

from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.pi0 import PI0_TINY

config = TrainConfig(
    output_dir=Path("outputs/tiny/run"),
    model=PI0_TINY,
    data=DataConfig(root=Path("outputs/tiny/dataset"), held_out=0.1),
    optim=OptimConfig(lr=1e-3, warmup=20, end_lr=1e-5),
    steps=200,
    batch_size=16,
    draws=4,
    ema=0.99,
    ema_ramp=True,
    log_every=10,
    eval_every=50,
    save_every=100,
)
