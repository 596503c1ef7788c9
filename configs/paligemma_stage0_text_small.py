"""Stage 0 at small size: a Gemma from nothing, on what is said of the tabletop, without pictures.

    vla train configs/paligemma_stage0_text_small.py

Under a CPU-minute. The result, outputs/paligemma_small/stage0_text/gemma, is a
`GemmaForCausalLM` of Hugging Face; stage 1 takes all of it.
"""

from pathlib import Path

from backbone.paligemma import PALIGEMMA_SMALL
from vla.config import OptimConfig
from vla.training.language_job import LanguageConfig
from vla.training.schedule import Schedule

config = LanguageConfig(
    output_dir=Path("outputs/paligemma_small/stage0_text"),
    model=PALIGEMMA_SMALL.language,
    steps=600,
    batch_size=32,
    optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), schedule=Schedule(warmup_share=0.05)),
    ema=None,
    workers=1,
    log_every=25,
    eval_every=200,
    save_every=200,
)
