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
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from backbone.paligemma import PALIGEMMA_TINY
from backbone.siglip import Block
from vla.pi0 import PI0_TINY, Pi0
from vla.training.faults import LostPeer
from vla.training.job import Microbatch
from vla.training.parallel import (
    PRODUCTS,
    ParallelConfig,
    blocks,
    outline,
    parallelise,
    recompute,
)
from vla.training.sampler import shares
from vla.training.shards import kinds
from vla.training.update import _backward
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
    # a process that was killed at compiling leaves half a library in the cache that all share
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    command = [sys.executable, *program, *variants]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def as_if_killed_after_10(folder: Path, source: str, name: str) -> None:
    shutil.copytree(folder / source / "checkpoints/10", folder / name / "checkpoints/10")


ALL = {"freeze": ["vision", "language"], "optim": {"lr": 1e-3, "warmup": 3, "method": "adamw8bit"}}
LORA = {"lora": {"rank": 4, "train": ["expert.action_out_proj"]}}
TWICE = {"accumulate": 2}

# one process's run, then that of two which has to be the same: name, kind, parallel, fields
ALIKE = [
    ("actions", "actions-sharded", "actions", {}, {}),
    ("actions", "actions-copied", "actions", {"shards": 1}, {}),
    ("actions", "actions-recomputed", "actions", {"recompute": 1}, TWICE),
    ("actions", "actions-products", "actions", {"recompute": 1, "keep_products": True}, {}),
    ("actions", "actions-copied-recomputed", "actions", {"shards": 1, "recompute": 2}, TWICE),
    ("actions", "actions-summed-each", "actions", {"reduce_once": False}, TWICE),
    ("actions", "actions-offloaded", "actions", {"offload": True}, {}),
    ("text", "text-sharded", "text", {"reshard": False, "recompute": 2}, {}),
    ("frozen", "frozen-sharded", "text", {}, {"freeze": ["vision"]}),
    ("lora", "lora-sharded", "actions", {"recompute": 1}, LORA),
    ("lora", "lora-copied", "actions", {"shards": 1}, LORA),
    ("mixed", "mixed-sharded", "mixed", {"recompute": 1}, TWICE),
    ("mixed", "mixed-copied", "mixed", {"shards": 1}, TWICE),
    ("pairs", "pairs-sharded", "pairs", {}, {}),
    ("pairs", "pairs-copied", "pairs", {"shards": 1}, {}),
]
HYBRID = [  # of four processes: copies × shards
    ("actions", "actions-2x2", "actions", {"shards": 2}, {}),
    ("mixed", "mixed-2x2", "mixed", {"shards": 2, "recompute": 1}, {}),
    ("mixed", "mixed-4x1", "mixed", {"shards": 1}, {}),
    ("mixed", "mixed-1x4", "mixed", {}, {}),
]
RESUMED = [
    ("actions", "from-one-to-two"),
    ("actions", "from-two-to-one"),
    ("actions", "from-two-to-four"),
    ("mixed", "mixed-from-four-to-two"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    run(
        folder,
        1,
        variant("actions", "actions"),
        variant("text", "text"),
        variant("frozen", "text", fields={"freeze": ["vision"]}),
        variant("lora", "actions", fields=LORA),
        variant("mixed", "mixed"),
        variant("pairs", "pairs"),
        variant("muon", "actions", fields={"optim": MUON}),
        variant("adafactor", "actions", fields={"optim": ADAFACTOR}),
        variant("half", "actions", fields={"precision": "bfloat16"}),
    )
    as_if_killed_after_10(folder, "actions", "from-one-to-two")
    run(
        folder,
        2,
        *(variant(name, k, parallel=p, fields=f) for _, name, k, p, f in ALIKE),
        variant("muon-sharded", "actions", fields={"optim": MUON}),
        variant("adafactor-sharded", "actions", fields={"optim": ADAFACTOR}),
        variant("half-sharded", "actions", fields={"precision": "bfloat16"}),
        variant("from-one-to-two", "actions", resume=True),
    )
    as_if_killed_after_10(folder, "actions-sharded", "from-two-to-one")
    as_if_killed_after_10(folder, "actions-sharded", "from-two-to-four")
    run(folder, 1, variant("from-two-to-one", "actions", resume=True))
    hybrid = variant("from-two-to-four", "actions", parallel={"shards": 2}, resume=True)
    run(folder, 4, hybrid, *(variant(name, k, parallel=p, fields=f) for _, name, k, p, f in HYBRID))
    as_if_killed_after_10(folder, "mixed-2x2", "mixed-from-four-to-two")
    run(folder, 2, variant("mixed-from-four-to-two", "mixed", resume=True))
    return folder


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eight")
    run(folder, 1, variant("one", "text", fields=ALL))
    run(folder, 2, variant("two", "text", fields=ALL))
    as_if_killed_after_10(folder, "two", "resumed")
    run(folder, 2, variant("resumed", "text", fields=ALL, resume=True))
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
    [*((one, many) for one, many, *_ in (*ALIKE, *HYBRID)), *RESUMED],
)
def test_losses_and_weights_are_those_of_one_process(runs, one, many):
    check_same_training(runs, one, many)


@pytest.mark.slow
def test_compiled_blocks_train_as_others_do(runs):
    """By itself: a C++ compiler works on it for minutes."""
    parallel = {"compile": True, "recompute": 1}
    run(runs, 2, variant("actions-compiled", "actions", parallel=parallel))
    check_same_training(runs, "actions", "actions-compiled")


def check_same_training(runs: Path, one: str, many: str) -> None:
    expected, found = reports(runs / one), reports(runs / many)
    start = 11 if "from-" in many else 1
    assert sorted(found) == list(range(start, 21))
    for step, report in found.items():
        assert report["loss"] == pytest.approx(expected[step]["loss"], rel=1e-5), step
        assert report["grad_norm"] == pytest.approx(expected[step]["grad_norm"], rel=1e-3), step
    wanted = expected[20]["validation_loss"]
    assert found[20]["validation_loss"] == pytest.approx(wanted, rel=1e-5)
    ours, theirs = result(runs / many), result(runs / one)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        # softmax doesn't see a bias of keys: its gradient is rounding, which Adam scales up
        noise = name.endswith(("k_proj.bias", "in_proj_bias"))
        assert (ours[name] - weight).abs().max() < (1e-3 if noise else 1e-4), name


@pytest.mark.slow
def test_numbers_of_samples_are_summed_over_processes(runs):
    one, four = reports(runs / "mixed"), reports(runs / "mixed-1x4")
    for step, report in one.items():
        assert four[step]["odd"] == report["odd"] == 4.0
        firsts = [name for name in four[step] if name.startswith("at/")]
        assert len(firsts) == 8  # two micro-batches in each of four processes, by other names


@pytest.mark.slow
def test_kinds_that_differ_between_processes_are_told_and_dont_hang(tmp_path):
    told = variant("odd", "mixed", parallel={"timeout": 60}, fields={"odd": True})
    with pytest.raises(AssertionError, match=r"kinds \['text', .*'action'\] at step 0, another"):
        run(tmp_path, 2, told)


@pytest.mark.slow
def test_moments_of_eight_bits_are_sharded_and_go_on(eight_bits):
    one, two = reports(eight_bits / "one"), reports(eight_bits / "two")
    for step, report in one.items():
        assert two[step]["loss"] == pytest.approx(report["loss"], rel=1e-3), step
    again = reports(eight_bits / "resumed")
    assert sorted(again) == list(range(11, 21))
    for step, report in again.items():
        assert report["loss"] == two[step]["loss"], step
    codes = "embedding.weight.exp_avg.codes"
    whole = kinds(eight_bits / "one/checkpoints/20", "optimiser")
    assert kinds(eight_bits / "two/checkpoints/20", "optimiser") == whole
    assert whole[codes] == ("uint8", (2176, 32))


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


def test_products_may_be_kept_and_the_rest_computed_again():
    products: list[int] = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            products[-1] += func in PRODUCTS
            return func(*args, **(kwargs or {}))

    grads = []
    for make in (lambda b: None, lambda b: recompute(b, keep_products=True), recompute):
        torch.manual_seed(0)
        block = Block(PALIGEMMA_TINY.vision)
        make(block)
        x = torch.randn(3, 16, 32, requires_grad=True)
        products.append(0)
        with Counted():
            block(x).square().sum().backward()
        assert x.grad is not None
        grads.append([x.grad, *(p.grad for p in block.parameters())])
    plain, selective, every = products
    assert plain == selective < every
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            assert a is not None
            assert torch.equal(a, b)


@pytest.mark.parametrize(("once", "sums"), [(True, 1), (False, 3)])
def test_gradients_are_summed_over_processes_once_an_update(monkeypatch, once, sums):
    summed = []
    reduce_scatter = dist.reduce_scatter_tensor
    monkeypatch.setattr(
        dist, "reduce_scatter_tensor", lambda *a, **k: summed.append(1) or reduce_scatter(*a, **k)
    )
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        model, cpu = Mean(nn.Linear(4, 1)), torch.device("cpu")
        parallelise(model, ParallelConfig(), World(0, 2), cpu, "float32")
        seen = torch.ones(2, 4, requires_grad=True)  # else torch warns of its hooks
        _backward(model, [Microbatch((seen,), 2) for _ in range(3)], cpu, "float32", once)
    finally:
        dist.destroy_process_group()
    assert len(summed) == sums


class Mean(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).mean()


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match=r"keep_products says .*recompute is None; set it to 1"):
        ParallelConfig(keep_products=True)
    with pytest.raises(ValueError, match=r"parallel\.recompute is 0; it must be 1 or more"):
        ParallelConfig(recompute=0)
    offload, cpu = ParallelConfig(offload=True), torch.device("cpu")
    with pytest.raises(ValueError, match=r"parallel\.offload is for several processes"):
        parallelise(nn.Linear(2, 2), offload, ALONE, cpu, "float32")
    with pytest.raises(ValueError, match=r"parallel\.shards is 3, which does not divide 4"):
        parallelise(
            nn.Linear(2, 2), ParallelConfig(shards=3), World(0, 4), torch.device("cpu"), "float32"
        )
