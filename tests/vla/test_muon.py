"""Muon against its definition and torch's own."""

import pytest
import torch

from backbone.precision import multiplies_bfloat16
from vla.training.muon import COEFFICIENTS, STEPS, Muon, orthogonal

SIZES = [(6, 4), (4, 6), (6, 4), (5, 5)]


def weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size)) for size in SIZES]


def give_gradients(parameters: list[torch.nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("shape", [(3, 7, 4), (2, 4, 9), (1, 5, 5)])
def test_singular_values_go_through_the_polynomial_and_vectors_stay(shape):
    torch.manual_seed(1)
    given = torch.randn(shape)
    u, s, vh = torch.linalg.svd(given.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        s = a * s + b * s**3 + c * s**5
    assert ((s > 0.6) & (s < 1.3)).all()
    wanted = u @ torch.diag_embed(s) @ vh
    noise = 0.03 if multiplies_bfloat16("cpu") else 1e-4
    assert (orthogonal(given) - wanted).abs().max() < noise


def test_updates_are_torchs_to_bfloat16s_rounding():
    ours, theirs = weights(), weights()
    our = Muon([{"params": ours, "weight_decay": 0.3}], 0.1)
    their = torch.optim.Muon(theirs, 0.1, weight_decay=0.3)
    for seed in range(5):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        our.step()
        their.step()
    for a, b, before in zip(ours, theirs, weights(), strict=True):
        assert (a - b).norm() < 0.05 * (b - before).norm()
        moments = (o.state[p]["momentum_buffer"] for o, p in ((our, a), (their, b)))
        assert torch.allclose(*moments, atol=1e-6)


def test_a_matrix_is_worked_on_as_if_alone():
    together, alone = weights(), weights()
    optimiser = Muon([{"params": together}], 0.1)
    give_gradients(together, 3)
    optimiser.step()
    give_gradients(alone, 3)
    for parameter in alone:
        Muon([{"params": [parameter]}], 0.1).step()
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_without_a_gradient_nothing_moves():
    parameters = weights()
    optimiser = Muon([{"params": parameters, "weight_decay": 1.0}], 0.1)
    give_gradients(parameters, 0)
    parameters[1].grad = None
    optimiser.step()
    stayed = [torch.equal(a, b) for a, b in zip(parameters, weights(), strict=True)]
    assert stayed == [False, True, False, False]


@pytest.mark.parametrize("shut", [0.0, 1.0])
def test_found_inf_leaves_weights_and_moments(shut):
    parameters = weights()
    optimiser = Muon([{"params": parameters}], 0.1)
    give_gradients(parameters, 0)
    assert parameters[0].grad is not None
    parameters[0].grad[0, 0] = torch.nan
    optimiser.found_inf = torch.tensor(shut)
    optimiser.step()
    same = all(torch.equal(a, b) for a, b in zip(parameters, weights(), strict=True))
    still = all(not state["momentum_buffer"].any() for state in optimiser.state.values())
    assert (same, still) == (bool(shut), bool(shut))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"for matrices, got one of shape .*3, 2, 2"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3, 2, 2))]}], 0.1)
