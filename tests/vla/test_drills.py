"""What a run survives: kills, damage, full disks, lost and hung processes, NaN, signals.

Real commands in real processes. `drill_kills.py` and `drill_damages.py` have the longer forms.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import drill_damages
import drill_kills
import pytest
import torch
from fake_run import fake_file
from forks import HERE, Forks, Run
from safetensors.torch import load_file

from vla.training import checkpoint
from vla.training.faults import BadData, LostPeer, NotFinite
from vla.training.log import METRICS

pytestmark = pytest.mark.slow
LONG = {"steps": 100_000, "save_every": 50_000, "log_every": 1, "eval_every": 100_000}
KILLED, TERMINATED = -signal.SIGKILL, 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def forks():
    with Forks() as started:
        yield started


def start(forks: Forks, folder: Path, processes: int = 1, rest=(), limits=(), **fields) -> Run:
    """`vla train` of a fake run in `folder/run`."""
    file = fake_file(folder, **{"batch_size": 8, **fields})
    command = ("train", str(file), *rest)
    return forks.start(folder, *command, processes=processes, largest_file=limits)


def running(run: Run) -> Run:
    """After some steps."""
    metrics = run.folder / "run" / METRICS
    assert run.until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 3), (
        run.said()
    )
    return run


def reports(folder: Path) -> list[dict]:
    clock = ("samples_per_second", "data_wait")
    lines = (folder / "run" / METRICS).read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(s).items() if k not in clock} for s in lines]


def named(said: str) -> list[int]:
    """The samples that NotFinite names; none where another process is said to name them."""
    lists = re.findall(r"from the samples \[([\d, ]*)\]", said)
    return [int(sample) for found in lists for sample in found.split(",")]


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    path = folder / "run/checkpoints" / str(step)
    assert checkpoint.damage(path) is None
    return {
        f"{file.relative_to(path)}:{name}": tensor
        for file in sorted(path.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


# --- kills and damage -----------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_kills_at_any_moment_leave_no_checkpoint_that_is_broken_or_wrong(
    forks, tmp_path, processes
):
    told = drill_kills.drill(forks, tmp_path, kills=15, processes=processes, seed=processes)
    assert told.kills == 15
    assert told.in_a_save >= 3
    assert told.looked_at >= 10
    assert (told.unloadable, told.wrong) == (0, 0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_damage_to_any_file_is_found_before_a_step_and_the_checkpoint_before_goes_on(
    forks, tmp_path
):
    told = drill_damages.drill(forks, tmp_path, damages=30)
    assert told.missed == []
    assert told.caught == told.made == 30


def test_fifty_steps_after_a_break_are_those_without_one_bit_for_bit(forks, tmp_path):
    fields = {"steps": 60, "log_every": 1, "save_every": 10, "keep": 9}
    run = start(forks, tmp_path / "whole", **fields)
    assert run.wait() == [0], run.said()
    shutil.copytree(tmp_path / "whole/run/checkpoints/10", tmp_path / "parts/run/checkpoints/10")
    run = start(forks, tmp_path / "parts", rest=("--resume",), **fields)
    assert run.wait() == [0], run.said()
    assert len(reports(tmp_path / "parts")) == 50
    assert reports(tmp_path / "parts") == reports(tmp_path / "whole")[10:]
    one, other = tensors(tmp_path / "parts", 60), tensors(tmp_path / "whole", 60)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_validation_between_steps_changes_no_step_of_two_processes(forks, tmp_path):
    """The average is validated; a sharded root kept it gathered, and the next step took it."""
    fields = {"log_every": 1, "eval_every": 3, "save_every": 20}
    for processes in (1, 2):
        run = start(forks, tmp_path / str(processes), processes, **fields)
        assert run.wait() == [0] * processes, run.said()
    for one, two in zip(reports(tmp_path / "1"), reports(tmp_path / "2"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), one["step"]


# --- full disks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "limits"), [(1, (64_000,)), (2, (None, 64_000))])
def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(
    forks, tmp_path, processes, limits
):
    """In one of two processes, too: both end, and neither waits for the other."""
    fields = {"hidden": 20_000, "steps": 10}
    assert start(forks, tmp_path, processes, **{**fields, "steps": 5}).wait() == [0] * processes
    before = tensors(tmp_path, 5)
    run = start(forks, tmp_path, processes, ("--resume",), limits, **fields)
    assert run.wait() == [2] * processes, run.said()
    assert "could not write checkpoint 10" in run.said(0)
    assert "The newest complete one is" in run.said(0)
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["5"]
    after = tensors(tmp_path, 5)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert start(forks, tmp_path, processes, ("--resume",), **fields).wait() == [0] * processes


# --- lost processes -------------------------------------------------------------------------------


def test_a_process_that_is_killed_ends_the_other_with_a_status_of_its_own(forks, tmp_path):
    run = running(start(forks, tmp_path, 2, **LONG))
    run.signal(signal.SIGKILL, [1])
    assert run.wait(30) == [LostPeer.exit_status, KILLED]
    assert "process 0 of 2 lost another one" in run.said(0)


def test_a_process_that_hangs_ends_the_other_when_its_time_is_out(forks, tmp_path):
    timeout = ("--parallel.timeout", "8")
    run = running(start(forks, tmp_path, 2, timeout, **LONG))
    run.signal(signal.SIGSTOP, [1])
    began = time.monotonic()
    assert run.until(lambda: run.statuses()[0] is not None, 8 + 35)
    assert time.monotonic() - began > 4
    assert run.statuses() == [LostPeer.exit_status, None]
    run.signal(signal.SIGKILL)
    run.wait()


def test_a_process_that_never_comes_ends_the_other(forks, tmp_path):
    run = start(forks, tmp_path, 2, ("--parallel.timeout", "5"), **LONG)
    run.signal(signal.SIGKILL, [1])
    assert run.wait() == [LostPeer.exit_status, KILLED], run.said(0)


def test_torchrun_starts_again_and_ends_where_it_would_have_without_the_loss(forks, tmp_path):
    run = start(forks, tmp_path / "whole", 2, log_every=1)
    assert run.wait() == [0, 0], run.said()
    config = fake_file(tmp_path / "lost", log_every=1, batch_size=8, die_at=12)
    again = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = ["-m", "torch.distributed.run", *again, "-m", "vla", "train", str(config), "--resume"]
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert reports(tmp_path / "lost") == reports(tmp_path / "whole")
    one, other = tensors(tmp_path / "lost", 20), tensors(tmp_path / "whole", 20)
    assert all(torch.equal(one[name], other[name]) for name in other)


# --- NaN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["poison", "steep"])
def test_nan_in_one_process_stops_both_before_the_update(forks, tmp_path, fault):
    """One sample's loss, or its gradient alone. The checkpoint is that of the run without it."""
    fields = {"log_every": 1, "save_every": 1, "keep": 99}
    assert start(forks, tmp_path / "good", 2, **fields).wait() == [0, 0]
    run = start(forks, tmp_path / "bad", 2, **fields, **{fault: 13})
    assert run.wait() == [NotFinite.exit_status] * 2, run.said()
    last = checkpoint.steps(tmp_path / "bad/run/checkpoints")[-1]
    assert f"at step {last} is not finite" in run.said(0)
    assert f"at step {last} is not finite" in run.said(1)
    held = [rank for rank in (0, 1) if 13 in named(run.said(rank))]
    assert len(held) == 1, "the process that has the sample names it"
    kept = load_file(tmp_path / f"bad/run/not_finite/{last}.{held[0]}.safetensors")
    assert kept["0.0"].shape == (4, 3)
    before = {n: x for n, x in tensors(tmp_path / "bad", last).items() if n.startswith("model")}
    assert before
    assert all(x.isfinite().all() for x in before.values())


