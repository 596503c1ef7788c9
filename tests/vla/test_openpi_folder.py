"""openpi's folders: PyTorch files and JAX (orbax) checkpoints, with statistics of several robots.

The stored vectors hold token ids, so the model's own batch is given to it; pictures, state and
prompt go through the same processor as everywhere else.
"""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from foreign import (
    GOLDEN,
    LETTERS,
    OPENPI_CONFIGS,
    made_up_stats,
    openpi_jax_folder,
    openpi_pytorch_folder,
    rewrite,
)
from safetensors.torch import load_file, save_file

from backbone.numerics import OPENPI_JAX, OPENPI_PYTORCH
from vla.batch import Batch
from vla.data.stats import NormStats
from vla.policy import Policy
from vla.policy_config import PolicyConfig
from vla.sources import openpi
from vla.sources.openpi import CAMERAS, jax_files, pytorch_files

FORMATS = {"JAX": (openpi_jax_folder, "pi0"), "PyTorch": (openpi_pytorch_folder, "pi05")}


def load(folder, kind, **options) -> Policy:
    options = {"config": OPENPI_CONFIGS[kind], "tokenizer": LETTERS, **options}
    return Policy.from_pretrained(folder, **options)


def golden_batch(kind) -> Batch:
    inputs = np.load(GOLDEN / f"openpi_jax_{kind}/inputs.npz")
    images = np.stack([inputs[f"image/{c}"] for c in CAMERAS], axis=1)
    valid = np.stack([inputs[f"image_mask/{c}"] for c in CAMERAS], axis=1)
    return Batch(
        images=torch.from_numpy(images).permute(0, 1, 4, 2, 3),
        image_valid=torch.from_numpy(valid),
        tokens=torch.from_numpy(inputs["tokenized_prompt"]).long(),
        token_valid=torch.from_numpy(inputs["tokenized_prompt_mask"]),
        state=torch.from_numpy(inputs["state"]),
    )


def assert_samples(policy, kind, reference):
    noise = np.load(GOLDEN / f"openpi_jax_{kind}/inputs.npz")["sample_noise"]
    outputs = np.load(GOLDEN / f"openpi_{reference}_{kind}/outputs_f32.npz")
    for steps in (10, 4, 1):
        wanted = outputs[f"sample_actions_{steps}"]
        actions = policy.model.sample_actions(golden_batch(kind), torch.from_numpy(noise), steps)
        rms = np.sqrt((wanted**2).mean())
        np.testing.assert_allclose(actions.numpy(), wanted, rtol=0, atol=1e-4 * rms)


def observation(state_dim=8, cameras=CAMERAS):
    rng = np.random.default_rng(3)
    pictures = {c: rng.integers(0, 256, (40, 30, 3), np.uint8) for c in cameras}
    return {
        **{f"observation.images.{c}": picture for c, picture in pictures.items()},
        "observation.state": rng.normal(size=state_dim).astype(np.float32),
        "task": "fold it",
    }


def test_a_jax_checkpoint_samples_as_jax_does(tmp_path):
    policy = load(openpi_jax_folder(tmp_path / "checkpoint"), "pi0")
    assert policy.config.numerics == OPENPI_JAX
    assert_samples(policy, "pi0", "jax")


def test_its_params_folder_is_enough_to_find_the_rest(tmp_path):
    checkpoint = openpi_jax_folder(tmp_path / "checkpoint")
    policy = load(checkpoint / "params", "pi0")
    assert policy.config.state_dim == 8
    assert_samples(policy, "pi0", "jax")


def test_a_pytorch_folder_samples_as_openpis_port_does(tmp_path):
    policy = load(openpi_pytorch_folder(tmp_path / "policy"), "pi05")
    assert policy.config.numerics == OPENPI_PYTORCH
    assert_samples(policy, "pi05", "pytorch")


