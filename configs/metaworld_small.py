"""One policy for three MetaWorld tasks, from 50 demonstrations each and two cameras, on a CPU.

    vla collect metaworld/reach-v3 metaworld/button-press-topdown-v3 metaworld/drawer-open-v3 \\
        --episodes 150 --noise 0.3 --hold 10 --image-size 72 --env-kwargs zoom=1.8 \\
        --root outputs/metaworld_small/dataset
    vla train configs/metaworld_small.py
    vla eval outputs/metaworld_small/run/policy --env metaworld/reach-v3 --episodes 20 \\
        --replan-every 8 --image-size 72 --env-kwargs zoom=1.8    # and the other two

Starts from the PaliGemma that learned to see on the built-in tabletop: a red goal is found like a
red circle. Control runs at 80 Hz, so noise is held for 10 steps to reach states that the expert's
own path does not, and chunks are 16 steps (0.2 s). Time and success stand in docs/results.md.
"""

from dataclasses import replace
from pathlib import Path

from vla.assets import PALIGEMMA_TABLETOP
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.pi0 import PI0_SMALL

config = TrainConfig(
    output_dir=Path("outputs/metaworld_small/run"),
    model=replace(PI0_SMALL, expert=replace(PI0_SMALL.expert, horizon=16)),
    data=DataConfig(root=Path("outputs/metaworld_small/dataset"), prompt_length=24),
    init=PALIGEMMA_TABLETOP,
    optim=OptimConfig(lr=1e-3, warmup=100, end_lr=1e-5, weight_decay=1e-4),
    steps=2500,
    batch_size=32,
    draws=4,
    ema=0.995,
    ema_ramp=True,
    log_every=50,
    eval_every=500,
    save_every=1000,
)
