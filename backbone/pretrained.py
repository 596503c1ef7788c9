"""A PaliGemma in a folder: weights, sizes and tokenizer, all that is needed to use it.

model.safetensors   config.json   tokenizer.model
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from backbone.gemma import GemmaConfig
from backbone.paligemma import PaliGemma, PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from backbone.tokenizer import Tokenizer
from backbone.weights import load_weights, save_weights

MODEL_TYPE = "vla-paligemma"


def save_pretrained(model: PaliGemma, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write `model` and `tokenizer` into `folder`, which is made if needed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": MODEL_TYPE, **asdict(model.config)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(folder)
    save_weights(model, folder / "model.safetensors")


def load_pretrained(folder: str | Path) -> tuple[PaliGemma, Tokenizer]:
    """Read a folder that `save_pretrained` wrote; weights are float32 on the CPU.

    Raises FileNotFoundError if the folder or one of its files is missing, ValueError if
    config.json is of another kind, or the weights or the vocabulary do not fit it.
    """
    folder = Path(folder)
    model = PaliGemma(read_config(folder))
    tokenizer = Tokenizer.from_pretrained(folder)
    if tokenizer.vocab_size > model.config.vocab:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids but the model only "
            f"{model.config.vocab} rows; they do not belong together"
        )
    load_weights(model, folder / "model.safetensors")
    return model, tokenizer


def read_config(folder: str | Path) -> PaliGemmaConfig:
    """The sizes that a folder's config.json states; raises as `load_pretrained` does."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no PaliGemma at {folder}: {path} is missing")
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{path} has model_type {values.get('model_type')!r}, expected {MODEL_TYPE!r}"
        )
    return PaliGemmaConfig(
        SigLIPConfig(**values["vision"]), GemmaConfig(**values["language"]), values["vocab"]
    )
