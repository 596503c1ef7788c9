"""Updates as big_vision makes them: its chain of Adam or Adafactor, decay mask and schedules."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from vla.config import OptimConfig
from vla.pi0 import PI0_TINY, Pi0
from vla.training.adafactor import Adafactor
from vla.training.job import Microbatch
from vla.training.optimiser import (
    BIG_VISION_DECAY,
    Optimisers,
    make_optimiser,
    set_learning_rate,
)
from vla.training.schedule import Schedule
from vla.training.shards import save
from vla.training.state import TrainState
from vla.training.update import update
from vla.training.world import ALONE

STORED = np.load(Path(__file__).parents[1] / "golden/schedules/big_vision_updates.npz")
CPU = torch.device("cpu")


class Given(nn.Module):
    """A loss whose gradient is what it is given; parts named as PaliGemma's are."""

    def __init__(self, **shapes: tuple[int, ...]):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            part = nn.Module()
            part.weight = nn.Parameter(torch.randn(shape, generator=generator))
            self.add_module(name, part)

    def forward(self, *gradients: Tensor) -> Tensor:
        return torch.stack(
            [(p * g).sum() for p, g in zip(self.parameters(), gradients, strict=True)]
        ).sum()


def run(model: nn.Module, config: OptimConfig, gradients: Sequence[Sequence[Tensor]]) -> Optimisers:
    optimiser = make_optimiser(model, config)
    for step, given in enumerate(gradients):
        set_learning_rate(optimiser, config, step, len(gradients))
        batch = [Microbatch(tuple(given), 1)]
        update(model, optimiser, batch, step=step, device=CPU, clip=config.clip)
    return optimiser


@pytest.mark.parametrize(
    ("trace", "method", "momentum"),
    [
        ("bv_adam", "adamw", None),
        ("bv_adafactor", "adafactor", torch.bfloat16),
        ("bv_adafactor_f32mom", "adafactor", torch.float32),
    ],
)
def test_six_updates_are_those_that_big_vision_made(trace, method, momentum):
    """Two vectors of its trace, whose gradients were clipped together with others beforehand."""
    model = Given(value=(44,))
    model.get_parameter("value.weight").data = torch.from_numpy(STORED["params0"])
    config = OptimConfig(lr=1e-2, betas=(0.9, 0.999), schedule=Schedule(warmup=2), method=method)
    optimiser = make_optimiser(model, config)
    if momentum is not None:
        optimiser = Optimisers(
            Adafactor(optimiser.param_groups, config.lr, momentum_dtype=momentum)
        )
    for step, gradient in enumerate(STORED["gradients"]):
        set_learning_rate(optimiser, config, step, 10)
        batch = [Microbatch((torch.from_numpy(gradient),), 1)]
        update(model, optimiser, batch, step=step, device=CPU)
    np.testing.assert_allclose(
        model.get_parameter("value.weight").detach(), STORED[trace], rtol=1e-6, atol=1e-6
    )


SHAPES = {"vision": (40, 36), "projector": (33, 64), "norm": (12,), "language": (5, 40, 34)}
SLOW = Schedule("rsqrt", warmup=150, timescale=50)
FAST = Schedule("rsqrt", warmup=20, timescale=50)


def by_big_visions_chain(model: Given, gradients: list[list[Tensor]], factored: bool):
    """clip → moments → · lr → · lr factor → + decay · weight → · schedule → −, in float64."""
    names = [name.removesuffix(".weight") for name, _ in model.named_parameters()]
    weights = [p.detach().double().numpy().copy() for p in model.parameters()]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    rows = {n: [0.0, 0.0] for n in names}
    for step, given in enumerate(gradients):
        grads = [g.double().numpy() for g in given]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        t = step + 1
        for i, name in enumerate(names):
            g = grads[i] / max(1.0, norm)
            if not factored:
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g**2
                root = np.sqrt(second[i] / (1 - 0.999**t))
                direction = first[i] / (1 - 0.9**t) / (root + 1e-8)
            else:
                decay = min(0.999, 1 - t**-0.8)
                square = g**2 + 1e-30
                sides = np.argsort(g.shape, kind="stable")[::-1][:2]
                if len(sides) == 2 and min(g.shape[s] for s in sides) >= 32:
                    for k, side in enumerate(sides):
                        mean = square.mean(int(side), keepdims=True)
                        rows[name][k] = decay * rows[name][k] + (1 - decay) * mean
                    row, column = rows[name]
                    v = row / np.mean(row, int(sides[1]), keepdims=True) * column
                else:
                    v = second[i] = decay * second[i] + (1 - decay) * square
                first[i] = 0.9 * first[i] + 0.1 * g / np.sqrt(v)
                direction = first[i]
            direction = 1e-2 * direction * (0.3 if name == "projector" else 1.0)
            if name in ("vision", "projector"):
                direction = direction + 1e-3 * weights[i]
            warmup = 150 if name == "vision" else 20
            share = 1 / np.sqrt(1 + max(step - warmup, 0) / 50) * min(1, step / warmup)
            weights[i] = weights[i] - share * direction
    return weights


