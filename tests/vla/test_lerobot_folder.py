"""A folder that LeRobot 0.6.1 wrote acts here as it does there, from raw pictures to robot units.

Its config.json says gemma_2b, the weights are toy-sized: sizes come from the weights.
"""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from foreign import GOLDEN, LEROBOT_CONFIGS, lerobot_folder, rewrite
from safetensors.torch import load_file, save_file
from toy_tokenizer import characters

from backbone.numerics import LEROBOT
from vla.data.stats import NormStats
from vla.policy import Policy
from vla.sources.lerobot import lerobot_files

TOKENIZER = characters(GOLDEN / "lerobot_pi05/tokenizer.json")
KINDS = ["pi0", "pi05"]


def load(folder, kind, **options) -> Policy:
    options = {"config": LEROBOT_CONFIGS[kind], "tokenizer": TOKENIZER, **options}
    return Policy.from_pretrained(folder, **options)


def observations(kind):
    inputs = np.load(GOLDEN / f"lerobot_{kind}/inputs.npz")
    tasks = json.loads((GOLDEN / f"lerobot_{kind}/tasks.json").read_text())
    images = [key for key in inputs if "images" in key]
    both = [
        {
            **{key: inputs[key][i] for key in images},
            "observation.state": inputs["observation.state"][i],
            "task": tasks[i],
        }
        for i in range(2)
    ]
    return both, inputs["sample_noise"]


def assert_chunk(policy, kind, tolerance=5e-5):
    wanted = np.load(GOLDEN / f"lerobot_{kind}/outputs_f32.npz")["action_chunk_10_unnormalized"]
    chunk = policy.act_batch(*observations(kind))
    rms = np.sqrt((wanted**2).mean())
    np.testing.assert_allclose(chunk, wanted, rtol=0, atol=tolerance * rms)


@pytest.fixture
def folder(tmp_path):
    return lerobot_folder("pi0", tmp_path / "policy")


