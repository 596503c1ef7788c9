"""`vla bench train` at toy size: the same work on both sides, and the arithmetic of its figures."""

import json

import pytest
import torch

from vla import cli
from vla.bench.lerobot import their_batch, their_policy
from vla.bench.train import SIZES, Step, TrainBench, _inputs, bench_train
from vla.pi0 import Pi0

CPU = torch.device("cpu")


def run(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "train", *arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.mark.parametrize(("size", "millions"), [("S", 44), ("M", 240), ("full", 3238)])
def test_sizes_are_what_they_are_called(size, millions):
    with torch.device("meta"):
        model = Pi0(SIZES[size])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_lerobot_learns_from_the_same_batch_at_the_same_size():
    """Its parameters are ours and two heads that nobody reads; after a build its module is as it
    was."""
    from lerobot.policies.pi0 import modeling_pi0

    sizes, before = SIZES["toy"], dict(vars(modeling_pi0))
    policy = their_policy(sizes, 2, "float32", CPU)
    assert dict(vars(modeling_pi0)) == before
    with torch.device("meta"):
        ours = sum(p.numel() for p in Pi0(sizes).parameters())
    widths = sizes.backbone.language.width + sizes.expert.gemma.width
    heads = sizes.backbone.vocab * widths
    assert sum(p.numel() for p in policy.parameters()) == ours + heads
    batch, _, _ = _inputs(sizes, 3, 2, CPU)
    loss, _ = policy.forward(their_batch(batch))
    loss.backward()
    assert torch.isfinite(loss)


def test_the_command_prints_json(capsys):
    status, out, _ = run(["--size", "toy", "--repeats", "1", "--json"], capsys)
    said = json.loads(out)
    assert status == 0
    names = [step["name"] for step in said["steps"]]
    assert names == ["vla", "vla, recompute 1", "LeRobot, float32", "LeRobot, checkpointing"]
    ours, _, theirs, _ = said["steps"]
    assert said["ratios"]["LeRobot, float32"][0] == pytest.approx(theirs["wall"] / ours["wall"])
    assert ours["mfu"] == pytest.approx(said["flops"] / ours["wall"] / said["ceiling"])
    assert (
        theirs["peak"] > ours["peak"] > 16 * ours["parameters"] * 0.9
    )  # four float32 numbers each


def test_lerobot_in_bfloat16_runs_beside_its_float32_default():
    bench = bench_train("toy", device=CPU, precision="bfloat16", repeats=1, recompute=1)
    low, _, default = bench.steps[1:]
    assert (low.name, default.name) == ("LeRobot, bfloat16", "LeRobot, float32")
    assert low.peak < default.peak  # half the bytes
    assert low.parameters == default.parameters


@pytest.mark.parametrize(("mode", "share"), [("lora", 0.5), ("expert", 0.7), ("full", 1.0)])
def test_less_that_learns_takes_less_memory(mode, share):
    arguments = {"device": CPU, "repeats": 1, "theirs": False, "recompute": 1}
    everything = bench_train("toy", **arguments).steps[0]
    (step,) = bench_train("toy", mode=mode, **arguments).steps
    assert step.name == "vla, recompute 1"
    assert step.peak <= share * everything.peak * 1.01


def test_the_table_names_the_ratios():
    steps = (
        Step("vla", 0.5, 1.0, 10**9, 10**6, 0.25),
        Step("LeRobot", 1.0, 1.5, 2 * 10**9, 2 * 10**6, None),
    )
    bench = TrainBench("S", "full", "bfloat16", "adamw", 2, 2, 1e12, 8e12, steps, "CPU", 2)
    rows = [line.split() for line in str(bench).splitlines()]
    assert rows[2] == ["vla", "1", "M", "500.0", "1.00", "1000.0", "1.00", "4", "25%", "1"]
    assert rows[3] == ["LeRobot", "2", "M", "1000.0", "2.00", "1500.0", "1.50", "2", "2"]


def test_lerobot_is_only_compared_where_all_is_trained(capsys):
    status, _, err = run(["--size", "toy", "--mode", "lora"], capsys)
    assert status == 2
    assert "not in mode 'lora'" in err
