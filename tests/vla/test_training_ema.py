"""The average has a closed form, and borrowing it leaves the weights as they were."""

import pytest
import torch
from fake_run import Network
from torch import nn

from vla.training.ema import Ema, ema_decay


def one_weight(value: float, dtype=torch.float32) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False, dtype=dtype)
    model.weight.data.fill_(value)
    return model


def test_the_average_of_a_constant_jump_approaches_it_geometrically():
    model = one_weight(0.0)
    ema = Ema(model, 0.9)
    model.weight.data.fill_(1.0)
    for k in range(5):
        ema.update(k)
        assert ema.shadow["weight"].item() == pytest.approx(1 - 0.9 ** (k + 1), rel=1e-6)


def test_the_average_of_a_walk_weighs_each_value_by_its_age():
    model = one_weight(2.0)
    ema = Ema(model, 0.8)
    walk = [1.0, -3.0, 5.0, 0.5]
    for k, value in enumerate(walk):
        model.weight.data.fill_(value)
        ema.update(k)
    expected = 2.0 * 0.8**4 + sum(0.2 * 0.8 ** (3 - k) * v for k, v in enumerate(walk))
    assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_the_ramp_lets_the_start_be_forgotten():
    assert [ema_decay(k, 0.99, True) for k in (0, 1, 8)] == [1 / 10, 2 / 11, 9 / 18]
    assert ema_decay(10_000, 0.99, True) == 0.99
    assert ema_decay(0, 0.99, False) == 0.99


def test_the_shadow_is_float32_and_keeps_steps_that_bfloat16_would_lose():
    model = one_weight(1.0, torch.bfloat16)
    ema = Ema(model, 0.999)
    model.weight.data.fill_(2.0)
    ema.update(0)
    assert ema.shadow["weight"].dtype == torch.float32
    assert ema.shadow["weight"].item() == pytest.approx(1.001, rel=1e-6)


def test_inside_the_block_the_model_is_the_average_and_afterwards_itself():
    model = Network()
    ema = Ema(model, 0.5)
    for p in model.parameters():
        p.data.add_(1.0)
    ema.update(0)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    with ema.applied():
        for name, p in model.named_parameters():
            assert torch.equal(p, ema.shadow[name])
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


def test_frozen_parameters_have_no_shadow():
    model = Network()
    model.vision.requires_grad_(False)
    assert not any(name.startswith("vision") for name in Ema(model, 0.9).shadow)