@pytest.mark.parametrize("name", FORMATS)
def test_a_chunk_comes_in_robot_units_with_any_of_three_cameras(tmp_path, name):
    make, kind = FORMATS[name]
    policy = load(make(tmp_path / "policy"), kind)
    assert policy.config.cameras == CAMERAS
    assert (policy.config.state_dim, policy.config.action_dim) == (8, 7)
    assert policy.config.prompt_length == {"pi0": 48, "pi05": 200}[kind]
    noise = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    chunk = policy.act(observation(), noise)
    assert chunk.shape == (6, 7)

    batch = policy.processor.observe([observation()])
    raw = policy.model.sample_actions(batch, torch.from_numpy(noise)[None])[0, :, :7].numpy()
    stats = {k: np.array(v, np.float32) for k, v in made_up_stats(8, 7)["actions"].items()}
    if kind == "pi0":
        expected = raw * (stats["std"] + 1e-6) + stats["mean"]
    else:
        expected = (raw + 1) / 2 * (stats["q99"] - stats["q01"] + 1e-6) + stats["q01"]
    np.testing.assert_allclose(chunk, expected, atol=1e-5)

    fewer = policy.act(observation(cameras=CAMERAS[:1]), noise)
    assert fewer.shape == (6, 7)
    assert np.abs(fewer - chunk).max() > 1e-3


def test_all_sizes_of_a_jax_checkpoint_but_the_horizon_are_read_off(tmp_path):
    folder = openpi_jax_folder(tmp_path / "checkpoint")
    sizes = jax_files(folder).sizes
    config = OPENPI_CONFIGS["pi0"]
    assert vars(sizes.vision) == vars(config.backbone.vision)
    for name, value in vars(sizes.language).items():
        assert value == getattr(config.backbone.language, name)
    assert sizes.expert is not None
    for name, value in vars(sizes.expert).items():
        assert value == getattr(config.expert.gemma, name)
    with pytest.raises(ValueError, match=r"how many actions a chunk has .*config="):
        load(folder, "pi0", config=None)


def test_several_robots_statistics_are_named_and_one_is_chosen(tmp_path):
    folder = openpi_pytorch_folder(tmp_path / "policy", ("droid", "trossen", "lab/arm"))
    with pytest.raises(
        ValueError, match="statistics of 3 robots; choose one with asset=: droid, lab/arm, trossen"
    ):
        load(folder, "pi05")
    assert load(folder, "pi05", asset="trossen").config.state_dim == 9
    assert load(folder, "pi05", asset="lab/arm").config.state_dim == 10
    with pytest.raises(ValueError, match="no asset 'aloha'; it has droid, lab/arm, trossen"):
        load(folder, "pi05", asset="aloha")


def test_without_assets_statistics_are_asked_for_and_can_be_given(tmp_path):
    folder = openpi_pytorch_folder(tmp_path / "policy", ())
    with pytest.raises(ValueError, match=r"no assets/<robot>/norm_stats.json; copy .*stats="):
        load(folder, "pi05")
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps({"norm_stats": made_up_stats(5, 4)}))
    assert load(folder, "pi05", stats=path).config.action_dim == 4
    assert load(folder, "pi05", stats=NormStats.load(path)).config.state_dim == 5


def test_statistics_padded_with_zeros_are_cut_to_the_robot(tmp_path):
    folder = openpi_jax_folder(tmp_path / "checkpoint")

    def pad(values):
        for feature in values["norm_stats"].values():
            for name, numbers in feature.items():
                feature[name] = numbers + [0.0] * (10 - len(numbers))

    rewrite(folder / "assets/robot/norm_stats.json", pad)
    config = load(folder, "pi0").config
    assert (config.state_dim, config.action_dim) == (8, 7)


