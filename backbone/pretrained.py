"""A PaliGemma in a folder, ours or another project's: weights, sizes and tokenizer.

model.safetensors   config.json   tokenizer.model
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbone.design import Design
from backbone.gemma import GemmaConfig
from backbone.numerics import BIG_VISION, HUGGING_FACE, OPENPI_JAX, Numerics
from backbone.paligemma import PaliGemma, PaliGemmaConfig
from backbone.positions import resample_positions
from backbone.precision import multiplies_bfloat16
from backbone.siglip import SigLIPConfig
from backbone.sources.origin import OURS, paligemma_files
from backbone.sources.paligemma_files import TOKENIZERS, PaliGemmaFiles
from backbone.sources.places import largest_first
from backbone.sources.read import read
from backbone.tokenizer import Tokenizer
from backbone.weights import check_fit, fill, save_weights, shapes_of

MODEL_TYPE = OURS
NUMERICS = {"vla": OPENPI_JAX, "Hugging Face": HUGGING_FACE, "big_vision": BIG_VISION}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_POSITION = "vision.embedding.position"
_log = logging.getLogger(__name__)


def save_pretrained(model: PaliGemma, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write `model` and `tokenizer` into `folder`, which is made if needed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    save_weights(model, folder / "model.safetensors")
    save_config(model.config, folder)


def save_config(config: PaliGemmaConfig, folder: Path) -> None:
    """Write `folder`'s config.json; an older one stays whole until the new one is complete."""
    values = {"model_type": MODEL_TYPE, **asdict(config)}
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "config.json")


def load_pretrained(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    tokenizer: Tokenizer | str | Path | None = None,
    resolution: int | None = None,
) -> tuple[PaliGemma, Tokenizer]:
    """Read a PaliGemma, as `load_model` does, with its tokenizer.

    tokenizer: instead of the one beside the weights.
    Raises as `load_model` and `Tokenizer.from_pretrained` do, FileNotFoundError if there is no
    tokenizer, ValueError if it has more ids than the model has rows.
    """
    files = paligemma_files(Path(path))
    config = _at(paligemma_config(files), resolution)
    if tokenizer is None:
        tokenizer = Tokenizer.from_pretrained(_beside(files))
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_pretrained(tokenizer)
    if tokenizer.vocab_size > config.vocab:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids but the model only "
            f"{config.vocab} rows; they do not belong together"
        )
    return _load(files, config, device, dtype), tokenizer


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    resolution: int | None = None,
    config: PaliGemmaConfig | None = None,
) -> PaliGemma:
    """Read a PaliGemma or PaliGemma 2 without its tokenizer; the files tell who wrote them.

    path: a folder of this package (`save_pretrained`) or of Hugging Face, or big_vision's .npz file
    or the folder that it stands in. device, dtype: of the weights. resolution: of the images, in
    pixels, where another is wanted than the weights have (see `resample_positions`).
    config: sizes and caps instead of what the files say: a Gemma 2 of big_vision does not tell its
    own soft-caps. The origin's `Numerics` are put in, unless the files hold some.
    The model is built without memory and filled one tensor at a time.
    Raises FileNotFoundError if a file is missing; ValueError, with nothing loaded, if the files
    contradict one another or hold another model, or a weight is missing, unknown, of another shape
    or of a dtype that is no float.
    """
    files = paligemma_files(Path(path))
    if config is None:
        config = paligemma_config(files)
    else:
        config = replace(config, numerics=numerics_of(files))
    return _load(files, _at(config, resolution), device, dtype)


def read_config(folder: str | Path) -> PaliGemmaConfig:
    """The sizes that a PaliGemma's files state; raises as `load_model` does."""
    return paligemma_config(paligemma_files(Path(folder)))


def paligemma_config(files: PaliGemmaFiles) -> PaliGemmaConfig:
    """Sizes and numerics of the model in `files`."""
    return PaliGemmaConfig(
        SigLIPConfig(**asdict(files.vision)),
        GemmaConfig(**asdict(files.language), **files.gemma2),
        files.vocab,
        numerics_of(files),
        Design(**_known(Design, files.design, files)),
    )


