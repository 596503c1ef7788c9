"""Weights as openpi's PyTorch port and LeRobot lay them out: one safetensors file or several."""

from __future__ import annotations

from pathlib import Path

from backbone.sources.headers import safetensors_header
from backbone.sources.places import Place, Weights, by_new_name, check_floats, some
from vla.layouts import EXPERT_HEAD, TOKENS, VLM_HEAD, port_depths, port_key, port_names

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
    keys = by_new_name(tensors, port_key, path)
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
