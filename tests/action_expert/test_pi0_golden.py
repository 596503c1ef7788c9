"""Stored outputs of openpi's JAX π0 and of LeRobot's, float32, toy size (see tests/golden)."""

from pathlib import Path

import lerobot_names
import numpy as np
import openpi_names
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from action_expert.expert import ActionExpertConfig
from action_expert.flow import interpolate, target_velocity
from backbone.gemma import GemmaConfig
from backbone.masks import block_mask, positions
from backbone.paligemma import PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from backbone.weights import load_tensors
from vla.batch import Batch
from vla.pi0 import Pi0, Pi0Config

GOLDEN = Path(__file__).parents[1] / "golden"
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
LEROBOT = Pi0Config(
    PaliGemmaConfig(
        SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=14, resolution=56),
        GemmaConfig(width=56, depth=3, mlp=72, head_dim=16),
        vocab=112,
    ),
    ActionExpertConfig(GemmaConfig(width=40, depth=3, mlp=56, head_dim=16), horizon=6),
)


def arrays(path: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5):
    """Within `tolerance` of the reference's rms."""
    rms = theirs.double().square().mean().sqrt().item()
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() <= tolerance * max(rms, 1e-8)


class TestOpenpi:
    """openpi's JAX model, dtype float32."""

    @pytest.fixture(scope="class")
    def model(self):
        model = Pi0(OPENPI)
        params = openpi_names.our_tensors(arrays("openpi_jax_pi0/params.npz"))
        load_tensors(model, params, source="openpi's toy π0")
        return model.eval()

    @pytest.fixture(scope="class")
    def inputs(self):
        return arrays("openpi_jax_pi0/inputs.npz")

    @pytest.fixture(scope="class")
    def outputs(self):
        return arrays("openpi_jax_pi0/outputs_f32.npz")

    @pytest.fixture(scope="class")
    def batch(self, inputs):
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

    def test_noisy_actions_and_targets(self, inputs, outputs):
        actions, noise = inputs["actions"], inputs["noise"]
        assert_near(interpolate(actions, noise, inputs["time"]), outputs["x_t"], 1e-6)
        assert_near(target_velocity(actions, noise), outputs["u_t"], 1e-6)

    def test_prefix_and_suffix_tokens(self, model, batch, inputs, outputs):
        with torch.no_grad():
            prefix, valid = model.backbone.embed_prefix(
                batch.images, batch.image_valid, batch.tokens, batch.token_valid
            )
            suffix = model.expert.embed_suffix(outputs["x_t"], inputs["time"], batch.state)
        assert torch.equal(valid, outputs["input_mask"][:, :21])
        assert_near(prefix[valid], outputs["prefix_tokens"][valid])
        # time sines at high frequency: 2e-4 apart between float32 and float64 (openpi's note)
        assert_near(suffix, outputs["suffix_tokens"], 1e-4)

    def test_mask_and_positions_at_real_tokens(self, outputs):
        valid = outputs["input_mask"]
        block = outputs["ar_mask"].long().cumsum(0).expand_as(valid)
        mask = block_mask(block, block, valid)[:, 0]
        assert torch.equal(mask & valid[:, :, None], outputs["attn_mask"])
        assert torch.equal(positions(valid), outputs["positions"].long())

    def test_prefix_keys_and_values(self, model, batch, outputs):
        with torch.no_grad():
            cache = model.prefill(batch)
        for ours, theirs in ((cache.k, "prefix_kv_k"), (cache.v, "prefix_kv_v")):
            stacked = torch.stack(ours).transpose(2, 3)  # [L, B, S, K, H]
            assert_near(stacked[:, cache.valid], outputs[theirs][:, cache.valid])

    def test_velocity(self, model, batch, inputs, outputs):
        with torch.no_grad():
            cache = model.prefill(batch)
            velocity = model.expert(outputs["x_t"], inputs["time"], batch.state, cache)
            first = model.expert(inputs["sample_noise"], torch.ones(2), batch.state, cache)
        assert_near(velocity, outputs["v_t"])
        assert_near(first, outputs["sample_v_first"])
        error = (velocity - outputs["u_t"]).square()
        assert_near(error, outputs["loss_per_element"], 5e-5)
        assert_near(error.mean(-1), outputs["loss"])

    def test_loss_and_its_gradients(self, model, batch, inputs, outputs):
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
    def test_sampled_actions(self, model, batch, inputs, outputs, steps):
        actions = model.sample_actions(batch, inputs["sample_noise"], steps=steps)
        assert_near(actions, outputs[f"sample_actions_{steps}"], 1e-4)


class TestLeRobot:
    """LeRobot 0.6.1, float32. Two of its three cameras are there; ours leaves the third out."""

    @pytest.fixture(scope="class")
    def model(self):
        model = Pi0(LEROBOT)
        tensors = load_file(GOLDEN / "lerobot_pi0/model.safetensors")
        load_tensors(model, lerobot_names.our_tensors(tensors), source="LeRobot's toy π0")
        return model.eval()

    @pytest.fixture(scope="class")
    def inputs(self):
        return arrays("lerobot_pi0/inputs.npz")

    @pytest.fixture(scope="class")
    def outputs(self):
        return arrays("lerobot_pi0/outputs_f32.npz")

    @pytest.fixture(scope="class", params=["left out", "masked"])
    def batch(self, request, outputs):
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

    def test_loss_of_every_element(self, model, batch, inputs, outputs):
        noise, time = inputs["noise"], inputs["time"]
        with torch.no_grad():
            x_t = interpolate(batch.actions, noise, time)
            velocity = model.expert(x_t, time, batch.state, model.prefill(batch))
        error = (velocity - target_velocity(batch.actions, noise)).square()
        assert_near(error, outputs["loss_per_element"], 1e-4)
        # LeRobot averages over the robot's own 7 dimensions, openpi and we over all 32
        assert_near(error[..., :7].mean(), outputs["loss"], 1e-4)

    @pytest.mark.parametrize("steps", [10, 4, 1])
    def test_sampled_actions(self, model, batch, inputs, outputs, steps):
        actions = model.sample_actions(batch, inputs["sample_noise"], steps=steps)
        assert_near(actions[..., :7], outputs[f"action_chunk_{steps}"], 1e-4)