def test_steps_that_are_not_finite_are_left_out_up_to_the_limit_in_both(forks, tmp_path):
    """Each epoch of 20 samples meets the bad one once: eight times in 20 steps of 8."""
    run = start(forks, tmp_path / "few", 2, poison=13, skip_not_finite=7)
    assert run.wait() == [NotFinite.exit_status] * 2, run.said()
    run = start(forks, tmp_path / "all", 2, poison=13, skip_not_finite=8)
    assert run.wait() == [0, 0], run.said()
    assert checkpoint.read_state(tmp_path / "all/run/checkpoints/20")["skipped"] == 8
    assert "skipped step" in run.said(0)


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]])
def test_a_signal_to_any_process_saves_and_stops_both(forks, tmp_path, ranks):
    run = running(start(forks, tmp_path, 2, **LONG))
    began = time.monotonic()
    run.signal(signal.SIGTERM, ranks)
    assert run.wait() == [TERMINATED] * 2, run.said()
    assert time.monotonic() - began < 25
    (step,) = checkpoint.steps(tmp_path / "run/checkpoints")
    assert step >= reports(tmp_path)[-1]["step"] - 1
    assert tensors(tmp_path, step)


def test_a_signal_to_all_processes_of_a_run_saves_too(forks, tmp_path):
    """As Slurm sends it: those that prepare batches get it as well, and first."""
    run = running(start(forks, tmp_path, **{**LONG, "workers": 2}))
    (pid,) = run.pids
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    assert len(workers) >= 2
    for worker in workers:
        os.kill(int(worker), signal.SIGTERM)
    time.sleep(0.5)
    run.signal(signal.SIGTERM)
    assert run.wait() == [TERMINATED], run.said()
    (step,) = checkpoint.steps(tmp_path / "run/checkpoints")
    assert tensors(tmp_path, step)


