"""Train while being killed again and again: `python killed_run.py WHOLE KILLED`.

Runs the same training into two folders. The second one is done by children that are SIGKILLed, some
after a number of reports and some while a checkpoint is being written, each followed by a resume.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from fake_run import fake_config

from vla.training.log import METRICS
from vla.training.loop import train

FIELDS = {"steps": 40, "save_every": 4, "log_every": 3, "delay": 0.002, "accumulate": 2}


def reports(folder: Path) -> int:
    path = folder / METRICS
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def is_saving(folder: Path, least: int) -> bool:
    """Whether a checkpoint of step `least` or later is being written."""
    pending = (folder / "checkpoints").glob(".*.tmp")
    return any(int(path.name.split(".")[1]) >= least for path in pending)


def kill_when(reached: Callable[[], bool], folder: Path) -> None:
    for leftover in (folder / "checkpoints").glob(".*.tmp"):
        shutil.rmtree(leftover)  # of the child before, so that it does not count for this one
    child = os.fork()
    if child == 0:
        train(fake_config(folder, **FIELDS), resume=True)
        os._exit(0)
    while not reached():
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended before it was killed"


def main(whole: Path, killed: Path) -> None:
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # imports, once, what every child would import
    kill_when(lambda: reports(killed) >= 1, killed)  # before the first checkpoint
    kill_when(lambda: reports(killed) >= 3, killed)
    for least in (12, 16, 28):
        kill_when(lambda least=least: is_saving(killed, least), killed)
    kill_when(lambda: reports(killed) >= 11, killed)
    train(fake_config(killed, **FIELDS), resume=True)
    train(fake_config(whole, **FIELDS))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
