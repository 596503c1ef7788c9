"""AdamW as openpi runs it, with parts that learn slower, not at all, or without decay."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_run import Network
from torch import nn

from vla.config import OptimConfig
from vla.training.job import Microbatch
from vla.training.optimiser import freeze, make_optimiser, set_learning_rate, trained_parameters
from vla.training.update import update

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
