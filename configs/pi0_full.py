"""π0 at full size (3.24 B) from a published checkpoint, everything trained, on 8 GPUs of 80 GB.

    vla convert PI0_BASE outputs/pi0_base --to vla --tokenizer paligemma/tokenizer.model
    vla plan configs/pi0_full.py --gpus 8 --memory 80
    torchrun --nproc-per-node 8 -m vla train configs/pi0_full.py --data.root DATASET

PI0_BASE is LeRobot's `pi0` or openpi's `pi0_base`, PyTorch or JAX.
The plan says: 23.8 GB of each GPU at 4 samples at once with nothing recomputed (state 7.9,
activations 13.8), 12.1 GB with `--parallel.recompute 1`; room for 19 or 196 samples on each; 11.5
TFLOP a sample, so 274 samples/s at 40 % MFU of H100s. One GPU of 80 GB holds the state (63 GB) and
51 samples at once where every block is recomputed. None of it has been run.

Optimiser, schedule, batch and average are openpi's (`training/config.py`, fine-tuning of π0).
"""

from pathlib import Path

from vla.config import DataConfig, OptimConfig, ParallelConfig, TrainConfig
from vla.pi0 import PI0

config = TrainConfig(
    output_dir=Path("outputs/pi0_full/run"),
    model=PI0,
    data=DataConfig(root=Path("outputs/pi0_full/dataset"), cache=False),
    init=Path("outputs/pi0_base"),
    optim=OptimConfig(
        lr=2.5e-5, warmup=1000, decay_steps=30_000, end_lr=2.5e-6, weight_decay=1e-10, clip=1.0
    ),
    parallel=ParallelConfig(),  # FSDP2 over all processes
    precision="bfloat16",
    steps=30_000,
    batch_size=32,
    draws=1,
    ema=0.99,
    workers=8,
    log_every=100,
    eval_every=1000,
    save_every=1000,
)
