"""AdamW as openpi runs it, with parts that learn slower, not at all, or without decay."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_run import Network
from torch import nn

from vla.config import OptimConfig
from vla.training.job import Microbatch
from vla.training.optimiser import (
    Optimisers,
    freeze,
    make_optimiser,
    set_learning_rate,
    trained_parameters,
)
from vla.training.shards import save
from vla.training.state import TrainState
from vla.training.update import update
from vla.training.world import ALONE

TRACE = Path(__file__).parents[1] / "golden/schedules/openpi_adamw.npz"


def test_six_updates_are_those_of_openpis_optimiser():
    """Parameters after updates 1, 2 and 6 of openpi's `create_optimizer`: schedule, clip, AdamW."""
    trace = np.load(TRACE)
    names = sorted(key.removeprefix("params0/") for key in trace if key.startswith("params0/"))
    values = nn.ParameterList(torch.from_numpy(trace[f"params0/{name}"]) for name in names)
    gradients = [[torch.from_numpy(trace[f"grads{k}/{n}"]) for n in names] for k in range(6)]
    config = OptimConfig(lr=1e-2, warmup=3, decay_steps=10, end_lr=1e-3, decay_min_dims=0)

    class Linear(nn.Module):
        """A loss whose gradient is what it is given."""

        def __init__(self):
            super().__init__()
            self.values = values

        def forward(self, *gradient):
            return sum((v * g).sum() for v, g in zip(self.values, gradient, strict=True))

    model = Linear()
    optimiser = make_optimiser(model, config)
    for k, gradient in enumerate(gradients):
        set_learning_rate(optimiser, config, k, steps=10)
        batch = [Microbatch(tuple(gradient), 1)]
        update(model, optimiser, batch, step=k, device=torch.device("cpu"), clip=config.clip)
        if k + 1 in (1, 2, 6):
            for name, value in zip(names, values, strict=True):
                expected = trace[f"openpi_adamw/after{k + 1}/{name}"]
                np.testing.assert_allclose(value.detach(), expected, rtol=1e-5, atol=1e-7)


def test_the_longest_prefix_sets_the_learning_rate():
    model = Network()
    config = OptimConfig(
        lr=1.0, warmup=0, lr_factors=(("vision.bias", 0.0), ("vision", 0.5), ("head", 2.0))
    )
    optimiser = make_optimiser(model, config)
    assert set_learning_rate(optimiser, config, 0, steps=10) == 1.0
    rates = {p: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    named = {name: rates[p] for name, p in model.named_parameters()}
    assert named == {
        "vision.weight": 0.5,
        "vision.bias": 0.0,
        "head.weight": 2.0,
        "head.bias": 2.0,
        "dead.weight": 1.0,
        "dead.bias": 1.0,
    }


def test_biases_and_norms_are_not_decayed_unless_asked():
    for least, decayed in ((2, {"weight"}), (0, {"weight", "bias"})):
        config = OptimConfig(weight_decay=0.1, decay_min_dims=least)
        model = Network()
        groups = make_optimiser(model, config).param_groups
        decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
        found = {n.rpartition(".")[2] for n, p in model.named_parameters() if decay[p] == 0.1}
        assert found == decayed


def test_a_frozen_part_is_left_out():
    model = Network()
    freeze(model, ["vision", "dead.bias"])
    assert list(trained_parameters(model)) == ["head.weight", "head.bias", "dead.weight"]
    optimiser = make_optimiser(model, OptimConfig())
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 3


def test_a_prefix_that_names_nothing_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"no parameter under 'visoin'; did you mean 'vision'\?"):
        freeze(Network(), ["visoin"])
    with pytest.raises(ValueError, match="no parameter under 'hea'; did you mean 'head'"):
        make_optimiser(Network(), OptimConfig(lr_factors=(("hea", 0.1),)))


def test_freezing_everything_is_refused():
    model = Network()
    freeze(model, ["vision", "head", "dead"])
    with pytest.raises(ValueError, match="every parameter is frozen"):
        make_optimiser(model, OptimConfig())


class Blocks(nn.Module):
    """One matrix inside a block and one outside."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.body = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)])})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body["blocks"][0](self.stem(x)).square().mean()  # pyright: ignore


def test_muon_takes_the_matrices_of_blocks_at_its_own_rate():
    model = Blocks()
    config = OptimConfig(lr=0.1, warmup=0, muon_lr=0.5, lr_factors=(("body", 0.5),))
    optimiser = make_optimiser(model, config)
    set_learning_rate(optimiser, config, 0, steps=10)
    rates = {p: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert {name: rates[p] for name, p in model.named_parameters()} == {
        "stem.weight": 0.1,
        "stem.bias": 0.1,
        "body.blocks.0.weight": 0.25,
        "body.blocks.0.bias": 0.05,
    }


def test_muon_goes_on_exactly_from_saved_moments(tmp_path):
    """Ten updates equal five, a copy into fresh ones, and five more."""
    config = OptimConfig(lr=0.01, warmup=0, muon_lr=0.02)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    batch = [Microbatch((x,), 8)]

    def run(model: nn.Module, optimiser: Optimisers, steps: range) -> TrainState:
        for k in steps:
            set_learning_rate(optimiser, config, k, steps=10)
            update(model, optimiser, batch, step=k, device=torch.device("cpu"), clip=1.0)
        return TrainState(model, optimiser, None)

    torch.manual_seed(0)
    model = Blocks()
    optimiser = make_optimiser(model, config)
    half = run(model, optimiser, range(5)).tensors()
    for name, values in half.items():
        save(values, tmp_path, name, ALONE)
    whole = run(model, optimiser, range(5, 10)).tensors()
    fresh = Blocks()
    state = TrainState(fresh, make_optimiser(fresh, config), None)
    state.read(tmp_path, ALONE)
    resumed = run(fresh, state.optimiser, range(5, 10)).tensors()
    for file in ("model", "optimiser"):
        assert whole[file].keys() == resumed[file].keys()
        assert all(torch.equal(whole[file][k], resumed[file][k]) for k in whole[file])
