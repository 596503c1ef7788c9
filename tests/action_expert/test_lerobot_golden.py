"""Stored outputs of LeRobot 0.6.1's π0 and π0.5, toy size (see tests/golden).

Two of its three cameras are there: LeRobot masks the third, ours may also leave it out.
"""

import lerobot_names
import pytest
import torch
from reference import distance, lerobot_batch, lerobot_model, velocity
from stored import arrays

from action_expert.flow import interpolate, target_velocity

FLOAT32 = 5e-5  # ‖ours − theirs‖ / ‖theirs‖


@pytest.fixture(scope="module", params=["lerobot_pi0", "lerobot_pi05"])
def folder(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(folder):
    return lerobot_model(folder)


@pytest.fixture(scope="module")
def inputs(folder):
    return arrays(f"{folder}/inputs.npz")


@pytest.fixture(scope="module")
def outputs(folder):
    return arrays(f"{folder}/outputs_f32.npz")


@pytest.fixture(scope="module", params=["left out", "masked"])
def batch(request, folder):
    return lerobot_batch(folder, cameras=2 if request.param == "left out" else 3)


def test_prefix_tokens(model, folder, outputs):
    batch = lerobot_batch(folder)
    with torch.no_grad():
        prefix, valid = model.backbone.embed_prefix(
            batch.images, batch.image_valid, batch.tokens, batch.token_valid
        )
    assert torch.equal(valid, outputs["prefix_pad_masks"])
    assert distance(prefix[valid], outputs["prefix_embs"][valid]) < FLOAT32


def test_loss_of_every_element(model, batch, inputs, outputs):
    noise, time = inputs["noise"], inputs["time"]
    with torch.no_grad():
        ours = velocity(model, batch, interpolate(batch.actions, noise, time), time)
    error = (ours - target_velocity(batch.actions, noise)).square()
    assert distance(error, outputs["loss_per_element"]) < FLOAT32


def test_the_loss_is_over_the_robots_own_dimensions(model, batch, inputs, outputs):
    with torch.no_grad():
        loss = model(batch, inputs["noise"][:, None], inputs["time"][:, None])
    assert loss.item() == pytest.approx(outputs["loss"].item(), rel=FLOAT32)


def test_gradients(folder, model, batch, inputs):
    model(batch, inputs["noise"][:, None], inputs["time"][:, None]).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    stored = arrays(f"{folder}/grads_f32.npz")
    largest = max(x.item() for key, x in stored.items() if key.startswith("norm:"))
    compared = 0
    for key, theirs in stored.items():
        sort, name = key.split(":")
        if lerobot_names.UNUSED in name:
            continue
        mine = gradients[lerobot_names.our_name(name)]
        if mine is None:  # LeRobot's last query projection gets exact zeros
            assert theirs.norm() == 0, name
        elif sort == "grad":
            difference = (mine - theirs).norm().item()
            assert difference <= FLOAT32 * theirs.norm().item() + 1e-7 * largest, name
            compared += 1
        else:
            norm = mine.double().norm().item()
            assert norm == pytest.approx(theirs.item(), rel=FLOAT32, abs=1e-7 * largest), name
            compared += 1
    assert compared > len(gradients) - 8


@pytest.mark.parametrize("steps", [10, 4, 1])
def test_sampled_actions(model, batch, inputs, outputs, steps):
    actions = model.sample_actions(batch, inputs["sample_noise"], steps=steps)
    assert distance(actions[..., :7], outputs[f"action_chunk_{steps}"]) < FLOAT32
