"""Damage checkpoints and go on: `python drill_damages.py FOLDER --damages 100`.

Each round hurts the newest of three checkpoints, of one process or of two, at random: a file is cut
short, a bit of it flipped, filled with zeros, deleted, or exchanged with another file of the same
checkpoint or with the same file of the one before; or these two checkpoints are exchanged. It is
caught if the damage is named, with its file, before a step is made, and the run goes on from the
newest checkpoint that is whole, to where it would have come. Prints JSON.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from fake_run import fake_config, fake_file
from forks import Forks
from safetensors.torch import load_file

from vla.config import ParallelConfig
from vla.training import checkpoint
from vla.training.loop import train

KINDS = (
    "truncate",
    "flip a bit",
    "fill with zeros",
    "delete",
    "exchange",
    "exchange with older",
    "exchange folders",
)
FIELDS = {"steps": 15, "keep": 3, "save_every": 5, "batch_size": 8}
RESULT = "policy/model.safetensors"


@dataclass
class Damages:
    """caught: of `made`. kinds, files: what was done, and to which, how often."""

    made: int = 0
    caught: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)


def drill(forks: Forks, folder: Path, damages: int, seed: int = 0) -> Damages:
    """Trains once in one process and once in two, then hurts copies of what they saved."""
    told, random_ = Damages(), random.Random(seed)
    wholes = {}
    for processes in (1, 2):
        whole = wholes[processes] = folder / f"{processes}-processes"
        command = ("train", str(fake_file(whole, **FIELDS)))
        run = forks.start(whole, *command, processes=processes)
        assert run.wait() == [0] * processes, run.said()
    hurt = folder / "hurt"
    for i in range(damages):
        whole = wholes[1 + i % 2] / "run"
        shutil.rmtree(hurt, ignore_errors=True)
        shutil.copytree(whole, hurt)
        kind = KINDS[i // 2 % len(KINDS)]
        files, left = _hurt(hurt / "checkpoints", kind, random_)
        told.made += 1
        told.kinds[kind] = told.kinds.get(kind, 0) + 1
        for name in files:
            told.files[name] = told.files.get(name, 0) + 1
        if _caught(hurt, whole, files, left):
            told.caught += 1
        else:
            told.missed.append(f"{kind}: {', '.join(files)}")
    return told


def _caught(hurt: Path, whole: Path, files: list[str], left: int) -> bool:
    """left: the newest step that is whole."""
    said = io.StringIO()
    config = fake_config(hurt, **FIELDS | {"parallel": ParallelConfig(shards=1)})
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        train(config, resume=True)
    told = said.getvalue()
    # a manifest that reads well is believed, and the file that it wrongs is named
    named = any(f"{name} is " in told for name in files) or files == [checkpoint.MANIFEST]
    aside = sorted(path.name for path in (hurt / "checkpoints").glob("*.damaged"))
    ours, theirs = load_file(hurt / RESULT), load_file(whole / RESULT)
    return (
        named
        and aside == sorted(f"{step}.damaged" for step in range(left + 5, 16, 5))
        and all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)
    )


def _hurt(checkpoints: Path, kind: str, random_: random.Random) -> tuple[list[str], int]:
    """The names of the files that are hurt, and the newest step that is not."""
    newest, older = checkpoints / "15", checkpoints / "10"
    if kind == "exchange folders":
        newest.rename(checkpoints / "other")
        older.rename(newest)
        (checkpoints / "other").rename(older)
        return [checkpoint.STATE], 5
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    if kind == "exchange with older":
        files = [f for f in files if f.read_bytes() != _in(older, newest, f).read_bytes()]
    path = random_.choice(files)
    name = str(path.relative_to(newest))
    content = bytearray(path.read_bytes())
    if kind == "truncate":
        path.write_bytes(content[: random_.randrange(len(content))])
    elif kind == "flip a bit":
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
        path.write_bytes(content)
    elif kind == "fill with zeros":
        path.write_bytes(bytes(len(content)))
    elif kind == "delete":
        path.unlink()
    elif kind == "exchange":
        other = random_.choice([f for f in files if f.read_bytes() != content])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return [name, str(other.relative_to(newest))], 10
    elif kind == "exchange with older":
        other = _in(older, newest, path)
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return [name], 5
    return [name], 10


def _in(other: Path, folder: Path, path: Path) -> Path:
    """The file of `other` that is what `path` is in `folder`."""
    return other / path.relative_to(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with Forks() as forks:
        result = drill(forks, args.folder, args.damages, args.seed)
    print(json.dumps(asdict(result), indent=2))
    assert result.caught == result.made
