"""Stage 0 at small size: a SigLIP, both towers, on tabletop scenes and captions.

    vla train configs/paligemma_stage0_small.py     # after paligemma_stage0_vision_small.py

Two CPU-minutes. The result, outputs/paligemma_small/stage0/siglip, is a `SiglipModel`
of Hugging Face; stage 1 takes its image tower. docs/recipe.md runs the whole chain.
"""

from dataclasses import replace
from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from backbone.siglip_pair import SigLIPPairConfig
from vla.config import OptimConfig
from vla.training.schedule import Schedule
from vla.training.siglip_job import SigLIPTrainConfig

config = SigLIPTrainConfig(
    output_dir=Path("outputs/paligemma_small/stage0"),
    model=SigLIPPairConfig(
        replace(PALIGEMMA_SMALL.vision, patch=12),
        vocab=PALIGEMMA_SMALL.vocab,
        text_depth=2,
        text_length=40,
    ),
    vision=Path("outputs/paligemma_small/stage0_vision/vision"),
    easy=0.5,
    steps=600,
    batch_size=64,
    optim=OptimConfig(
        lr=1e-3,
        betas=(0.9, 0.95),
        schedule=Schedule(warmup_share=0.05),
        lr_factors=(("vision", 0.3),),  # it keeps what it knows of places
    ),
    ema=None,
    workers=1,
    log_every=25,
    eval_every=200,
    save_every=200,
)
