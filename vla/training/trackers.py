"""Services that draw a run's curves: Weights & Biases, and trackio, which has the same calls."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Trackers"]


class Trackers:
    """Reports to the modules called `names`: their `init` here, their `log`, their `finish`.

    A run that goes on in the same `folder` goes on there too.
    Raises ImportError, saying what to install, if one is missing.
    """

    def __init__(self, names: Sequence[str], folder: Path, project: str, config: Mapping[str, Any]):
        self._modules = [_module(name) for name in names]
        folder = folder.resolve()
        for name, module in zip(names, self._modules, strict=True):
            given: dict[str, Any] = {"project": project, "config": dict(config), "resume": "allow"}
            given["name"] = f"{folder.parent.name}/{folder.name}"
            if name == "wandb":  # goes on by identity, trackio by name
                given["id"] = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
                given["dir"] = str(folder)
            module.init(**given)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Values after `step` updates."""
        for module in self._modules:
            module.log(dict(values), step=step)

    def close(self) -> None:
        for module in self._modules:
            module.finish()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"trackers has {name!r}, which is not installed; run `uv pip install {name}` or leave "
            "it out"
        ) from error
