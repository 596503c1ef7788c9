"""A policy: same batches in training and acting, a folder that is complete, clear refusals."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from backbone.tokenizer import Tokenizer
from vla.data.demonstrations import Demonstrations
from vla.data.stats import NormStats, norm_stats
from vla.pi0 import PI0_TINY, Pi0
from vla.policy import Policy
from vla.policy_config import PolicyConfig
from vla.processor import Processor
from vla.prompt import clean_prompt

CONFIG = PolicyConfig(PI0_TINY, cameras=("wrist", "top"), state_dim=3, action_dim=2)
SIZE = PI0_TINY.backbone.vision.resolution


@pytest.fixture(scope="module")
def stats(video_dataset) -> NormStats:
    return norm_stats(video_dataset)


@pytest.fixture(scope="module")
def processor(stats) -> Processor:
    return Processor(CONFIG, stats, Tokenizer.small())


@pytest.fixture
def policy(processor) -> Policy:
    torch.manual_seed(0)
    return Policy(Pi0(PI0_TINY), processor)


def observation(**changes):
    rng = np.random.default_rng(0)
    return {
        "observation.images.top": rng.integers(0, 256, (24, 32, 3), np.uint8),
        "observation.images.wrist": rng.integers(0, 256, (48, 48, 3), np.uint8),
        "observation.state": np.array([0.1, -0.2, 0.3], np.float32),
        "task": "push the red cube",
        **changes,
    }


def test_training_and_acting_see_the_same(processor, video_dataset):
    demonstrations = Demonstrations(
        video_dataset, 4, cameras=CONFIG.cameras, image_size=SIZE, progress=False
    )
    chosen = [0, 7, 15]
    trained = processor.collate([demonstrations[i] for i in chosen])
    acted = processor.observe(
        [
            {
                **{
                    f"observation.images.{camera}": demonstrations.dataset.frames(
                        camera, demonstrations[i]["episode"], demonstrations[i]["frame"], 1
                    )[0]
                    for camera in CONFIG.cameras
                },
                "observation.state": demonstrations[i]["state"],
                "task": demonstrations[i]["task"],
            }
            for i in chosen
        ]
    )
    for name in ("images", "image_valid", "tokens", "token_valid", "state"):
        assert torch.equal(getattr(trained, name), getattr(acted, name))
    assert acted.actions is None


def test_a_training_batch_has_the_models_units(processor, stats, video_dataset):
    demonstrations = Demonstrations(video_dataset, 4, image_size=SIZE, progress=False)
    batch = processor.collate([demonstrations[3], demonstrations[10]])
    assert batch.images.shape == (2, 2, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.uint8
    wrist = torch.from_numpy(demonstrations[3]["images"]["wrist"]).permute(2, 0, 1)
    assert torch.equal(batch.images[0, 0], wrist)  # in the policy's order
    expected = (demonstrations[3]["state"] - stats.state.mean) / (stats.state.std + 1e-6)
    assert batch.state[0, :3].numpy() == pytest.approx(expected, abs=1e-5)
    assert batch.state[:, 3:].abs().sum() == 0
    assert batch.actions is not None
    assert batch.action_valid is not None
    assert batch.actions.shape == (2, 4, 4)
    assert batch.actions[..., 2:].abs().sum() == 0
    assert batch.action_valid[0].tolist() == [True, True, False, False]
    assert Pi0(PI0_TINY)(batch).isfinite()


def test_a_prompt_is_bos_text_newline_padding(processor):
    tokenizer = Tokenizer.small()
    ids = processor.tokens(" open_the\ndrawer ", np.zeros(3))
    text = [tokenizer.bos, *tokenizer.encode("open the drawer"), tokenizer.newline]
    assert ids.tolist() == text + [0] * (48 - len(text))
    batch = processor.observe([observation(task=" open_the\ndrawer ")])
    assert batch.token_valid.sum() == len(text)
    assert batch.token_valid[0, : len(text)].all()
    assert clean_prompt(" a_b\n") == "a b"


def test_actions_come_back_in_robot_units(processor, stats, video_dataset):
    item = Demonstrations(video_dataset, 4, image_size=SIZE, progress=False)[0]
    batch = processor.collate([item])
    assert batch.actions is not None
    assert processor.actions(batch.actions)[0] == pytest.approx(item["actions"], abs=1e-5)


def test_act_gives_a_chunk_in_robot_units(policy):
    chunk = policy.act(observation())
    assert chunk.shape == (4, 2)
    assert chunk.dtype == np.float32
    two = policy.act_batch([observation(), observation(task="open the drawer")])
    assert two.shape == (2, 4, 2)


def test_the_same_noise_gives_the_same_actions_alone_and_in_a_batch(policy):
    noise = np.random.default_rng(1).normal(size=(2, 4, 4)).astype(np.float32)
    pair = [observation(), observation(task="open the drawer")]
    together = policy.act_batch(pair, noise)
    for i in range(2):
        assert policy.act(pair[i], noise[i]) == pytest.approx(together[i], abs=1e-5)


def test_reset_starts_the_noise_again(policy):
    first, second = policy.act(observation()), policy.act(observation())
    assert not np.array_equal(first, second)
    policy.reset()
    assert np.array_equal(policy.act(observation()), first)


def test_acting_leaves_the_global_generator_alone(policy):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    policy.act(observation())
    assert torch.equal(torch.rand(2), expected)


def test_a_folder_is_all_that_a_policy_needs(policy, tmp_path):
    policy.save_pretrained(tmp_path / "policy")
    names = {path.name for path in (tmp_path / "policy").iterdir()}
    assert names == {"model.safetensors", "config.json", "norm_stats.json", "tokenizer.model"}
    again = Policy.from_pretrained(tmp_path / "policy")
    assert again.config == policy.config
    assert np.array_equal(again.act(observation()), policy.act(observation()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation.images.top": np.zeros((24, 32, 3))}, r"images.top: .*float64"),
        ({"observation.images.top": np.zeros((3, 24, 32), np.uint8)}, r"transpose\(1, 2, 0\)"),
        ({"observation.images.top": np.zeros((24, 32), np.uint8)}, r"images.top: expected a uint8"),
        (
            {"observation.state": np.zeros(4)},
            r"state has shape \[4\], expected \[3\]; the policy b",
        ),
        ({"observation.state": np.zeros((1, 3))}, r"shape \[1, 3\], expected \[3\]; flatten it"),
        (
            {"observation.state": np.array([0, np.nan, 0])},
            r"observation 1: observation.state\[1\] i",
        ),
        ({"observation.state": np.array(["a"] * 3)}, r"observation.state is <U1, expected float32"),
        ({"task": ""}, "task is ''; expected an instruction"),
        ({"task": b"push"}, "task is b'push'; expected an instruction"),
        ({"task": "very " * 100}, r"takes \d+ tokens, the policy reads 48; shorten it"),
    ],
)
def test_an_observation_of_another_kind_is_refused(processor, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        processor.observe([observation(), observation(**changes)])
    assert "\n" not in str(error.value)


def test_a_missing_camera_is_named_with_what_there_is(processor):
    renamed = observation()
    renamed["observation.images.wrist_cam"] = renamed.pop("observation.images.wrist")
    with pytest.raises(
        ValueError,
        match=r"0 lacks observation.images.wrist, .* did you mean observation.images.wrist_cam\?",
    ):
        processor.observe([renamed])


def test_no_observations_are_refused(policy):
    with pytest.raises(ValueError, match="no observations to act on"):
        policy.act_batch([])


def test_noise_of_another_shape_is_refused(policy):
    with pytest.raises(ValueError, match=r"noise has shape \[1, 4, 2\], expected \[1, 4, 4\]"):
        policy.act(observation(), np.zeros((4, 2)))


def test_actions_that_are_not_finite_never_reach_the_robot(policy):
    with torch.no_grad():
        policy.model.expert.action_out_proj.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="actions are not finite"):
        policy.act(observation())


def test_demonstrations_of_another_size_are_refused(processor, video_dataset):
    item = Demonstrations(video_dataset, 4, image_size=SIZE * 2, progress=False)[0]
    with pytest.raises(
        ValueError, match=f"pictures are 64 px, the model's 32; .*image_size={SIZE}"
    ):
        processor.collate([item])


def test_statistics_of_another_robot_are_refused(stats):
    config = dataclasses.replace(CONFIG, state_dim=4)
    with pytest.raises(ValueError, match="statistics have 3 state dimensions, the robot 4"):
        Processor(config, stats, Tokenizer.small())


def test_a_robot_that_does_not_fit_the_model_is_refused():
    with pytest.raises(ValueError, match="the robot's action_dim is 5, the model's is 4"):
        dataclasses.replace(CONFIG, action_dim=5)


def test_a_folder_without_a_policy_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no policy at .*: config.json is missing"):
        Policy.from_pretrained(tmp_path)


def rewrite(folder, change):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(camera=["top"]),
            "PolicyConfig has no field camera; did you mean camer",
        ),
        (lambda c: c["model"]["expert"].update(horzon=3), "no field horzon; did you mean horizon"),
        (lambda c: c.pop("cameras"), "cameras is missing; copy the file again"),
        (lambda c: c.update(steps="ten"), "steps is 'ten', expected int"),
        (lambda c: c.update(model_type="llama"), "model_type 'llama', expected 'vla-pi0'"),
        (lambda c: c.update(model=3), "model must be an object with the fields of Pi0Config"),
        (lambda c: c.update(steps=0), "steps is 0; it must be 1 or more"),
    ],
)
def test_a_damaged_config_is_named(policy, tmp_path, change, message):
    policy.save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        Policy.from_pretrained(tmp_path)


def test_weights_of_another_model_are_refused(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda c: c["model"]["expert"].update(state_dim=7))
    with pytest.raises(ValueError, match=r"of another shape: expert.state_proj.weight"):
        Policy.from_pretrained(tmp_path)