def test_a_second_signal_stops_at_once(forks, tmp_path):
    """While a batch is waited for, say."""
    run = start(forks, tmp_path, **{**LONG, "delay": 600.0, "slow_from": 3})
    running(run)
    time.sleep(1)  # until it sleeps: between asking Python for a sleep and the sleep, signals wait
    run.signal(signal.SIGTERM)
    assert run.until(lambda: "a second signal stops at once" in run.said(0))
    assert run.statuses() == [None]
    run.signal(signal.SIGTERM)
    assert run.wait(60) == [TERMINATED]


# --- ends -----------------------------------------------------------------------------------------


def test_every_end_has_an_exit_status_of_its_own(forks, tmp_path):
    data = tmp_path / "data.py"
    data.write_text(
        "from pathlib import Path\n"
        "from vla.config import DataConfig, TrainConfig\n"
        "from vla.pi0 import PI0_TINY\n"
        f"there = Path({str(tmp_path)!r})\n"
        "config = TrainConfig(output_dir=there / 'x', steps=1, batch_size=1, device='cpu',\n"
        "    model=PI0_TINY, data=DataConfig(root=there / 'dataset'))\n"
    )
    (tmp_path / "dataset/meta").mkdir(parents=True)
    (tmp_path / "dataset/meta/info.json").write_text('{"codebase_version": "v0.1"}')
    done = start(forks, tmp_path / "done", steps=2)
    config = start(forks, tmp_path / "config", rest=("--steps", "0"))
    field = start(forks, tmp_path / "field", rest=("--optim.lrr", "1"))
    dataset = forks.start(tmp_path / "dataset", "train", str(data))
    runs = (done, config, field, dataset)
    assert [run.wait() for run in runs] == [[0], [2], [2], [BadData.exit_status]]
    assert not any("Traceback" in run.said() for run in runs)
    lost, nan = LostPeer.exit_status, NotFinite.exit_status  # these and the signal's: above
    assert len({0, 1, 2, BadData.exit_status, lost, nan, TERMINATED}) == 7


def test_twenty_runs_of_two_processes_end_without_a_crash(forks, tmp_path):
    """gloo aborts in its teardown where a process leaves while another still talks to it."""
    for i in range(20):
        run = start(forks, tmp_path / str(i), 2, steps=2, save_every=1)
        assert run.wait() == [0, 0], run.said()


def test_losses_that_stand_out_are_reported(forks, tmp_path):
    run = start(forks, tmp_path, steps=160, log_every=50, save_every=200, eval_every=200, jump=150)
    assert run.wait() == [0]
    assert "the loss of step 150 stands out" in run.said()
