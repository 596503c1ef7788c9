"""Who wrote a policy's folder, told by the files in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backbone.sources.headers import INDEX, WEIGHTS, read_json
from vla.sources.lerobot import lerobot_files
from vla.sources.openpi import PARAMS, jax_files, pytorch_files
from vla.sources.orbax import MANIFEST, METADATA
from vla.sources.ours import MODEL_TYPES, our_files

if TYPE_CHECKING:
    from vla.sources.policy_files import Origin, PolicyFiles


def origin_of(folder: Path) -> Origin:
    """Whose policy this folder holds.

    Raises FileNotFoundError if there is no such folder or it holds no policy, ValueError if its
    config.json is of something else; the message says what it holds.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no policy at {folder}: there is no such folder; give one of this package, LeRobot or "
            "openpi"
        )
    if _is_orbax(folder / PARAMS) or _is_orbax(folder):
        return "openpi JAX"
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("model_type") in MODEL_TYPES:
        return "vla"
    if "type" in config:
        return "LeRobot"
    weights = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    if weights and "model_type" not in config:
        return "openpi PyTorch"
    if "model_type" in config:
        raise ValueError(
            f"no policy at {folder}: its config.json has model_type {config['model_type']!r}, "
            f"expected {' or '.join(map(repr, MODEL_TYPES))}"
        )
    raise FileNotFoundError(
        f"no policy at {folder}: config.json is missing, or {WEIGHTS}; {_instead(folder)}"
    )


def policy_files(folder: Path, asset: str | None = None) -> PolicyFiles:
    """What the files of a policy say; `asset` chooses one of an openpi folder's robots.

    Raises as `origin_of` does, and as the origin's own reader.
    """
    match origin_of(folder):
        case "LeRobot":
            return lerobot_files(folder)
        case "openpi PyTorch":
            return pytorch_files(folder, asset)
        case "openpi JAX":
            return jax_files(folder, asset)
        case "vla":
            return our_files(folder)


def _is_orbax(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / METADATA).is_file()


def _instead(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    for name in names:  # one level too high, as in a training run's output
        if (folder / name / "config.json").is_file() or _is_orbax(folder / name / PARAMS):
            return f"it has folders that may be one, such as {folder / name}"
    held = ", ".join(names[:8]) or "nothing"
    return f"it holds {held}"