@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_lerobots_from_raw_observations(tmp_path, kind):
    policy = load(lerobot_folder(kind, tmp_path / "policy"), kind)
    assert policy.config.numerics.resize == "torch"
    assert policy.config.cameras == ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    assert_chunk(policy, kind)  # the third camera is absent, as it was there


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_folder_of_it_acts_the_same(tmp_path, kind, monkeypatch):
    policy = load(lerobot_folder(kind, tmp_path / "theirs"), kind)
    monkeypatch.setattr(policy.processor.tokenizer, "save", lambda folder: None, raising=False)
    policy.save_pretrained(tmp_path / "ours")
    again = Policy.from_pretrained(tmp_path / "ours", tokenizer=TOKENIZER)
    assert again.config == policy.config
    assert_chunk(again, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_it_is_as_near_as_lerobots_own_bfloat16(tmp_path, kind):
    policy = load(lerobot_folder(kind, tmp_path / "policy"), kind, dtype="bfloat16")
    assert_chunk(policy, kind, tolerance=0.05)


def renamed(folder, rename, drop=()):
    tensors = load_file(folder / "model.safetensors")
    kept = {rename(k): v for k, v in tensors.items() if not k.endswith(tuple(drop))}
    save_file(kept, folder / "model.safetensors")


OLD_STYLES = {
    "no prefix, tied head only (0.4, openpi conversions)": (
        lambda k: k.removeprefix("model."),
        ["embed_tokens.weight"],
    ),
    "prefix, embedding only": (lambda k: k, ["lm_head.weight"]),
    "modules of before transformers 4.52": (
        lambda k: (
            k.replace("paligemma.model.language_model.", "paligemma.language_model.model.")
            .replace("paligemma.model.vision_tower", "paligemma.vision_tower")
            .replace("paligemma.model.multi_modal", "paligemma.multi_modal")
            .replace("paligemma.lm_head", "paligemma.language_model.lm_head")
        ),
        [],
    ),
    "no vision_model level": (
        lambda k: k.replace("vision_tower.vision_model.", "vision_tower."),
        [],
    ),
}


@pytest.mark.parametrize("style", OLD_STYLES)
def test_older_names_of_the_same_weights_load(folder, style):
    rename, drop = OLD_STYLES[style]
    if "embed_tokens.weight" in drop:  # that release tied both; in the stored file they drifted
        tensors = load_file(folder / "model.safetensors")
        vlm = "model.paligemma_with_expert.paligemma."
        embedding = tensors[f"{vlm}model.language_model.embed_tokens.weight"]
        tensors[f"{vlm}lm_head.weight"] = embedding.clone()
        save_file(tensors, folder / "model.safetensors")
    renamed(folder, rename, drop)
    assert_chunk(load(folder, "pi0"), "pi0")


def test_weights_in_several_files_load(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    where = {}
    for i, half in enumerate(halves):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        save_file(half, folder / name)
        where |= dict.fromkeys(half, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_chunk(load(folder, "pi0"), "pi0")


def test_dead_heads_are_left_out_and_the_log_says_so(folder, caplog):
    files = lerobot_files(folder)
    heads = [k for k in files.weights.tensors if "lm_head" in k]
    assert sorted(files.weights.unused) == sorted(heads)
    assert files.weights.unused_bytes == 4 * 112 * (56 + 40)
    with caplog.at_level(logging.INFO, "vla.sources.load"):
        policy = load(folder, "pi0")
    assert "π0 of LeRobot, with its numerics" in caplog.text
    assert policy.config.numerics == LEROBOT


def test_a_rename_map_gives_the_robots_names_and_empty_cameras_are_left_out(folder):
    def add_empty(config):
        feature = config["input_features"]["observation.images.base_0_rgb"]
        config["input_features"]["observation.images.empty_camera_0"] = feature

    rewrite(folder / "config.json", add_empty)
    names = {"observation.images.front": "observation.images.base_0_rgb"}
    rewrite(
        folder / "policy_preprocessor.json",
        lambda p: p["steps"][0]["config"].update(rename_map=names),
    )
    policy = load(folder, "pi0")
    assert policy.config.cameras == ("front", "left_wrist_0_rgb", "right_wrist_0_rgb")
    both, noise = observations("pi0")
    for observation in both:
        observation["observation.images.front"] = observation.pop("observation.images.base_0_rgb")
    plain = load(lerobot_folder("pi0", folder.parent / "plain"), "pi0")
    expected = plain.act_batch(*observations("pi0"))
    assert np.array_equal(policy.act_batch(both, noise), expected)


def test_a_camera_that_some_rows_lack_is_masked_in_them_alone(folder):
    policy = load(folder, "pi0")
    both, noise = observations("pi0")
    del both[1]["observation.images.left_wrist_0_rgb"]
    together = policy.act_batch(both, noise)
    for i in range(2):
        alone = policy.act(both[i], noise[i])
        np.testing.assert_allclose(together[i], alone, atol=1e-5)
    for key in ("base_0_rgb", "left_wrist_0_rgb"):
        both[0].pop(f"observation.images.{key}")
    with pytest.raises(ValueError, match=r"observation 0 lacks observation.images.base_0_rgb"):
        policy.act_batch(both, noise)


def test_relative_actions_are_added_to_the_state_but_for_excluded_joints(folder):
    absolute = load(folder, "pi0").act_batch(*observations("pi0"))
    names = [*(f"joint_{i}" for i in range(6)), "Left_Gripper"]
    step = {"enabled": True, "exclude_joints": ["gripper"], "action_names": names}
    rewrite(folder / "policy_preprocessor.json", lambda p: p["steps"][5]["config"].update(step))
    rewrite(
        folder / "policy_postprocessor.json", lambda p: p["steps"][1]["config"].update(enabled=True)
    )
    policy = load(folder, "pi0")
    assert policy.config.relative_dims == (0, 1, 2, 3, 4, 5)
    both, noise = observations("pi0")
    offset = np.stack([o["observation.state"][:7] for o in both])
    offset[:, 6] = 0
    expected = absolute + offset[:, None]
    np.testing.assert_allclose(policy.act_batch(both, noise), expected, atol=1e-5)


def test_a_training_batch_has_relative_actions(folder):
    policy = load(folder, "pi0")
    item = {
        "images": {c: np.zeros((56, 56, 3), np.uint8) for c in policy.config.cameras},
        "state": np.arange(9, dtype=np.float32),
        "actions": np.ones((6, 7), np.float32),
        "action_valid": np.ones(6, bool),
        "task": "push",
    }
    plain = policy.processor.collate([item]).actions
    config = replace(policy.config, relative_dims=(0, 1))
    relative = type(policy.processor)(config, policy.processor.stats, TOKENIZER)
    offset = np.array([0, 1, 0, 0, 0, 0, 0], np.float32)  # the state's first two dimensions
    moved = {**item, "actions": item["actions"] + offset}
    torch.testing.assert_close(relative.collate([moved]).actions, plain)


def with_mode(folder, state, action):
    def change(processor):
        for step in processor["steps"]:
            if "norm_map" in step["config"]:
                step["config"]["norm_map"].update(STATE=state, ACTION=action)

    rewrite(folder / "policy_preprocessor.json", change)
    rewrite(folder / "policy_postprocessor.json", change)


@pytest.mark.parametrize("mode", ["MEAN_STD", "QUANTILES", "MIN_MAX", "IDENTITY"])
@pytest.mark.parametrize("other", ["MEAN_STD", "QUANTILES"])
def test_every_normalisation_mode_is_lerobots(folder, mode, other):
    with_mode(folder, mode, other)
    processor = load(folder, "pi0").processor
    file = folder / "policy_preprocessor_step_6_normalizer_processor.safetensors"
    table = {k: v.numpy() for k, v in load_file(file).items()}
    state = observations("pi0")[0][0]["observation.state"]
    actions = np.linspace(-1, 1, 6 * 32, dtype=np.float32).reshape(1, 6, 32)

    shift, scale = shift_and_scale(mode, table, "observation.state")
    batch = processor.observe(observations("pi0")[0])
    np.testing.assert_allclose(batch.state[0, :9], (state - shift) / scale, atol=2e-6)
    shift, scale = shift_and_scale(other, table, "action")
    np.testing.assert_allclose(
        processor.actions(torch.from_numpy(actions)), actions[..., :7] * scale + shift, atol=2e-6
    )


def shift_and_scale(mode, table, key):
    """LeRobot's modes as (x − shift) / scale."""
    if mode == "IDENTITY":
        return 0, 1
    if mode == "MEAN_STD":
        return table[f"{key}.mean"], table[f"{key}.std"]
    low, high = ("q01", "q99") if mode == "QUANTILES" else ("min", "max")
    half = (table[f"{key}.{high}"] - table[f"{key}.{low}"]) / 2
    return table[f"{key}.{low}"] + half, half


# --- what is refused ------------------------------------------------------------------------------


def test_weights_of_pi05_beside_a_config_of_pi0_are_refused(tmp_path):
    folder = lerobot_folder("pi05", tmp_path / "policy")
    rewrite(folder / "config.json", lambda c: c.update(type="pi0"))
    with pytest.raises(ValueError, match=r"'pi0' but the weights are π0.5's; .*pi05"):
        load(folder, "pi0")


def test_a_config_of_the_other_model_is_refused(folder):
    with pytest.raises(ValueError, match=r"holds a π0 .* is a Pi05Config; give a Pi0Config"):
        load(folder, "pi05")


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_a_policy_of_another_type_is_refused(folder, kind):
    rewrite(folder / "config.json", lambda c: c.update(type=kind))
    with pytest.raises(ValueError, match=f"LeRobot policy of type '{kind}'; .* pi0 and pi05 load"):
        load(folder, "pi0")


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_a_missing_processor_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing: it says how states"):
        load(folder, "pi0")


def test_missing_statistics_are_named_and_can_be_given(folder):
    file = folder / "policy_preprocessor_step_6_normalizer_processor.safetensors"
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name}, the file of statistics, is missing"):
        load(folder, "pi0")
    stats = lerobot_files(lerobot_folder("pi0", folder.parent / "whole")).stats
    assert stats is not None
    stats.save(folder.parent / "stats.json")
    assert_chunk(load(folder, "pi0", stats=folder.parent / "stats.json"), "pi0")
    assert_chunk(load(folder, "pi0", stats=NormStats.load(folder.parent / "stats.json")), "pi0")


def test_statistics_of_a_base_model_that_has_none_are_asked_for(folder):
    def drop(processor):
        for step in processor["steps"]:
            step.pop("state_file", None)

    rewrite(folder / "policy_preprocessor.json", drop)
    with pytest.raises(ValueError, match=r"no statistics of observation.state .*with stats="):
        load(folder, "pi0")


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        ("pi0", "observation.state.std", r"std is 0 in state\[4\]"),
        ("pi0", "action.std", r"std is 0 in action\[4\]"),
        ("pi05", "observation.state.q99", r"q01 and q99 are equal in state\[4\]"),
        ("pi05", "action.q99", r"q01 and q99 are equal in action\[4\]"),
    ],
)
def test_a_dimension_that_never_moved_is_named(tmp_path, kind, key, message):
    folder = lerobot_folder(kind, tmp_path / "policy")
    for file in folder.glob("policy_p*_step_*.safetensors"):
        stats = load_file(file)
        stats[key][4] = 0 if key.endswith("std") else stats[key.replace("q99", "q01")][4]
        save_file(stats, file)
    with pytest.raises(ValueError, match=message):
        load(folder, kind)


