"""What `vla ablate cotrain` starts from: the small PaliGemma of robots' instructions, taught to
answer questions.

    vla train configs/cotrain_start.py

Its knowledge is what a policy loses or keeps. One camera, scenes of `Tabletop-easy-v0`, the image
encoder at a tenth of the rate. docs/results.md says what it knows.
"""

from pathlib import Path

from backbone.pretrained import read_config
from vla.assets import PALIGEMMA_TABLETOP
from vla.config import OptimConfig
from vla.data.examples import TabletopData
from vla.training.stage_job import StageConfig

config = StageConfig(
    output_dir=Path("outputs/cotrain/start"),
    model=read_config(PALIGEMMA_TABLETOP),
    data=TabletopData(
        shares=(("locate", 0.1), ("detect", 0.15), ("question", 0.7), ("caption", 0.05)),
        easy=1.0,
    ),
    init=PALIGEMMA_TABLETOP,
    text_length=64,
    steps=1200,
    batch_size=32,
    optim=OptimConfig(
        lr=1e-3,
        warmup=60,
        end_lr=1e-5,
        weight_decay=1e-4,
        muon_lr=8e-3,
        lr_factors=(("vision", 0.1),),
    ),
    precision="auto",
    ema=0.995,
    ema_ramp=True,
    workers=1,
    log_every=50,
    eval_every=300,
    save_every=600,
)
