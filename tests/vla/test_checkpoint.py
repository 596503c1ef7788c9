"""A checkpoint is complete or absent, and damage to one never goes unnoticed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vla.training import checkpoint, shards
from vla.training.checkpoint import damage, newest, read_state, set_aside_damaged
from vla.training.state import check_same

FILES = ("model.safetensors", "moments.safetensors", "state.json", "manifest.json", "policy/note")


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((3, 2), float(step))}, "moments": {"w.m": torch.ones(5)}}


def write(folder: Path, step: int, keep: int = 10) -> Path:
    def note(inside: Path) -> None:
        (inside / "policy").mkdir()
        (inside / "policy/note").write_text(f"step {step}")

    return checkpoint.write(folder, step, tensors(step), {"step": step}, keep=keep, also=note)


def test_what_was_written_comes_back(tmp_path):
    path = write(tmp_path, 7)
    assert path == tmp_path / "7"
    assert sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()) == sorted(FILES)
    assert damage(path) is None
    assert read_state(path) == {"step": 7}
    assert torch.equal(load_file(path / "model.safetensors")["w"], torch.full((3, 2), 7.0))
    assert (path / "policy/note").read_text() == "step 7"


def test_the_newest_k_are_kept_by_step_and_not_by_name(tmp_path):
    for step in (5, 9, 10, 100):
        write(tmp_path, step, keep=2)
    assert checkpoint.steps(tmp_path) == [10, 100]


def test_multiples_of_a_step_are_kept_for_good(tmp_path):
    for step in (5, 10, 15, 20, 25):
        checkpoint.write(tmp_path, step, tensors(step), {"step": step}, keep=1, keep_every=10)
    assert checkpoint.steps(tmp_path) == [10, 20, 25]


def test_a_broken_checkpoint_does_not_count_among_those_kept(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "2/model.safetensors").unlink()
    write(tmp_path, 3, keep=2)
    assert checkpoint.steps(tmp_path) == [1, 2, 3]
    assert newest(tmp_path) == tmp_path / "3"


def test_a_kill_while_old_ones_are_deleted_leaves_none_in_halves(tmp_path, monkeypatch):
    write(tmp_path, 1)
    delete = shutil.rmtree

    def killed(path: Path, **options) -> None:
        if path.name.endswith(".tmp"):
            return delete(path, **options)
        next(file for file in path.rglob("*") if file.is_file()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path) == [2]
    write(tmp_path, 3, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_step_is_never_written_twice(tmp_path):
    write(tmp_path, 4)
    before = (tmp_path / "4/manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match="a checkpoint is never overwritten"):
        write(tmp_path, 4)
    assert (tmp_path / "4/manifest.json").read_bytes() == before


def test_what_a_killed_writer_left_is_not_a_checkpoint_and_is_cleared(tmp_path):
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / ".2.tmp")
    (tmp_path / ".2.tmp/leftover").touch()
    assert checkpoint.steps(tmp_path) == [1]
    assert not (write(tmp_path, 2) / "leftover").exists()
    assert not (tmp_path / ".2.tmp").exists()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("hurt", [flip_a_bit, truncate, fill_with_zeros, Path.unlink])
def test_every_damage_to_every_file_is_found_and_the_one_before_is_used(tmp_path, name, hurt):
    write(tmp_path, 1)
    hurt(write(tmp_path, 2) / name)
    reason = damage(tmp_path / "2")
    assert reason is not None
    assert newest(tmp_path) == tmp_path / "1"


def test_swapped_files_are_found(tmp_path):
    path = write(tmp_path, 1)
    os.rename(path / "model.safetensors", path / "other")
    os.rename(path / "moments.safetensors", path / "model.safetensors")
    os.rename(path / "other", path / "moments.safetensors")
    assert damage(path) == "model.safetensors is not as it was written"


def test_exchanged_folders_are_found(tmp_path):
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    first.rename(tmp_path / "other")
    second.rename(first)
    assert damage(first) == "state.json is of step 2"
    assert newest(tmp_path) is None


def test_every_byte_of_a_manifest_matters(tmp_path):
    path = write(tmp_path, 1) / "manifest.json"
    whole = path.read_bytes()
    for i in range(len(whole)):
        broken = bytearray(whole)
        broken[i] ^= 1
        path.write_bytes(broken)
        # spaces between values may turn into other white space and mean the same
        assert damage(path.parent) is not None or json.loads(broken) == json.loads(whole)


def test_damaged_ones_are_renamed_so_that_their_steps_can_be_written_again(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    truncate(tmp_path / "3/model.safetensors")
    flip_a_bit(tmp_path / "2/state.json")
    assert set_aside_damaged(tmp_path) == [
        f"checkpoint {tmp_path}/3: model.safetensors is not as it was written; "
        "renamed to 3.damaged",
        f"checkpoint {tmp_path}/2: state.json is not as it was written; renamed to 2.damaged",
    ]
    assert checkpoint.steps(tmp_path) == [1]
    write(tmp_path, 3)


def test_a_full_disk_is_said_plainly_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(tensors, path):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "save_tensors", full)
    with pytest.raises(OSError, match=r"checkpoint 2 .*No space left.* newest .*/1; make room"):
        write(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
    assert damage(tmp_path / "1") is None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_write_that_the_system_cuts_off_leaves_the_checkpoint_before(tmp_path):
    """A real limit on file sizes in a child process: the write fails inside safetensors."""
    write(tmp_path, 1)
    child = os.fork()
    if child == 0:
        os._exit(_write_under_a_limit(tmp_path))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 42
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
    assert newest(tmp_path) == tmp_path / "1"


def _write_under_a_limit(folder: Path) -> int:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        checkpoint.write(folder, 2, {"model": {"w": torch.zeros(10_000)}}, {"step": 2}, keep=2)
    except OSError as error:
        return 42 if "File too large" in str(error) and f"{folder}/1" in str(error) else 43
    return 44


def test_tensors_that_do_not_fit_are_listed_on_both_sides():
    own = {name: ("float32", (size,)) for name, size in zip("abcd", (2, 3, 1, 1), strict=True)}
    saved = {"a": own["a"], "b": ("float32", (4,)), "d": ("int32", (1,)), "x": ("float32", (1,))}
    with pytest.raises(ValueError, match="does not fit this run") as error:
        check_same(own, saved, "somewhere")
    message = str(error.value)
    assert "missing from it: c;" in message
    assert "not in this run: x;" in message
    assert "b: float32 [3] here, float32 [4] saved" in message
    assert "d: float32 [1] here, int32 [1] saved" in message
