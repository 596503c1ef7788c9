"""Batches that are prepared ahead: their order, and what is said when none comes."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from vla.training.faults import BadData, LostWorker
from vla.training.job import Microbatch
from vla.training.prefetch import Prefetch


def batch(step: int) -> list[Microbatch]:
    return [Microbatch((torch.tensor(step),), 1)]


def names(step: int) -> list[str]:
    return [f"data: episode {step} frame 7", f"data: episode {step} frame 8"]


def unreadable(step: int) -> Sequence[Microbatch]:
    if step == 3:
        raise ValueError("data: episode 3, camera top: the video ends early")
    return batch(step)


def dies(step: int) -> Sequence[Microbatch]:
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(step)


def hangs(step: int) -> Sequence[Microbatch]:
    if step == 3:
        time.sleep(60)
    return batch(step)


def told_by(step: int) -> Sequence[Microbatch]:
    return [Microbatch((torch.tensor(os.getpid()),), 1)]


def run(prepare, workers: int, timeout: float = 60.0) -> list[int]:
    seen = []
    with Prefetch(prepare, names, range(1, 6), workers, timeout) as batches:
        for step, (microbatch,) in batches:
            assert int(microbatch.inputs[0]) == step
            seen.append(step)
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_come_in_order(workers):
    assert run(batch, workers) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_can_not_be_read_says_why_in_one_line(workers):
    with pytest.raises(BadData) as caught:
        run(unreadable, workers)
    said = "the batch of step 3 can't be read: data: episode 3, camera top: the video ends early"
    assert str(caught.value) == said
    assert caught.value.exit_status == 3


def test_a_workers_death_names_the_step_and_its_samples():
    with pytest.raises(
        LostWorker, match=r"step [123]: DataLoader worker .*(pid|hung up)"
    ) as caught:
        run(dies, workers=1, timeout=5.0)
    assert caught.value.exit_status == 6
    assert re.search(r"episode (\d) frame 7, data: episode \1 frame 8", str(caught.value))


def test_a_worker_that_hangs_is_named_in_time():
    with pytest.raises(LostWorker, match=r"step 3: DataLoader timed out.*episode 3 frame 7"):
        run(hangs, workers=1, timeout=2.0)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_one_thread_of_a_worker_takes_signals():
    """Those that torch starts in a worker, whose parent set its number, take none."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    masks: dict[int, dict[str, int]] = {}
    with Prefetch(told_by, names, range(8), workers=2, timeout=30.0) as batches:
        for _, (microbatch,) in batches:
            worker = int(microbatch.inputs[0])
            for status in Path(f"/proc/{worker}/task").glob("*/status"):
                blocked = re.search(r"SigBlk:\s*(\w+)", status.read_text())
                assert blocked
                masks.setdefault(worker, {})[status.parent.name] = int(blocked[1], 16)
    torch.set_num_threads(threads)
    both = 1 << signal.SIGTERM - 1 | 1 << signal.SIGINT - 1
    assert len(masks) == 2
    for of_worker in masks.values():
        taking = [thread for thread, mask in of_worker.items() if mask & both != both]
        assert len(of_worker) > 1
        assert len(taking) <= 1, of_worker  # the one that waits for a signal doesn't block it
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_workers_hear_the_process_that_trains_alone():
    """A scheduler's signal goes to them too."""
    pids, steps = set(), []
    with Prefetch(told_by, names, range(20), workers=2, timeout=30.0) as batches:
        for step, (microbatch,) in batches:
            pids.add(int(microbatch.inputs[0]))
            steps.append(step)
            if step == 1:
                for name in ("TERM", "INT"):
                    subprocess.run(["kill", f"-{name}", *map(str, pids)], check=True)
    assert steps == list(range(20))
    assert len(pids) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_end_when_the_process_that_trains_says_so(number):
    def tell() -> None:
        with Prefetch(told_by, names, range(20), workers=1, timeout=30.0) as batches:
            for step, (microbatch,) in batches:
                if step == 1:
                    os.kill(int(microbatch.inputs[0]), number)
                time.sleep(0.1)

    with pytest.raises(LostWorker, match="DataLoader worker"):
        tell()
