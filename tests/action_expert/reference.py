"""The reference models in tests/golden, in our classes: sizes, weights and batches.

`openpi` holds JAX weights; the PyTorch port was run on the same ones, converted.
"""

from dataclasses import replace

import lerobot_names
import openpi_names
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from stored import GOLDEN, arrays
from torch import Tensor

from action_expert.expert import ActionExpertConfig
from backbone.gemma import GemmaConfig
from backbone.numerics import LEROBOT, OPENPI_JAX, Numerics
from backbone.paligemma import PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from backbone.weights import load_tensors
from vla.batch import Batch
from vla.pi0 import Pi0, Pi0Config
from vla.pi05 import Pi05, Pi05Config

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")

OPENPI_VISION = SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=14, resolution=28)
LEROBOT_SIZES = (
    PaliGemmaConfig(
        SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=14, resolution=56),
        GemmaConfig(width=56, depth=3, mlp=72, head_dim=16),
        vocab=112,
    ),
    ActionExpertConfig(GemmaConfig(width=40, depth=3, mlp=56, head_dim=16), horizon=6),
)
SIZES = {
    "openpi_jax_pi0": (
        PaliGemmaConfig(
            OPENPI_VISION, GemmaConfig(width=96, depth=3, mlp=80, head_dim=12), vocab=96
        ),
        ActionExpertConfig(
            GemmaConfig(width=48, depth=3, mlp=56, head_dim=12),
            state_dim=10,
            action_dim=10,
            horizon=6,
        ),
    ),
    "openpi_jax_pi05": (
        PaliGemmaConfig(
            OPENPI_VISION, GemmaConfig(width=80, depth=3, mlp=72, head_dim=10), vocab=96
        ),
        ActionExpertConfig(
            GemmaConfig(width=40, depth=3, mlp=48, head_dim=10), action_dim=10, horizon=6
        ),
    ),
    "lerobot_pi0": LEROBOT_SIZES,
    "lerobot_pi05": LEROBOT_SIZES,
}


def build(folder: str, numerics: Numerics) -> Pi0 | Pi05:
    backbone, expert = SIZES[folder]
    backbone = replace(backbone, numerics=numerics)
    if folder.endswith("pi05"):
        return Pi05(Pi05Config(backbone, expert)).eval()
    return Pi0(Pi0Config(backbone, expert)).eval()


def openpi_model(folder: str, numerics: Numerics = OPENPI_JAX) -> Pi0 | Pi05:
    model = build(folder, numerics)
    params = openpi_names.our_tensors(arrays(f"{folder}/params.npz"))
    load_tensors(model, params, source=folder)
    return model


def openpi_batch(folder: str) -> Batch:
    inputs = arrays(f"{folder}/inputs.npz")
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


def lerobot_model(folder: str, numerics: Numerics = LEROBOT) -> Pi0 | Pi05:
    model = build(folder, numerics)
    tensors = load_file(GOLDEN / folder / "model.safetensors")
    load_tensors(model, lerobot_names.our_tensors(tensors), source=folder)
    return model


def lerobot_batch(folder: str, cameras: int = 3) -> Batch:
    """With its first `cameras`; LeRobot masks the third, which was not there."""
    prepared = arrays(f"{folder}/preprocessed.npz")
    outputs = arrays(f"{folder}/outputs_f32.npz")
    actions = prepared["action"]
    return Batch(
        images=outputs["images_preprocessed"][:, :cameras],
        image_valid=outputs["image_masks"][:, :cameras],
        tokens=prepared["observation.language.tokens"],
        token_valid=prepared["observation.language.attention_mask"],
        state=F.pad(prepared["observation.state"], (0, 32 - 9)),
        actions=F.pad(actions, (0, 32 - 7)),
        action_valid=torch.ones(actions.shape[:2], dtype=torch.bool),
        action_dim_valid=(torch.arange(32) < 7).expand(len(actions), -1),
    )


def velocity(model: Pi0 | Pi05, batch: Batch, x_t: Tensor, t: Tensor) -> Tensor:
    cache = model.prefill(batch)
    if isinstance(model, Pi05):
        return model.expert(x_t, t, cache)
    return model.expert(x_t, t, batch.state, cache)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    assert ours.shape == theirs.shape
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def assert_within_noise(name: str, ours: Tensor, theirs: Tensor, wide: Tensor):
    """`ours` is near `theirs`, both bfloat16, beside the reference's own distance from float32.

    The two round in other orders, so nothing tighter means anything. `pytest -s` prints both.
    """
    found, own = distance(ours, theirs), distance(theirs, wide)
    print(f"{name}: {found:.4f} from the reference, which is {own:.4f} from its own float32")
    assert found <= min(0.05, 2 * own), f"{name}: {found} beside {own}"
