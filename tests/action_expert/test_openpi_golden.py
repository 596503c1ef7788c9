"""Stored outputs of openpi's π0 and π0.5, in JAX and in PyTorch, toy size (see tests/golden).

The JAX model has three precisions: float32; bfloat16 weights, as openpi serves it; and float32
weights computed with in bfloat16, as openpi trains it, which is autocast here.
"""

import openpi_names
import pytest
import torch
from reference import assert_within_noise, distance, openpi_batch, openpi_model, velocity
from stored import arrays, assert_near

from action_expert.flow import interpolate, target_velocity
from backbone.masks import block_mask, positions
from backbone.numerics import OPENPI_PYTORCH
from vla.pi05 import Pi05
from vla.precision import cast

FLOAT32 = 5e-5  # ‖ours − theirs‖ / ‖theirs‖


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind) -> str:
    return f"openpi_jax_{kind}"


@pytest.fixture(scope="module")
def model(folder):
    return openpi_model(folder)


@pytest.fixture(scope="module")
def inputs(folder):
    return arrays(f"{folder}/inputs.npz")


@pytest.fixture(scope="module")
def outputs(folder):
    return arrays(f"{folder}/outputs_f32.npz")


@pytest.fixture(scope="module")
def batch(folder):
    return openpi_batch(folder)


# --- float32 --------------------------------------------------------------------------------------


def test_noisy_actions_and_targets(inputs, outputs):
    actions, noise = inputs["actions"], inputs["noise"]
    assert_near(interpolate(actions, noise, inputs["time"]), outputs["x_t"], 1e-6)
    assert_near(target_velocity(actions, noise), outputs["u_t"], 1e-6)


def test_prefix_and_suffix_tokens(model, batch, inputs, outputs):
    with torch.no_grad():
        prefix, valid = model.backbone.embed_prefix(
            batch.images, batch.image_valid, batch.tokens, batch.token_valid
        )
    assert torch.equal(valid, outputs["input_mask"][:, : valid.shape[1]])
    assert_near(prefix[valid], outputs["prefix_tokens"][valid])
    if isinstance(model, Pi05):
        suffix, condition = model.expert.embed_suffix(outputs["x_t"], inputs["time"])
        assert_near(condition, outputs["adarms_cond"])
    else:
        suffix = model.expert.embed_suffix(outputs["x_t"], inputs["time"], batch.state)
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
        ours = velocity(model, batch, outputs["x_t"], inputs["time"])
        first = velocity(model, batch, inputs["sample_noise"], torch.ones(2))
    assert distance(ours, outputs["v_t"]) < FLOAT32
    assert distance(first, outputs["sample_v_first"]) < FLOAT32
    error = (ours - outputs["u_t"]).square()
    assert distance(error, outputs["loss_per_element"]) < FLOAT32
    assert distance(error.mean(-1), outputs["loss"]) < FLOAT32


def test_loss_and_its_gradients(folder, model, batch, inputs, outputs):
    loss = model(batch, inputs["noise"][:, None], inputs["time"][:, None])
    assert_near(loss, outputs["loss"].mean())
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    stored = arrays(f"{folder}/grads_f32.npz")
    params = arrays(f"{folder}/params.npz")
    largest = max(x.item() for key, x in stored.items() if key.startswith("norm:"))
    for key, value in stored.items():
        sort, name = key.split(":")
        theirs = value if sort == "grad" else params[name]
        for ours, reference in openpi_names.our_tensors({name: theirs}).items():
            if sort == "grad":
                mine = gradients[ours]
                mine = torch.zeros_like(reference) if mine is None else mine
                difference = (mine - reference).norm().item()
                assert difference <= FLOAT32 * reference.norm().item() + 1e-7 * largest, ours
        if sort == "norm":
            names = openpi_names.our_tensors({name: params[name]}).keys()
            found = {n: gradients[n] for n in names if gradients[n] is not None}
            norm = openpi_names.squared_norm(found).sqrt().item() if found else 0.0
            assert norm == pytest.approx(value.item(), rel=FLOAT32, abs=1e-7 * largest), name


@pytest.mark.parametrize("steps", [10, 4, 1])
def test_sampled_actions(model, batch, inputs, outputs, steps):
    actions = model.sample_actions(batch, inputs["sample_noise"], steps=steps)
    assert distance(actions, outputs[f"sample_actions_{steps}"]) < FLOAT32


def test_the_pytorch_port_in_float32(kind, folder, batch, inputs):
    model = openpi_model(folder, OPENPI_PYTORCH)
    outputs = arrays(f"openpi_pytorch_{kind}/outputs_f32.npz")
    with torch.no_grad():
        prefix, valid = model.backbone.embed_prefix(
            batch.images, batch.image_valid, batch.tokens, batch.token_valid
        )
        x_t = interpolate(batch.actions, inputs["noise"], inputs["time"])
        error = velocity(model, batch, x_t, inputs["time"]) - (inputs["noise"] - batch.actions)
    assert distance(prefix[valid], outputs["prefix_embs"][valid]) < FLOAT32
    assert distance(error.square(), outputs["loss_per_element"]) < FLOAT32
    for steps in (10, 4, 1):
        actions = model.sample_actions(batch, inputs["sample_noise"], steps=steps)
        assert distance(actions, outputs[f"sample_actions_{steps}"]) < FLOAT32


# --- bfloat16 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mixed", "bf16"])
def test_half_precision_stays_within_its_own_noise(folder, batch, inputs, outputs, mode):
    """One bfloat16 graph, compiled by JAX or run op by op, differs from itself by as much."""
    stored = arrays(f"{folder}/outputs_{mode}.npz")
    model = openpi_model(folder)
    if mode == "bf16":
        cast(model, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mode == "mixed"):
        found = {
            "v_t": velocity(model, batch, stored["x_t"], inputs["time"]),
            **{
                f"sample_actions_{n}": model.sample_actions(batch, inputs["sample_noise"], steps=n)
                for n in (10, 4, 1)
            },
        }
    for name, ours in found.items():
        assert ours.dtype == torch.float32
        assert_within_noise(f"{folder} {mode} {name}", ours, stored[name], outputs[name])


def test_the_pytorch_port_in_half_precision(kind, folder, batch, inputs):
    model = cast(openpi_model(folder, OPENPI_PYTORCH), torch.bfloat16)
    stored = arrays(f"openpi_pytorch_{kind}/outputs_bf16.npz")
    wide = arrays(f"openpi_pytorch_{kind}/outputs_f32.npz")
    with torch.no_grad():
        x_t = interpolate(batch.actions, inputs["noise"], inputs["time"])
        error = velocity(model, batch, x_t, inputs["time"]) - (inputs["noise"] - batch.actions)
        found = {
            "loss_per_element": error.square(),
            **{
                f"sample_actions_{n}": model.sample_actions(batch, inputs["sample_noise"], steps=n)
                for n in (10, 4, 1)
            },
        }
    for name, ours in found.items():
        assert_within_noise(f"openpi_pytorch_{kind} bf16 {name}", ours, stored[name], wide[name])
