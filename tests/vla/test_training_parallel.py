"""One process, two and four, however they share the model: the same training."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vla.pi0 import PI0_TINY, Pi0
from vla.training.faults import LostPeer
from vla.training.parallel import ParallelConfig, blocks, outline, parallelise, recompute
from vla.training.sampler import shares
from vla.training.world import ALONE, World

HERE = Path(__file__).parent
ADAFACTOR = {"lr": 1e-4, "warmup": 3, "method": "adafactor"}
MUON = {"lr": 1e-3, "warmup": 3, "muon_lr": 1e-2}


def variant(name: str, kind: str, **rest) -> str:
    return json.dumps({"name": name, "kind": kind, **rest})


def run(folder: Path, processes: int, *variants: str) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = [*(launch if processes > 1 else []), str(HERE / "parallel_run.py"), str(folder)]
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, *variants]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def as_if_killed_after_10(folder: Path, source: str, name: str) -> None:
    shutil.copytree(folder / source / "checkpoints/10", folder / name / "checkpoints/10")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    run(
        folder,
        1,
        variant("actions", "actions"),
        variant("text", "text"),
        variant("frozen", "text", fields={"freeze": ["vision"]}),
        variant("muon", "actions", fields={"optim": MUON}),
        variant("adafactor", "actions", fields={"optim": ADAFACTOR}),
        variant("half", "actions", fields={"precision": "bfloat16"}),
    )
    as_if_killed_after_10(folder, "actions", "from-one-to-two")
    run(
        folder,
        2,
        variant("actions-sharded", "actions"),
        variant("actions-copied", "actions", parallel={"shards": 1}),
        variant(
            "actions-recomputed", "actions", parallel={"recompute": 1}, fields={"accumulate": 2}
        ),
        variant("text-sharded", "text", parallel={"reshard": False, "recompute": 2}),
        variant("frozen-sharded", "text", fields={"freeze": ["vision"]}),
        variant("muon-sharded", "actions", fields={"optim": MUON}),
        variant("adafactor-sharded", "actions", fields={"optim": ADAFACTOR}),
        variant("half-sharded", "actions", fields={"precision": "bfloat16"}),
        variant("from-one-to-two", "actions", resume=True),
    )
    as_if_killed_after_10(folder, "actions-sharded", "from-two-to-one")
    as_if_killed_after_10(folder, "actions-sharded", "from-two-to-four")
    run(folder, 1, variant("from-two-to-one", "actions", resume=True))
    hybrid = variant("from-two-to-four", "actions", parallel={"shards": 2}, resume=True)
    run(folder, 4, hybrid)
    return folder


def reports(folder: Path) -> dict[int, dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {report["step"]: report for report in map(json.loads, lines)}


def result(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*/model.safetensors")
    return load_file(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("actions", "actions-sharded"),
        ("actions", "actions-copied"),
        ("actions", "actions-recomputed"),
        ("text", "text-sharded"),
        ("frozen", "frozen-sharded"),
        ("actions", "from-one-to-two"),
        ("actions", "from-two-to-one"),
        ("actions", "from-two-to-four"),
    ],
)
def test_losses_and_weights_are_those_of_one_process(runs, one, many):
    expected, found = reports(runs / one), reports(runs / many)
    start = 11 if many.startswith("from") else 1
    assert sorted(found) == list(range(start, 21))
    for step, report in found.items():
        assert report["loss"] == pytest.approx(expected[step]["loss"], rel=1e-5), step
        assert report["grad_norm"] == pytest.approx(expected[step]["grad_norm"], rel=1e-3), step
    wanted = expected[20]["validation_loss"]
    assert found[20]["validation_loss"] == pytest.approx(wanted, rel=1e-5)
    ours, theirs = result(runs / many), result(runs / one)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() < 1e-4, name


@pytest.mark.slow
def test_sharded_adafactor_has_the_losses_of_one_process(runs):
    """Weights are not compared: a bias of keys has no gradient but rounding, which Adafactor, whose
    epsilon is tiny, scales to full size."""
    expected, found = reports(runs / "adafactor"), reports(runs / "adafactor-sharded")
    assert sorted(found) == list(range(1, 21))
    for step, report in found.items():
        assert report["loss"] == pytest.approx(expected[step]["loss"], rel=1e-4), step


@pytest.mark.slow
def test_half_precision_over_processes_is_within_its_noise(runs):
    wide, one, two = (reports(runs / name) for name in ("actions", "half", "half-sharded"))
    for step in wide:
        noise = max(abs(one[step]["loss"] - wide[step]["loss"]), 0.01 * wide[step]["loss"])
        assert abs(two[step]["loss"] - one[step]["loss"]) <= 3 * noise, step


@pytest.mark.slow
def test_muon_over_processes_is_within_its_noise(runs):
    """It orthogonalises in bfloat16, whose sums of parts round otherwise than whole ones."""
    one, two = (reports(runs / name) for name in ("muon", "muon-sharded"))
    for step, report in one.items():
        assert two[step]["loss"] == pytest.approx(report["loss"], rel=0.05), step
    assert one[1]["loss"] == pytest.approx(two[1]["loss"], rel=1e-6)


@pytest.mark.slow
def test_each_process_writes_its_own_shards_and_nothing_is_pickled(runs):
    written = runs / "actions-sharded/checkpoints/20"
    files = [path for path in written.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    whole = (runs / "actions/checkpoints/20/model.safetensors").stat().st_size
    parts = [path.stat().st_size for path in (written / "model").iterdir()]
    assert len(parts) == 2
    assert max(parts) < 0.7 * whole


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["die_at", "hang_at"])
def test_a_process_that_is_lost_ends_the_others_with_a_status_of_its_own(tmp_path, fault):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = variant("run", "actions", parallel={"timeout": 10}, fields={fault: 3, "steps": 6})
    command = [sys.executable, str(HERE / "parallel_run.py"), str(tmp_path), told]
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    first, second = (
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    )
    try:
        _, printed = first.communicate(timeout=240)
    finally:
        first.kill()
        second.kill()
        second.communicate()
    assert first.returncode == LostPeer.exit_status, printed.decode()[-2000:]
    assert b"process 0 of 2 lost another one" in printed
    assert sorted(reports(tmp_path / "run")) == [1, 2, 3]


def test_the_processes_share_each_micro_batch():
    assert shares(3, 8, 2, ALONE) == [range(24, 28), range(28, 32)]
    assert shares(3, 8, 2, World(0, 2)) == [range(24, 26), range(28, 30)]
    assert shares(3, 8, 2, World(1, 2)) == [range(26, 28), range(30, 32)]
    with pytest.raises(ValueError, match="batch_size 8 does not divide into 3 micro-batches"):
        shares(0, 8, 3, World(0, 2))


def test_the_blocks_of_vision_language_and_expert_are_what_is_sharded():
    model = Pi0(PI0_TINY)
    config = PI0_TINY
    depth = config.backbone.vision.depth + config.backbone.language.depth
    assert len(list(blocks(model))) == depth + config.expert.gemma.depth


def test_recomputed_blocks_give_the_same_gradients():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    x = torch.randn(3, 4, requires_grad=True)
    block(x).square().sum().backward()
    expected, x.grad = x.grad, None
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        kept = block(x)
        before = len(saved)
        recompute(block)
        again = block(x)
        after = len(saved) - before
    again.square().sum().backward()
    assert kept.equal(again)
    assert x.grad is not None
    assert x.grad.equal(expected)
    assert after < before


def test_an_outline_has_no_numbers_and_takes_them():
    model = nn.Linear(2, 3)
    empty = outline(model)
    assert empty.weight.is_meta
    assert not model.weight.is_meta
    empty.load_state_dict(model.state_dict(), assign=True)
    assert empty(torch.ones(2)).equal(model(torch.ones(2)))


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match=r"parallel\.recompute is 0; it must be 1 or more"):
        ParallelConfig(recompute=0)
    offload, cpu = ParallelConfig(offload=True), torch.device("cpu")
    with pytest.raises(ValueError, match=r"parallel\.offload is for several processes"):
        parallelise(nn.Linear(2, 2), offload, ALONE, cpu, "float32")
    with pytest.raises(ValueError, match=r"parallel\.shards is 3, which does not divide 4"):
        parallelise(
            nn.Linear(2, 2), ParallelConfig(shards=3), World(0, 4), torch.device("cpu"), "float32"
        )