@pytest.mark.parametrize("method", ["adamw", "adafactor"])
def test_two_hundred_updates_are_those_of_big_visions_chain(method, monkeypatch):
    """Parts with schedules and rates of their own; decay of kernels alone, not times the rate."""
    model = Given(**SHAPES)
    generator = torch.Generator().manual_seed(1)
    gradients = [
        [torch.randn(p.shape, generator=generator) * (1 + k % 7) for p in model.parameters()]
        for k in range(200)
    ]
    expected = by_big_visions_chain(model, gradients, method == "adafactor")
    config = OptimConfig(
        lr=1e-2,
        betas=(0.9, 0.999),
        weight_decay=1e-3,
        decay=r"(vision|projector)\.weight",
        decay_by_rate=False,
        schedule=FAST,
        schedules=(("vision", SLOW),),
        lr_factors=(("projector", 0.3),),
        method=method,
    )
    model.double()
    if method == "adafactor":
        monkeypatch.setattr("vla.training.optimiser._adafactor", wide)
    run(model, config, [[g.double() for g in row] for row in gradients])
    for (name, p), weight in zip(model.named_parameters(), expected, strict=True):
        np.testing.assert_allclose(p.detach(), weight, rtol=0, atol=1e-6, err_msg=name)


def wide(groups: list[dict], config: OptimConfig) -> Adafactor:
    """With a first moment that is not rounded, so that 200 steps stay comparable."""
    return Adafactor(groups, config.lr, *config.betas, momentum_dtype=torch.float64)


def test_big_vision_decays_the_kernels_of_image_encoder_and_connector_alone():
    for model, prefix in ((PaliGemma(PALIGEMMA_TINY), ""), (Pi0(PI0_TINY), "backbone.")):
        config = OptimConfig(weight_decay=0.1, decay=BIG_VISION_DECAY)
        groups = make_optimiser(model, config).param_groups
        decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
        decayed = {name for name, p in model.named_parameters() if decay[p]}
        parts = ["embedding", *(f"blocks.0.{m}" for m in ("q_proj", "k_proj", "v_proj"))]
        parts += [f"blocks.0.{m}" for m in ("out_proj", "fc1", "fc2")]
        names = [f"vision.{part}" for part in parts] + ["projector"]
        assert decayed == {f"{prefix}{name}.weight" for name in names}


def test_openpi_decays_everything():
    model = Given(**SHAPES)
    groups = make_optimiser(model, OptimConfig(weight_decay=0.1, decay_min_dims=0)).param_groups
    assert {group["weight_decay"] for group in groups} == {0.1}


def test_the_longest_prefix_sets_the_schedule():
    model = PaliGemma(PALIGEMMA_TINY)
    config = OptimConfig(
        lr=2.0,
        schedule=FAST,
        schedules=(("vision", SLOW), ("vision.embedding", Schedule("linear"))),
    )
    optimiser = make_optimiser(model, config)
    assert set_learning_rate(optimiser, config, 10, 100) == pytest.approx(2.0 * 10 / 20)
    rates = {p: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert rates[model.get_parameter("vision.norm.weight")] == pytest.approx(2.0 * 10 / 150)
    assert rates[model.get_parameter("vision.embedding.weight")] == pytest.approx(2.0 * 0.9)
    assert rates[model.get_parameter("projector.weight")] == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["adafactor", "adamw8bit"])
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_updates_go_on_exactly_from_saved_moments(method, tmp_path):
    """Ten updates equal five, a copy into fresh ones, and five more."""
    if method == "adamw8bit":
        pytest.importorskip("torchao")
    config = OptimConfig(lr=0.01, method=method, schedule=Schedule(warmup=2))
    generator = torch.Generator().manual_seed(1)
    shapes = {"vision": (64, 64), "norm": (7,)}
    batches = [
        [Microbatch(tuple(torch.randn(s, generator=generator) for s in shapes.values()), 1)]
        for _ in range(10)
    ]

    def go_on(state: TrainState, steps: range) -> dict[str, dict[str, Tensor]]:
        for k in steps:
            set_learning_rate(state.optimiser, config, k, steps=10)
            update(state.model, state.optimiser, batches[k], step=k, device=CPU, clip=1.0)
        return state.tensors()

    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step for half a minute
        model = Given(**shapes)
        state = TrainState(model, make_optimiser(model, config), None)
        for name, values in go_on(state, range(5)).items():
            save(values, tmp_path, name, ALONE)
        whole = go_on(state, range(5, 10))
        fresh = Given(**shapes)
        again = TrainState(fresh, make_optimiser(fresh, config), None)
        again.read(tmp_path, ALONE)
        resumed = go_on(again, range(5, 10))
    for file in ("model", "optimiser"):
        assert whole[file].keys() == resumed[file].keys()
        assert all(torch.equal(whole[file][k], resumed[file][k]) for k in whole[file])
    moments = {name: x.dtype for name, x in whole["optimiser"].items() if "vision" in name}
    if method == "adamw8bit":
        assert moments["vision.weight.exp_avg_sq.codes"] == torch.uint8
        assert moments["vision.weight.exp_avg.codes"] == torch.uint8
    else:
        assert whole["optimiser"]["vision.weight.row"].shape == (64, 1)
        assert whole["optimiser"]["vision.weight.column"].shape == (1, 64)
        assert moments["vision.weight.exp_avg"] == torch.bfloat16


def test_without_torchao_eight_bits_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.optim", None)
    with pytest.raises(ImportError, match=r"needs torchao; install vla\[lowbit\]"):
        make_optimiser(Given(a=(2, 2)), OptimConfig(method="adamw8bit"))


def test_a_part_that_would_decay_and_not_learn_is_refused():
    with pytest.raises(ValueError, match="would decay and not learn; freeze it instead"):
        OptimConfig(decay_by_rate=False, lr_factors=(("vision", 0.0),))
    with pytest.raises(ValueError, match=r"optim\.decay is '\(', no regular expression"):
        OptimConfig(decay="(")
