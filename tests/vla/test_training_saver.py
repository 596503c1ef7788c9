"""Checkpoints that are written beside training."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from fake_run import fake_config
from safetensors.torch import load_file

from vla.training import checkpoint, loop
from vla.training.loop import train
from vla.training.saver import Saver
from vla.training.update import update
from vla.training.world import ALONE


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((3,), value)}}


def note(folder: Path) -> None:
    (folder / "note.json").write_text("{}")


class Slow:
    """Something that a save waits for."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, folder: Path) -> None:
        self.begun.set()
        assert self.go.wait(60)


def test_what_is_saved_is_what_it_was_when_the_save_began(tmp_path):
    own, slow = tensors(1.0), Slow()
    with Saver(tmp_path, 2, None, ALONE) as saver:
        saver.save(5, own, {"step": 5}, slow)
        assert slow.begun.wait(60)
        own["model"]["w"].fill_(2.0)  # training goes on
        assert checkpoint.steps(tmp_path) == []
        slow.go.set()
        assert saver.wait() == tmp_path / "5"
    assert load_file(tmp_path / "5/model.safetensors")["w"].tolist() == [1.0] * 3
    assert checkpoint.damage(tmp_path / "5") is None


def test_a_save_waits_for_the_one_before_it(tmp_path):
    with Saver(tmp_path, 5, None, ALONE) as saver:
        for step in (1, 2, 3):
            saver.save(step, tensors(step), {"step": step}, note)
    assert checkpoint.steps(tmp_path) == [1, 2, 3]
    for step in (1, 2, 3):
        assert load_file(tmp_path / f"{step}/model.safetensors")["w"][0] == step


def test_what_fails_beside_training_is_raised_at_the_next_occasion(tmp_path):
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(OSError, match=r"could not write checkpoint 1 .*There is no earlier one"):
        save_twice(tmp_path / "file/below")


def save_twice(folder: Path) -> None:
    with Saver(folder, 1, None, ALONE) as saver:
        saver.save(1, tensors(1), {}, note)
        assert saver._thread is not None
        saver._thread.join()
        assert saver.failed
        saver.save(2, tensors(2), {}, note)


def test_training_stops_when_a_checkpoint_could_not_be_written(tmp_path, monkeypatch):
    """After the step at which it was noticed, with an error that says so, and none made up."""
    monkeypatch.setattr(checkpoint, "_complete", refuse)
    with pytest.raises(OSError, match=r"could not write checkpoint 5 .*no room"):
        train(fake_config(tmp_path))
    assert checkpoint.steps(tmp_path / "checkpoints") == []


def refuse(*_) -> None:
    raise OSError("no room")


def test_whole_checkpoints_alone_count_for_those_that_are_kept(tmp_path):
    """A flipped byte keeps the size: hashes tell."""
    with Saver(tmp_path, 2, None, ALONE) as saver:
        for step in (1, 2, 3):
            saver.save(step, tensors(step), {"step": step}, note)
        saver.wait()
        assert checkpoint.steps(tmp_path) == [2, 3]
        file = tmp_path / "3/model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        saver.save(4, tensors(4), {"step": 4}, note)
        saver.wait()
        assert checkpoint.steps(tmp_path) == [2, 3, 4]
        saver.save(5, tensors(5), {"step": 5}, note)
        saver.wait()
        assert checkpoint.steps(tmp_path) == [4, 5]


def test_in_a_hurry_old_checkpoints_stay(tmp_path):
    with Saver(tmp_path, 1, None, ALONE) as saver:
        saver.hurry()
        for step in (1, 2):
            saver.save(step, tensors(step), {"step": step}, note)
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_an_interrupted_run_keeps_the_save_in_flight_where_another_would_take_too_long(
    tmp_path, monkeypatch
):
    def update_and_signal(*args, step: int, **kwargs):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "update", update_and_signal)
    monkeypatch.setattr(loop, "GRACE", 0.0)
    with pytest.raises(SystemExit):
        train(fake_config(tmp_path))
    assert checkpoint.steps(tmp_path / "checkpoints") == [5]
