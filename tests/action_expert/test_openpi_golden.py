"""Stored outputs of openpi's JAX π0, dtype float32, toy size (see tests/golden)."""

import openpi_names
import pytest
import torch
from stored import arrays, assert_near

from action_expert.expert import ActionExpertConfig
from action_expert.flow import interpolate, target_velocity
from backbone.gemma import GemmaConfig
from backbone.masks import block_mask, positions
from backbone.paligemma import PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from backbone.weights import load_tensors
from vla.batch import Batch
from vla.pi0 import Pi0, Pi0Config

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")

OPENPI = Pi0Config(
    PaliGemmaConfig(
        SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=14, resolution=28),
        GemmaConfig(width=96, depth=3, mlp=80, head_dim=12),
        vocab=96,
    ),
    ActionExpertConfig(
        GemmaConfig(width=48, depth=3, mlp=56, head_dim=12),
        state_dim=10,
        action_dim=10,
        horizon=6,
    ),
)


@pytest.fixture(scope="module")
def model():
    model = Pi0(OPENPI)
    params = openpi_names.our_tensors(arrays("openpi_jax_pi0/params.npz"))
    load_tensors(model, params, source="openpi's toy π0")
    return model.eval()


@pytest.fixture(scope="module")
def inputs():
    return arrays("openpi_jax_pi0/inputs.npz")


@pytest.fixture(scope="module")
def outputs():
    return arrays("openpi_jax_pi0/outputs_f32.npz")


@pytest.fixture(scope="module")
def batch(inputs):
    images = torch.stack([inputs[f"image/{camera}"] for camera in CAMERAS], dim=1)
    return Batch(
        images=images.permute(0, 1, 4, 2, 3),  # uint8: the model scales them
        image_valid=torch.stack([inputs[f"image_mask/{c}"] for c in CAMERAS], dim=1),
        tokens=inputs["tokenized_prompt"].long(),
        token_valid=inputs["tokenized_prompt_mask"],
        state=inputs["state"],
        actions=inputs["actions"],
        action_valid=torch.ones(inputs["actions"].shape[:2], dtype=torch.bool),
    )


def test_noisy_actions_and_targets(inputs, outputs):
    actions, noise = inputs["actions"], inputs["noise"]
    assert_near(interpolate(actions, noise, inputs["time"]), outputs["x_t"], 1e-6)
    assert_near(target_velocity(actions, noise), outputs["u_t"], 1e-6)


def test_prefix_and_suffix_tokens(model, batch, inputs, outputs):
    with torch.no_grad():
        prefix, valid = model.backbone.embed_prefix(
            batch.images, batch.image_valid, batch.tokens, batch.token_valid
        )
        suffix = model.expert.embed_suffix(outputs["x_t"], inputs["time"], batch.state)
    assert torch.equal(valid, outputs["input_mask"][:, :21])
    assert_near(prefix[valid], outputs["prefix_tokens"][valid])
    assert_near(suffix, outputs["suffix_tokens"])


def test_mask_and_positions_at_real_tokens(outputs):
    valid = outputs["input_mask"]
    block = outputs["ar_mask"].long().cumsum(0).expand_as(valid)
    mask = block_mask(block, block, valid)[:, 0]
    assert torch.equal(mask & valid[:, :, None], outputs["attn_mask"])
    assert torch.equal(positions(valid), outputs["positions"].long())


def test_prefix_keys_and_values(model, batch, outputs):
    with torch.no_grad():
        cache = model.prefill(batch)
    for ours, theirs in ((cache.k, "prefix_kv_k"), (cache.v, "prefix_kv_v")):
        stacked = torch.stack(ours).transpose(2, 3)  # [L, B, S, K, H]
        assert_near(stacked[:, cache.valid], outputs[theirs][:, cache.valid])


def test_velocity(model, batch, inputs, outputs):
    with torch.no_grad():
        cache = model.prefill(batch)
        velocity = model.expert(outputs["x_t"], inputs["time"], batch.state, cache)
        first = model.expert(inputs["sample_noise"], torch.ones(2), batch.state, cache)
    assert_near(velocity, outputs["v_t"])
    assert_near(first, outputs["sample_v_first"])
    error = (velocity - outputs["u_t"]).square()
    assert_near(error, outputs["loss_per_element"], 5e-5)
    assert_near(error.mean(-1), outputs["loss"])


def test_loss_and_its_gradients(model, batch, inputs, outputs):
    loss = model(batch, inputs["noise"][:, None], inputs["time"][:, None])
    assert_near(loss, outputs["loss"].mean())
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    stored = arrays("openpi_jax_pi0/grads_f32.npz")
    params = arrays("openpi_jax_pi0/params.npz")
    largest = max(x.item() for key, x in stored.items() if key.startswith("norm:"))
    for key, value in stored.items():
        kind, name = key.split(":")
        theirs = value if kind == "grad" else params[name]
        for ours, reference in openpi_names.our_tensors({name: theirs}).items():
            if kind == "grad":
                mine = gradients[ours]
                mine = torch.zeros_like(reference) if mine is None else mine
                difference = (mine - reference).norm().item()
                assert difference <= 1e-4 * reference.norm().item() + 1e-7 * largest, ours
        if kind == "norm":
            names = openpi_names.our_tensors({name: params[name]}).keys()
            found = {n: gradients[n] for n in names if gradients[n] is not None}
            norm = openpi_names.squared_norm(found).sqrt().item() if found else 0.0
            assert norm == pytest.approx(value.item(), rel=1e-4, abs=1e-7 * largest), name


@pytest.mark.parametrize("steps", [10, 4, 1])
def test_sampled_actions(model, batch, inputs, outputs, steps):
    actions = model.sample_actions(batch, inputs["sample_noise"], steps=steps)
    assert_near(actions, outputs[f"sample_actions_{steps}"], 1e-4)
