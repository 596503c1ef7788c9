"""Pretrain the small PaliGemma that tabletop policies start from.

    vla train configs/tabletop_pretrain.py

On one core about 40 minutes. The result, outputs/tabletop_pretrain/paligemma, is what ships in
vla/assets/paligemma_tabletop.
"""

from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.config import OptimConfig
from vla.training.text_job import TextConfig

config = TextConfig(
    output_dir=Path("outputs/tabletop_pretrain"),
    model=PALIGEMMA_SMALL,
    steps=5000,
    batch_size=32,
    optim=OptimConfig(lr=1e-3, warmup=60, end_lr=1e-5, weight_decay=1e-4, muon_lr=8e-3),
    ema=0.995,
    ema_ramp=True,
    workers=1,
    log_every=25,
    eval_every=500,
    save_every=500,
)
