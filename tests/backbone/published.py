"""PaliGemmas at toy size as other projects write them, put together from tests/golden."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = {
    "model_type": "paligemma",
    "projection_dim": 64,
    "text_config": {
        "model_type": "gemma",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 160,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 14,
        "image_size": 56,
    },
}
TOKENS = "model.language_model.embed_tokens.weight"


def huggingface_folder(folder: Path, version: str = "") -> Path:
    """tests/golden/hf_paligemma ("") or hf_paligemma2 ("2"), as transformers 5.5.4 wrote it."""
    source = GOLDEN / f"hf_paligemma{version}"
    folder.mkdir(parents=True)
    shutil.copy(source / "model.safetensors", folder)
    if version:
        shutil.copy(source / "config.json", folder)
    else:
        (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def with_tensors(folder: Path, change) -> Path:
    """The same folder after `change` of its tensors, a function from dict to dict.

    Their names are first those that transformers 5.5.4 has in memory; it wrote others.
    """
    stored = load_file(folder / "model.safetensors")
    tensors = {
        key.replace("language_model.model.", "language_model."): stored[key] for key in stored
    }
    save_file(change(tensors), folder / "model.safetensors")
    return folder


def with_config(folder: Path, part: str | None = None, **values) -> Path:
    """The same folder with other values in config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    target = config if part is None else config[part]
    target |= values
    for name in [name for name, value in values.items() if value is None]:
        del target[name]
    path.write_text(json.dumps(config))
    return folder


def flat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of transformers up to 4.51, which published files have."""
    names = {
        key: re.sub(r"^language_model\.", "language_model.model.", key.removeprefix("model."))
        for key in tensors
    }
    return {names[key]: tensor for key, tensor in tensors.items()}


def today(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of transformers 4.52 to 5.22."""
    return tensors


def without_vision_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of transformers 5.23."""
    return {key.replace(".vision_model.", "."): tensor for key, tensor in tensors.items()}


def sharded(folder: Path) -> Path:
    """The same weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(tensors)}
    for name in names:
        save_file({k: t for k, t in tensors.items() if where[k] == name}, folder / name)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def big_vision_arrays(version: str = "") -> dict[str, np.ndarray]:
    """tests/golden/big_vision_paligemma or -2 by key."""
    with np.load(GOLDEN / f"big_vision_paligemma{version}/params_f32.npz") as file:
        return {key: file[key] for key in file.files}


def apart(arrays: dict[str, np.ndarray], gemma: str = "layers/{i}") -> dict[str, np.ndarray]:
    """With every block in arrays of its own."""
    out = {}
    for key, array in arrays.items():
        for stacked, block in (
            ("/encoderblock/", "/encoderblock_{i}/"),
            ("/layers/", f"/{gemma}/"),
        ):
            if stacked in key:
                out |= {key.replace(stacked, block.format(i=i)): a for i, a in enumerate(array)}
                break
        else:
            out[key] = array
    return out


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    """Rounded, in two bytes that NumPy has no name for, as big_vision stores it."""
    return torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")
