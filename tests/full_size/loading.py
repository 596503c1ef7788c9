"""Loading PaliGemma-3B at full size: memory and time, beside reading its file once.

    python tests/full_size/loading.py FOLDER

writes random weights as a Hugging Face folder, in bfloat16 (5.8 GB) and in float32 (11.7 GB), once;
then loads each into bfloat16 parameters in a process of its own and looks at them with `vla
inspect`. Needs 13 GB of free memory. The figures of one run stand in docs/results.md.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch

from backbone.paligemma import PALIGEMMA_3B_224, PaliGemma
from backbone.sources.layouts import PaliGemmaDepths, huggingface_names
from backbone.sources.write import write_safetensors

ROOT = Path(__file__).parents[2]
LOADING = ROOT / "tests/backbone/loading.py"
CONFIG = {  # what Hugging Face's folder says; sizes stand in the tensors' shapes
    "model_type": "paligemma",
    "text_config": {"model_type": "gemma", "head_dim": PALIGEMMA_3B_224.language.head_dim},
    "vision_config": {"num_attention_heads": PALIGEMMA_3B_224.vision.heads},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Loading PaliGemma-3B at full size.")
    parser.add_argument("folder", type=Path)
    root: Path = parser.parse_args().folder
    for stored in ("bfloat16", "float32"):
        folder = root / f"paligemma-3b-{stored}"
        if not folder.exists():
            write_random(folder, stored)
        for round, start in product(range(3), ([], ["--from-disk"])):
            told = json.loads(_run(LOADING, folder, "bfloat16", *start).splitlines()[-1])
            print(
                f"{stored} file {' '.join(start)}, round {round}: "
                f"peak {told['peak'] / told['bytes']:.3f} × the weights' "
                f"{told['bytes'] / 1e9:.2f} GB; loaded in {told['loaded']:.2f} s, every "
                f"weight seen after {told['seconds']:.2f} s, reading the file once "
                f"{told['reading']:.2f} s: {told['loaded'] / told['reading']:.2f} × and "
                f"{told['seconds'] / told['reading']:.2f} ×",
                flush=True,
            )
        start = time.perf_counter()
        text = _run("-m", "vla", "inspect", folder)
        print(f"vla inspect: {time.perf_counter() - start:.2f} s\n{text}")


def write_random(folder: Path, stored: str) -> None:
    """A Hugging Face folder, drawn tensor by tensor."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in PaliGemma(PALIGEMMA_3B_224).named_parameters()}
    sizes = PaliGemmaDepths(PALIGEMMA_3B_224.vision.depth, PALIGEMMA_3B_224.language.depth)
    names = huggingface_names(sizes)
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in shapes.items():
            std = 0.1 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
            values = torch.randn(shape, generator=generator) * std
            yield names[name], values.to(getattr(torch, stored))

    write_safetensors(
        partial / "model.safetensors",
        {names[name]: (shape, stored) for name, shape in shapes.items()},
        drawn(),
        {"format": "pt"},
    )
    (partial / "config.json").write_text(json.dumps(CONFIG))
    partial.rename(folder)


def _run(*words: str | Path) -> str:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return done.stdout


if __name__ == "__main__":
    main()
