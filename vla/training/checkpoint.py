"""Checkpoints on disk: a folder per step, complete or absent.

    checkpoints/200/  model.safetensors  optimiser.safetensors  …  state.json  manifest.json

of one process; of several, `model/` and the others are folders of shards (`vla.training.shards`).

A checkpoint is written under a temporary name, flushed to the disk and renamed; a step's folder is
never written into again. The manifest holds the size and SHA-256 of every other file, so damage is
found before training goes on. All files are safetensors or JSON: reading them runs no code.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from vla.training.shards import save, written
from vla.training.world import ALONE, World

__all__ = ["damage", "newest", "read_state", "retire", "set_aside_damaged", "steps", "write"]

MANIFEST = "manifest.json"
STATE = "state.json"
PART = ".sealed-"  # what a process hashed, until the manifest holds it


def write(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int,
    keep_every: int | None = None,
    also: Callable[[Path], None] | None = None,
    world: World = ALONE,
    hurry: Callable[[], bool] = lambda: False,
) -> Path:
    """Write `folder/<step>`, then delete older ones as `retire` does.

    tensors: one safetensors file per entry, by name. state: what JSON can hold. also: writes more
    files into the folder that it is given, in which those of the tensors are already. hurry: as in
    `retire`. Returns the checkpoint's folder.
    Collective: each process of `world` writes and hashes its own parts, the first one everything
    else.
    Raises FileExistsError if the step is there already, OSError if it could not be written (a full
    disk, say); then nothing of it stays and older checkpoints are as they were.
    """
    final, temporary = folder / str(step), folder / f".{step}.tmp"
    if final.exists():
        raise FileExistsError(f"{final} exists; a checkpoint is never overwritten, delete it first")

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed while writing
        temporary.mkdir()

    def write_tensors() -> None:
        for name, values in tensors.items():
            save(values, temporary, name, world)
        own = [path for name in tensors for path in written(temporary, name, world)]
        _seal_all(own, temporary, f"{PART}{world.rank}")

    def complete() -> None:
        if also is not None:
            also(temporary)
        _complete(temporary, final, state, world.size)

    try:
        _together(world, prepare if world.first else None)
        _together(world, write_tensors)
        _together(world, complete if world.first else None)
        _together(world, (lambda: retire(folder, keep, keep_every, hurry)) if world.first else None)
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = newest(folder)
        raise OSError(
            f"could not write checkpoint {step} in {folder}: {error}. "
            + (f"The newest complete one is {kept}" if kept else "There is no earlier one")
            + "; make room or choose another output_dir, then resume"
        ) from error
    return final


def retire(
    folder: Path, keep: int, keep_every: int | None, hurry: Callable[[], bool] = lambda: False
) -> None:
    """Delete checkpoints that are older than the `keep` newest whole ones, but multiples of
    `keep_every`. Whole is what has the hashes of its manifest: all files of those are read.

    hurry: asked before each file; once it is true, all stay.
    Raises OSError if the newest one is damaged.
    """
    found = 0
    for step in reversed(steps(folder)):
        path = folder / str(step)
        if found < keep:
            reason = damage(path, hurry)
            if hurry():
                return
            if reason is not None and step == steps(folder)[-1]:
                raise OSError(f"{path} reads back damaged: {reason}")
            found += reason is None
        elif keep_every is None or step % keep_every:
            os.rename(path, folder / f".{step}.retired")  # never half there under its name
    for retired in folder.glob(".*.retired"):  # those of a process that was killed here too
        shutil.rmtree(retired)


def _together(world: World, work: Callable[[], None] | None) -> None:
    """Do this process's work; raises in all of them if it fails in one."""
    error = None
    try:
        if work is not None:
            work()
    except (OSError, SafetensorError, CheckpointException) as caught:
        error = caught
    failed = world.any(error is not None)
    if error is not None:
        raise error
    if failed:
        raise OSError("another process could not write its part")


def _seal_all(files: Iterable[Path], folder: Path, name: str) -> None:
    """Flush files of `folder` and note their seals in its file `name`."""
    seals = {}
    for path in files:
        _flush(path)
        seals[str(path.relative_to(folder))] = _seal(path)
    (folder / name).write_text(json.dumps(seals), encoding="utf-8")


def _complete(temporary: Path, final: Path, state: Mapping[str, Any], processes: int) -> None:
    """Seal what the processes have not, flush it, and give the folder its name."""
    (temporary / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    manifest: dict[str, list[Any]] = {}
    for rank in range(processes):
        part = temporary / f"{PART}{rank}"
        manifest |= json.loads(part.read_text(encoding="utf-8"))
        part.unlink()
    rest = [
        path
        for path in sorted(temporary.rglob("*"))
        if path.is_file() and str(path.relative_to(temporary)) not in manifest
    ]
    manifest |= {str(path.relative_to(temporary)): _seal(path) for path in rest}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    folders = [path for path in temporary.rglob("*") if path.is_dir()]
    for path in (*rest, temporary / MANIFEST, *folders, temporary):
        _flush(path)
    os.rename(temporary, final)
    _flush(final.parent)


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, ascending; whether they are whole is not looked at."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, or None."""
    for step in reversed(steps(folder)):
        if damage(folder / str(step)) is None:
            return folder / str(step)
    return None


def set_aside_damaged(folder: Path) -> list[str]:
    """Rename damaged checkpoints that are newer than the newest whole one to `<step>.damaged`.

    Training will pass their steps again and needs the names. Returns what was wrong with each.
    """
    reasons = []
    for step in reversed(steps(folder)):
        path = folder / str(step)
        if (reason := damage(path)) is None:
            break
        aside = path.with_name(f"{step}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
        reasons.append(f"checkpoint {path}: {reason}; renamed to {aside.name}")
    return reasons


def damage(path: Path, hurry: Callable[[], bool] = lambda: False) -> str | None:
    """What is wrong with a checkpoint's files, or None: every file is there, as it was written, and
    of the step that the folder is called by.
    hurry: asked before each file; once it is true, the rest are not looked at."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except ValueError:
        return f"{MANIFEST} is not JSON"
    for name, expected in manifest.items():
        if hurry():
            break
        if not (path / name).is_file():
            return f"{name} is missing"
        if _seal(path / name) != expected:
            return f"{name} is not as it was written"
    if STATE not in manifest:
        return f"{MANIFEST} lists no {STATE}"
    step = read_state(path)["step"]
    return None if step == int(path.name) else f"{STATE} is of step {step}"


def read_state(path: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint."""
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def _seal(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