@pytest.mark.parametrize(
    ("name", "feature", "number", "message"),
    [
        ("JAX", "state", "std", r"std is 0 in state\[2\]"),
        ("JAX", "actions", "std", r"std is 0 in action\[2\]"),
        ("PyTorch", "actions", "q99", r"q01 and q99 are equal in action\[2\]"),
    ],
)
def test_a_dimension_that_never_moved_is_named(tmp_path, name, feature, number, message):
    make, kind = FORMATS[name]
    folder = make(tmp_path / "policy")

    def still(values):
        numbers = values["norm_stats"][feature]
        numbers[number][2] = 0 if number == "std" else numbers["q01"][2]

    rewrite(folder / "assets/robot/norm_stats.json", still)
    with pytest.raises(ValueError, match=message):
        load(folder, kind)


def test_a_whole_policy_config_goes_before_what_the_files_say(tmp_path):
    folder = openpi_pytorch_folder(tmp_path / "policy")
    given = PolicyConfig(
        OPENPI_CONFIGS["pi05"], ("top",), 8, 7, prompt_length=20, discrete_state=False, still=0
    )
    policy = load(folder, "pi05", config=given)
    assert policy.config == replace(given, model=policy.config.model)
    assert policy.config.numerics == OPENPI_PYTORCH
    assert not policy.config.tells_state


def test_config_json_may_be_missing_when_sizes_are_given(tmp_path):
    folder = openpi_pytorch_folder(tmp_path / "policy")
    (folder / "config.json").unlink()
    assert_samples(load(folder, "pi05"), "pi05", "pytorch")


def test_weights_of_pi05_with_a_config_of_pi0_are_refused(tmp_path):
    folder = openpi_pytorch_folder(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"holds a π0.5 .*is a Pi0Config; give a Pi05Config"):
        load(folder, "pi0")


def test_an_embedding_under_both_names_is_read_from_its_own(tmp_path):
    folder = openpi_pytorch_folder(tmp_path / "policy")
    vlm = "paligemma_with_expert.paligemma."
    tensors = load_file(folder / "model.safetensors")
    head = tensors[f"{vlm}lm_head.weight"]
    tensors[f"{vlm}model.language_model.embed_tokens.weight"] = head.clone()
    tensors[f"{vlm}lm_head.weight"] = head + 1  # drifted
    save_file(tensors, folder / "model.safetensors")
    assert_samples(load(folder, "pi05"), "pi05", "pytorch")
    assert f"{vlm}lm_head.weight" in pytorch_files(folder).weights.unused


def test_a_damaged_orbax_checkpoint_is_refused(tmp_path):
    folder = openpi_jax_folder(tmp_path / "checkpoint")
    largest = max((folder / "params").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cannot be read|not a whole orbax checkpoint"):
        load(folder, "pi0")


def test_a_jax_checkpoint_of_another_model_is_refused(tmp_path, monkeypatch):
    folder = openpi_jax_folder(tmp_path / "checkpoint")
    whole = openpi.Orbax(folder / "params")

    held = {k: v for k, v in whole.tensors.items() if "action_out" not in k}
    monkeypatch.setattr(openpi, "Orbax", lambda _: SimpleNamespace(tensors=held))
    with pytest.raises(ValueError, match=r"lacks action_out_proj/bias, action_out_proj/kernel"):
        load(folder, "pi0")
    held["PaliGemma/llm/layers/attn/q_einsum/lora_a"] = held["action_in_proj/bias"]
    with pytest.raises(ValueError, match="holds LoRA matrices"):
        load(folder, "pi0")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "it holds nothing"),
        ({"notes.txt": "x"}, "it holds notes.txt"),
        ({"config.json": '{"model_type": "paligemma"}'}, "has model_type 'paligemma', expected"),
        ({"config.json": "{"}, "config.json is not JSON"),
        ({"step/config.json": "{}"}, r"folders that may be one, such as .*step"),
    ],
)
def test_a_folder_of_something_else_says_what_it_is(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Policy.from_pretrained(tmp_path)


def test_the_log_names_the_origin(tmp_path, caplog):
    folder = openpi_pytorch_folder(tmp_path / "policy")
    with caplog.at_level(logging.INFO, "vla.sources.load"):
        load(folder, "pi05")
    assert "π0.5 of openpi PyTorch, with its numerics" in caplog.text