def test_a_missing_tokenizer_is_asked_for(folder):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer .* with tokenizer=, such as"):
        load(folder, "pi0", tokenizer=None)


def test_heads_that_the_weights_do_not_tell_are_asked_for(folder):
    with pytest.raises(
        ValueError, match=r"how many heads a vision block of width 32 has; .*config="
    ):
        load(folder, "pi0", config=None)


def test_another_horizon_than_the_files_is_refused(folder):
    config = LEROBOT_CONFIGS["pi0"]
    config = replace(config, expert=replace(config.expert, horizon=50))
    with pytest.raises(ValueError, match="says 6 actions a chunk, the config given 50"):
        load(folder, "pi0", config=config)


def test_a_file_that_is_cut_short_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for end in (4, 100, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"not a whole safetensors file.*copy it again"):
            load(folder, "pi0")


def test_quantised_weights_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.state_proj.weight"] = tensors["model.state_proj.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"model.state_proj.weight is int8, expected one of float32"
    ):
        load(folder, "pi0")


def test_missing_and_unknown_weights_are_both_named(folder):
    renamed(folder, lambda k: k.replace("action_out_proj", "action_exit"))
    with pytest.raises(
        ValueError, match=r"it lacks action_out_proj.* unknown in it: .*action_exit"
    ):
        load(folder, "pi0")


def test_a_stray_weight_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.extra"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"nothing was loaded.* not in the model: model.extra"):
        load(folder, "pi0")


def test_two_names_of_one_weight_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["state_proj.weight"] = tensors["model.state_proj.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="two names of the same weight"):
        load(folder, "pi0")


def test_an_adapter_is_refused(folder):
    rewrite(folder / "config.json", lambda c: c.update(use_peft=True))
    with pytest.raises(ValueError, match="a PEFT adapter, not whole weights; merge it"):
        load(folder, "pi0")
