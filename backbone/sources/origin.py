"""Who wrote a PaliGemma, told by its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbone.sources.big_vision import big_vision_files
from backbone.sources.headers import WEIGHTS, read_json, safetensors_header
from backbone.sources.huggingface import MODEL_TYPE as HUGGING_FACE
from backbone.sources.huggingface import huggingface_files
from backbone.sources.paligemma_files import CONFIG, PaliGemmaFiles
from backbone.sources.places import Place, Weights, check_floats, some
from backbone.sources.sizes import Stack, Vision

OURS = "vla-paligemma"
# What else people have in folders, and what to do with it.
OTHERS = {
    "vla-pi0": "a policy of this package: load it with vla.policy.Policy.from_pretrained",
    "vla-pi05": "a policy of this package: load it with vla.policy.Policy.from_pretrained",
    "siglip": "SigLIP alone: put it together with a Gemma with backbone.stage0.from_parts",
    "siglip_vision_model": "SigLIP alone: put it together with backbone.stage0.from_parts",
    "gemma": "Gemma alone: put it together with a SigLIP with backbone.stage0.from_parts",
    "gemma2": "Gemma 2 alone: put it together with a SigLIP with backbone.stage0.from_parts",
}


def paligemma_files(path: Path) -> PaliGemmaFiles:
    """What a PaliGemma's folder or .npz file says: of this package, Hugging Face or big_vision.

    Raises FileNotFoundError if nothing is there, ValueError if it is broken or something else; the
    message says what was found.
    """
    if path.is_file():
        if path.suffix == ".npz":
            return big_vision_files(path)
        raise ValueError(
            f"{path} is a single file; give the folder that it stands in (of files, big_vision's "
            ".npz alone hold a whole model)"
        )
    if not path.is_dir():
        raise FileNotFoundError(
            f"no PaliGemma at {path}: {path / CONFIG} is missing, and so is the folder; give a "
            "folder of this package or Hugging Face, or an .npz file of big_vision"
        )
    if not (path / CONFIG).is_file():
        return big_vision_files(_only_npz(path))
    config = read_json(path / CONFIG)
    match config.get("model_type"):
        case model if model == OURS:
            return _our_files(path, config)
        case model if model == HUGGING_FACE:
            return huggingface_files(path)
    raise ValueError(f"{path / CONFIG} {what_else(config)}")


def is_paligemma(path: Path) -> bool:
    """Whether `path` is for `paligemma_files` to read, or to say what is wrong with it."""
    if path.is_file():
        return True
    if not (path / CONFIG).is_file():
        return path.is_dir() and any(path.glob("*.npz")) and not any(path.glob("*.safetensors"))
    model = read_json(path / CONFIG).get("model_type")
    return model in (OURS, HUGGING_FACE, "siglip", "siglip_vision_model", "gemma", "gemma2")


def what_else(config: Mapping[str, Any]) -> str:
    """What a config.json holds that is no PaliGemma's, in words."""
    model = config.get("model_type")
    if model is None and "type" in config:
        return f"is of a LeRobot policy ({config['type']!r}): load it with Policy.from_pretrained"
    text = f"has model_type {model!r}, expected {OURS!r} or {HUGGING_FACE!r}"
    return f"{text}; this is {OTHERS[model]}" if model in OTHERS else text


def _only_npz(folder: Path) -> Path:
    found = sorted(folder.glob("*.npz"))
    if len(found) == 1:
        return found[0]
    held = some(sorted(p.name for p in folder.iterdir()), 8)
    if found:
        raise ValueError(f"{folder} holds several .npz files ({held}); give the path of one")
    raise FileNotFoundError(
        f"no PaliGemma at {folder}: {folder / CONFIG} is missing; it holds {held}"
    )


def _our_files(folder: Path, config: Mapping[str, Any]) -> PaliGemmaFiles:
    tensors = safetensors_header(folder / WEIGHTS)
    weights = Weights(folder / WEIGHTS, tensors, {name: Place(name) for name in tensors})
    check_floats(folder / WEIGHTS, tensors, weights.places)
    try:
        language = dict(config["language"])
        sizes = {name: language.pop(name) for name in Stack.__dataclass_fields__}
        return PaliGemmaFiles(
            origin="vla",
            path=folder,
            weights=weights,
            vision=Vision(**config["vision"]),
            language=Stack(**sizes),
            vocab=config["vocab"],
            gemma2=language,
            numerics=config.get("numerics", {}),
            design=config.get("design", {}),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CONFIG} lacks {error}, which this package writes; copy it again"
        ) from error
