"""PaliGemma 1 and 2 in bfloat16, beside how far each reference is from its own float32.

Two bfloat16 runs round in other orders, so nothing tighter than about 0.05 of an output's norm
means anything. `pytest -s` prints both distances.
"""

from dataclasses import replace

import big_vision_names
import hf_reference
import pytest
import torch
from hf_reference import TOY, TOY2
from safetensors.torch import load_file
from test_paligemma_golden import GOLDEN, arrays, text_batch
from torch import Tensor

from backbone.numerics import HUGGING_FACE, OPENPI_JAX
from backbone.paligemma import PaliGemma, TextBatch


def distance(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def assert_within_noise(name: str, ours: Tensor, theirs: Tensor, wide: Tensor):
    found, own = distance(ours, theirs), distance(theirs, wide)
    print(f"{name}: {found:.4f} from the reference, which is {own:.4f} from its own float32")
    assert found <= 0.05


def hugging_face(folder: str, numerics) -> tuple[PaliGemma, dict[str, Tensor]]:
    sizes = replace(TOY2 if folder.endswith("2") else TOY, numerics=numerics)
    tensors = load_file(GOLDEN / folder / "model.safetensors")
    return hf_reference.load(tensors, sizes).bfloat16(), arrays(f"{folder}/outputs_bf16.npz")


@pytest.mark.parametrize("folder", ["hf_paligemma", "hf_paligemma2"])
def test_logits_and_image_features_are_hugging_faces(folder):
    model, stored = hugging_face(folder, HUGGING_FACE)
    wide = arrays(f"{folder}/outputs_f32.npz")
    batch, theirs = text_batch(arrays(f"{folder}/inputs.npz"), "right")
    with torch.no_grad():
        logits = model.logits(_half(batch)).float()[batch.token_valid]
        features = model.embed_images(batch.images.bfloat16()).float()
    name, expected = "right/logits", stored["right/logits"][theirs]
    assert_within_noise(f"{folder} {name}", logits, expected, wide[name][theirs])
    name = "image_features"
    assert_within_noise(f"{folder} {name}", features, stored[name], wide[name])


def test_a_rotation_in_bfloat16_is_told_from_one_in_float32():
    """What `rotate_in_activation` and `round_norm_scale` say of Hugging Face brings ours nearer."""
    found = {}
    for numerics in (HUGGING_FACE, OPENPI_JAX):
        model, stored = hugging_face("hf_paligemma", numerics)
        batch, theirs = text_batch(arrays("hf_paligemma/inputs.npz"), "right")
        with torch.no_grad():
            logits = model.logits(_half(batch)).float()[batch.token_valid]
        found[numerics] = distance(logits, stored["right/logits"][theirs])
    assert found[HUGGING_FACE] != found[OPENPI_JAX]


@pytest.mark.parametrize("folder", ["big_vision_paligemma", "big_vision_paligemma2"])
@pytest.mark.parametrize("activations", [torch.float32, torch.bfloat16])
def test_text_logits_are_big_visions_over_bfloat16_weights(folder, activations):
    """big_vision keeps activations in float32, and so do we where weights are loaded as float32:
    rounded weights in a wide model are exact. In bfloat16 throughout it is near."""
    path = big_vision_names.GOLDEN / folder
    model = big_vision_names.load(path)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().to(activations)
    inputs = big_vision_names.read_arrays(path / "inputs.npz")
    stored = big_vision_names.read_arrays(path / "outputs_bf16.npz")["text_logits"]
    wide = big_vision_names.read_arrays(path / "outputs_f32.npz")["text_logits"]
    images = inputs["image"].permute(0, 3, 1, 2)[:, None].to(activations) / 127.5 - 1
    batch = TextBatch(
        images,
        torch.ones(images.shape[:2], dtype=torch.bool),
        inputs["text"].long(),
        torch.ones_like(inputs["text"], dtype=torch.bool),
        inputs["mask_ar"].bool(),
    )
    with torch.no_grad():
        logits = model.logits(batch).float()
    assert_within_noise(f"{folder} {activations}", logits, stored, wide)
    if activations == torch.float32:
        assert distance(logits, stored) < 5e-5


def _half(batch: TextBatch) -> TextBatch:
    return replace(batch, images=batch.images.bfloat16())