def numerics_of(files: PaliGemmaFiles) -> Numerics:
    """How the implementation that wrote `files` rounds and prepares.

    Raises ValueError if they hold a field that `Numerics` does not have.
    """
    if not files.numerics:
        return NUMERICS[files.origin]
    return Numerics(**_known(Numerics, files.numerics, files))


def _known(cls: type, values: Mapping[str, Any], files: PaliGemmaFiles) -> Mapping[str, Any]:
    known = [field.name for field in fields(cls)]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise ValueError(
            f"{files.path}: its config.json has {cls.__name__.lower()} {', '.join(unknown)}, known "
            f"here are {', '.join(known)}; it was written by another version of this package"
        )
    return values


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A float dtype by its name. Raises ValueError for any other."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected float32, bfloat16 or float16")
    return found


def _at(config: PaliGemmaConfig, resolution: int | None) -> PaliGemmaConfig:
    if resolution is None:
        return config
    return replace(config, vision=replace(config.vision, resolution=resolution))


def outlined(
    path: str | Path, config: PaliGemmaConfig
) -> tuple[PaliGemma, Callable[[], Iterator[tuple[str, Tensor]]]]:
    """`load_model` with `config`, but for the numbers: the model on the meta device, and what reads
    its parameters' values, each by name and once, one at a time. Raises as `load_model` does."""
    files = paligemma_files(Path(path))
    config = replace(config, numerics=numerics_of(files))
    model, tensors = _outlined(files, config, torch.float32)
    _announce(files, config)
    return model, tensors


def _load(files: PaliGemmaFiles, config: PaliGemmaConfig, device, dtype) -> PaliGemma:
    kind = as_dtype(dtype)
    if kind == torch.bfloat16 and not multiplies_bfloat16(device):
        _log.warning('no fast products in bfloat16 on this %s; dtype="float32" is faster', device)
    model, tensors = _outlined(files, config, kind)
    fill(model, tensors(), device)
    _announce(files, config)
    return model


def _outlined(
    files: PaliGemmaFiles, config: PaliGemmaConfig, kind: torch.dtype
) -> tuple[PaliGemma, Callable[[], Iterator[tuple[str, Tensor]]]]:
    with torch.device("meta"):
        model = PaliGemma(config).to(kind)
        if config.numerics.float32_vision:
            model.vision.to(torch.float32)
            model.projector.to(torch.float32)
    weights = largest_first(files.weights)
    shapes = weights.shapes
    if config.vision.resolution != files.vision.resolution and _POSITION in shapes:
        shapes[_POSITION] = (config.vision.tokens, *shapes[_POSITION][1:])
    own = shapes_of(dict(model.named_parameters()))
    check_fit(own, shapes, str(weights.path), weights.stray)
    return model, lambda: _resampled(read(weights), config.vision.tokens)


def _resampled(tensors, patches: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield name, resample_positions(tensor, patches) if name == _POSITION else tensor


def _announce(files: PaliGemmaFiles, config: PaliGemmaConfig) -> None:
    """Log what was loaded, under whose numerics, and what was left out."""
    name = "PaliGemma 2" if config.language.post_norms else "PaliGemma"
    whose = "this package" if files.origin == "vla" else files.origin
    _log.info("%s: %s of %s, with its numerics", files.path, name, whose)
    for key, why in files.weights.unused.items():
        _log.info("%s: %s left out: %s", files.path, key, why)
    if config.vision.resolution != files.vision.resolution:
        sizes = files.vision.resolution, config.vision.resolution
        _log.info("%s: position embeddings resampled from %d to %d pixels", files.path, *sizes)


def _beside(files: PaliGemmaFiles) -> Path:
    if files.tokenizer is None:
        raise FileNotFoundError(
            f"{files.folder} has no tokenizer ({' or '.join(TOKENIZERS)}); give PaliGemma's with "
            "tokenizer=, such as the tokenizer.model of google/paligemma-3b-pt-224"
        )
    return files.tokenizer
