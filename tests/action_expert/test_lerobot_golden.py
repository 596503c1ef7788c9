"""Stored outputs of LeRobot 0.6.1's π0, float32, toy size (see tests/golden).

Two of its three cameras are there: LeRobot masks the third, ours may also leave it out.
"""

import lerobot_names
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from stored import GOLDEN, arrays, assert_near

from action_expert.expert import ActionExpertConfig
from action_expert.flow import interpolate, target_velocity
from backbone.gemma import GemmaConfig
from backbone.paligemma import PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from backbone.weights import load_tensors
from vla.batch import Batch
from vla.pi0 import Pi0, Pi0Config

LEROBOT = Pi0Config(
    PaliGemmaConfig(
        SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=14, resolution=56),
        GemmaConfig(width=56, depth=3, mlp=72, head_dim=16),
        vocab=112,
    ),
    ActionExpertConfig(GemmaConfig(width=40, depth=3, mlp=56, head_dim=16), horizon=6),
)


@pytest.fixture(scope="module")
def model():
    model = Pi0(LEROBOT)
    tensors = load_file(GOLDEN / "lerobot_pi0/model.safetensors")
    load_tensors(model, lerobot_names.our_tensors(tensors), source="LeRobot's toy π0")
    return model.eval()


@pytest.fixture(scope="module")
def inputs():
    return arrays("lerobot_pi0/inputs.npz")


@pytest.fixture(scope="module")
def outputs():
    return arrays("lerobot_pi0/outputs_f32.npz")


@pytest.fixture(scope="module", params=["left out", "masked"])
def batch(request, outputs):
    prepared = arrays("lerobot_pi0/preprocessed.npz")
    cameras = 2 if request.param == "left out" else 3
    actions = prepared["action"]
    return Batch(
        images=outputs["images_preprocessed"][:, :cameras],
        image_valid=outputs["image_masks"][:, :cameras],
        tokens=prepared["observation.language.tokens"],
        token_valid=prepared["observation.language.attention_mask"],
        state=F.pad(prepared["observation.state"], (0, 32 - 9)),
        actions=F.pad(actions, (0, 32 - 7)),
        action_valid=torch.ones(actions.shape[:2], dtype=torch.bool),
    )


def test_loss_of_every_element(model, batch, inputs, outputs):
    noise, time = inputs["noise"], inputs["time"]
    with torch.no_grad():
        x_t = interpolate(batch.actions, noise, time)
        velocity = model.expert(x_t, time, batch.state, model.prefill(batch))
    error = (velocity - target_velocity(batch.actions, noise)).square()
    assert_near(error, outputs["loss_per_element"], 1e-4)
    # LeRobot averages over the robot's own 7 dimensions, openpi and we over all 32
    assert_near(error[..., :7].mean(), outputs["loss"], 1e-4)


@pytest.mark.parametrize("steps", [10, 4, 1])
def test_sampled_actions(model, batch, inputs, outputs, steps):
    actions = model.sample_actions(batch, inputs["sample_noise"], steps=steps)
    assert_near(actions[..., :7], outputs[f"action_chunk_{steps}"], 1e-4)
