"""Kill a run again and again, and look at what it left: `python drill_kills.py FOLDER --kills 200`.

Half of the kills hit one process, half two that share a model, of which one or both are killed.
Half are steered into the writing of a checkpoint. After each, every checkpoint must be whole and,
bit for bit, what the run without a break had at its step; then the run goes on. Prints JSON.
"""

import argparse
import json
import random
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fake_run import fake_file
from forks import Forks, Run
from safetensors.torch import load_file

from vla.training import checkpoint
from vla.training.faults import LostPeer
from vla.training.log import METRICS

FIELDS = {"steps": 40, "save_every": 4, "log_every": 3, "delay": 0.002, "accumulate": 2}
BATCH = {"batch_size": 8}
Held = tuple[dict[str, torch.Tensor], dict[str, Any]]


@dataclass
class Kills:
    """processes: of a run. kills; in_a_save: of them, while a checkpoint was written; in_start:
    before the first step. runs: that came to their end in between. looked_at: checkpoints.
    unloadable, wrong: of these."""

    processes: int
    kills: int = 0
    in_a_save: int = 0
    in_start: int = 0
    runs: int = 0
    looked_at: int = 0
    unloadable: int = 0
    wrong: int = 0


def drill(forks: Forks, folder: Path, kills: int, processes: int, seed: int = 0) -> Kills:
    """Raises AssertionError if a run doesn't end as it should."""
    told, random_ = Kills(processes), random.Random(seed)
    file = fake_file(folder, **FIELDS, **BATCH)
    whole = folder / "whole"
    command = ("train", str(file), "--resume", "--parallel.timeout", "30", "--output-dir")
    run = forks.start(whole, *command, str(whole), "--keep", "1000", processes=processes)
    assert run.wait() == [0] * processes, run.said()
    kept = whole / "checkpoints"
    expected = {step: _held(kept / str(step)) for step in checkpoint.steps(kept)}
    while told.kills < kills:
        own = folder / str(told.runs)
        for leftover in _pending(own):  # so that the next one is known by its sight
            shutil.rmtree(leftover)
        run = forks.start(own, *command, str(own), processes=processes)
        _kill(run, own, random_, told)
        _look(own / "checkpoints", expected, told)
    own = folder / str(told.runs)
    run = forks.start(own, *command, str(own), processes=processes)
    assert run.wait() == [0] * processes, run.said()
    assert _reports(own) == _reports(whole), "the reports differ from those without a break"
    return told


def _kill(run: Run, folder: Path, random_: random.Random, told: Kills) -> None:
    kind = random_.choices(("save", "step", "start"), (0.5, 0.4, 0.1))[0]
    ranks = list(range(told.processes))
    if kind == "start":
        time.sleep(random_.uniform(0, 0.3))
    else:
        enough = _lines(folder) + random_.randrange(1, 5)

        def reached() -> bool:
            return bool(_pending(folder)) if kind == "save" else _lines(folder) >= enough

        run.until(reached)
        time.sleep(random_.uniform(0, 0.004))
        ranks = random_.choice((ranks, *([rank] for rank in ranks)))
    run.signal(signal.SIGKILL, ranks)
    statuses = run.wait()
    for rank, status in enumerate(statuses):
        fine = (-signal.SIGKILL, 0) if rank in ranks else (LostPeer.exit_status, 0)
        assert status in fine, f"process {rank} ended with {status}: {run.said(rank)}"
    if not any(statuses):
        told.runs += 1
        return
    told.kills += 1
    told.in_start += kind == "start"
    told.in_a_save += bool(_pending(folder))


def _look(folder: Path, expected: dict[int, Held], told: Kills) -> None:
    for step in checkpoint.steps(folder):
        told.looked_at += 1
        path = folder / str(step)
        if checkpoint.damage(path) is not None:
            told.unloadable += 1
        elif not _same(_held(path), expected[step]):
            told.wrong += 1


def _held(path: Path) -> Held:
    """All tensors of a checkpoint by file and name, and what its JSON says but for the config."""
    files = sorted(path.rglob("*.safetensors"))
    tensors = {
        f"{file.relative_to(path)}: {name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }
    state = checkpoint.read_state(path)
    return tensors, {name: value for name, value in state.items() if name != "config"}


def _same(one: Held, other: Held) -> bool:
    return (
        one[1] == other[1]
        and one[0].keys() == other[0].keys()
        and all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())
    )


def _pending(folder: Path) -> list[Path]:
    """Checkpoints that are being written."""
    return list((folder / "checkpoints").glob(".*.tmp"))


def _lines(folder: Path) -> int:
    path = folder / METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _reports(folder: Path) -> list[dict]:
    """Without what depends on the clock."""
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    told = [json.loads(line) for line in lines if line.endswith("}")]
    clock = ("samples_per_second", "data_wait")
    return [{name: x for name, x in line.items() if name not in clock} for line in told]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with Forks() as forks:
        for processes, kills in ((1, args.kills // 2), (2, args.kills - args.kills // 2)):
            place = args.folder / f"{processes}-processes"
            result = drill(forks, place, kills, processes, args.seed)
            print(json.dumps(asdict(result)), flush=True)
            assert not result.unloadable
            assert not result.wrong
