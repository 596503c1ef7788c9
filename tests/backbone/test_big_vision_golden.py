"""Losses, gradients and the logits of decoding against stored vectors of big_vision, float32."""

import big_vision_names
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from backbone.paligemma import PaliGemma, TextBatch


@pytest.fixture(scope="module", params=["big_vision_paligemma", "big_vision_paligemma2"])
def folder(request):
    return big_vision_names.GOLDEN / request.param


@pytest.fixture(scope="module")
def inputs(folder):
    return big_vision_names.read_arrays(folder / "inputs.npz")


@pytest.fixture(scope="module")
def outputs(folder):
    return big_vision_names.read_arrays(folder / "outputs_f32.npz")


@pytest.fixture(scope="module")
def model(folder):
    return big_vision_names.load(folder)


def rows(images: Tensor, inputs: dict[str, Tensor]) -> TextBatch:
    """Its training text, of which it masks no padding; images: uint8 [B, N, H, W, 3]."""
    text = inputs["text"].long()
    return TextBatch(
        images=images.permute(0, 1, 4, 2, 3),
        image_valid=torch.ones(images.shape[:2], dtype=torch.bool),
        tokens=text,
        token_valid=torch.ones_like(text, dtype=torch.bool),
        suffix=inputs["mask_ar"].bool(),
        counted=inputs["mask_loss"].bool(),
    )


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).norm()) < 5e-5 * float(theirs.norm())


@pytest.mark.parametrize("smoothing", ["0", "0.1"])
def test_the_loss_and_that_of_every_example_are_big_visions(model, inputs, outputs, smoothing):
    batch = rows(inputs["image"][:, None], inputs)
    epsilon = torch.tensor(float(smoothing))
    with torch.no_grad():
        assert_near(model(batch, epsilon), outputs[f"loss_ls{smoothing}"])
        for row, theirs in enumerate(outputs[f"loss_per_example_ls{smoothing}"]):
            given = {name: value for name, value in vars(batch).items() if value is not None}
            one = {name: value[row : row + 1] for name, value in given.items()}
            assert_near(model(TextBatch(**one), epsilon), theirs)


def test_gradients_of_the_loss_are_big_visions(folder, inputs):
    sizes = big_vision_names.read_sizes(folder)
    parameters = big_vision_names.read_parameters(folder)
    parameters = {name: value.requires_grad_() for name, value in parameters.items()}
    weights = big_vision_names.renamed(parameters, sizes)
    batch = rows(inputs["image"][:, None], inputs)
    functional_call(PaliGemma(sizes), weights, (batch,)).backward()
    stored = big_vision_names.read_arrays(folder / "grads_f32.npz")
    assert {name.partition(":")[2] for name in stored} == set(parameters)
    largest = max(float(theirs) for name, theirs in stored.items() if name.startswith("norm:"))
    for name, theirs in stored.items():
        kind, _, name = name.partition(":")
        gradient = parameters[name].grad
        assert gradient is not None, name
        ours = gradient.norm() if kind == "norm" else gradient
        # What a key's bias gets is rounding alone: attention doesn't see it.
        assert float((ours - theirs).norm()) < 5e-5 * float(theirs.norm()) + 1e-8 * largest, name


def test_two_frames_give_big_visions_logits(model, inputs, outputs):
    with torch.no_grad():
        logits = model.logits(rows(inputs["video"], inputs))
    assert_near(logits, outputs["video_text_logits"])


def test_logits_of_the_prompt_and_of_every_step_are_big_visions(model, inputs, outputs):
    images = inputs["image"].permute(0, 3, 1, 2)[:, None]
    tokens, valid = inputs["decode_text"].long(), inputs["decode_mask_input"].bool()
    suffix = inputs["decode_mask_ar"].bool() & valid
    ones = torch.ones(images.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        hidden, cache = model.prefill(images, ones, tokens, valid, suffix=suffix)
        assert hidden is not None
        last = hidden.shape[1] - tokens.shape[1] + valid.sum(1) - 1
        first = model.embedding.logits(hidden[torch.arange(len(last)), last])
        assert_near(first[:, None], outputs["prefill_last_logits_f32cache"])
        said, steps = outputs["decode_noeos_f32cache"].long(), outputs["step_logits_f32cache"]
        assert_near(first, steps[:, 0])
        for step in range(1, steps.shape[1]):
            logits, cache = model.decode(said[:, step - 1 : step], cache)
            assert_near(logits[:, 0], steps[:, step])
