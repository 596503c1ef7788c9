"""Weights as openpi's PyTorch port and LeRobot lay them out: one safetensors file or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vla.layouts import (
    EXPERT_HEAD,
    TOKENS,
    VLM_HEAD,
    Place,
    port_depths,
    port_key,
    port_names,
)
from vla.sources.headers import Tensor, safetensors_header
from vla.sources.policy_files import Weights

FLOATS = ("float32", "bfloat16", "float16", "float64")
UNUSED = {
    VLM_HEAD: "the language model's output head, a copy of its embedding; no action depends on it",
    EXPERT_HEAD: "the expert's output head, never trained; no action depends on it",
}


def port_weights(path: Path) -> Weights:
    """Find every parameter in the file or folder at `path`, by today's names or older ones.

    The embedding may stand under its own name, under the tied output head's, or both.
    Raises FileNotFoundError, or ValueError if the file is cut, lacks a parameter or holds one twice
    or in a dtype that is no float; strays are left to the caller.
    """
    tensors = safetensors_header(path)
    keys = _by_todays_name(tensors, path)
    names = port_names(port_depths(keys))
    if TOKENS not in keys and VLM_HEAD in keys:
        names["backbone.embedding.weight"] = VLM_HEAD
    missing = [theirs for theirs in names.values() if theirs not in keys]
    if missing:
        known = {*names.values(), *UNUSED}
        raise ValueError(
            f"{path} does not hold a whole π0 or π0.5; it lacks {some(missing)}; "
            f"unknown in it: {some([k for n, k in keys.items() if n not in known])}"
        )
    places = {ours: Place(keys[theirs]) for ours, theirs in names.items()}
    check_floats(path, tensors, places)
    used = set(names.values())
    unused = {keys[n]: why for n, why in UNUSED.items() if n in keys and n not in used}
    return Weights(path, tensors, places, unused)


def check_floats(path: Path, tensors: Mapping[str, Tensor], places: Mapping[str, Place]) -> None:
    """Raise ValueError, naming it, if a weight is stored as anything but plain floats."""
    for place in places.values():
        dtype = tensors[place.key].dtype
        if dtype not in FLOATS:
            raise ValueError(
                f"{path}: {place.key} is {dtype}, expected one of {', '.join(FLOATS)}; "
                "quantised weights do not load, give the original checkpoint"
            )


def some(names: Iterable[str], most: int = 6) -> str:
    """The first few of `names`, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"


def _by_todays_name(tensors: Iterable[str], path: Path) -> dict[str, str]:
    keys: dict[str, str] = {}
    for key in tensors:
        name = port_key(key)
        if name in keys:
            raise ValueError(
                f"{path} holds {keys[name]} and {key}, two names of the same weight; "
                "keep the one that was trained"
            )
        keys[name] = key
    return keys
