"""A π0.5 policy: the same folder, commands and training loop as π0's."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone.tokenizer import Tokenizer
from vla.config import DataConfig, TrainConfig, load_config
from vla.data.stats import norm_stats
from vla.model import build
from vla.pi0 import PI0_TINY, Pi0
from vla.pi05 import PI05_TINY, Pi05, Pi05Config
from vla.policy import Policy
from vla.policy_config import PolicyConfig
from vla.precision import cast
from vla.processor import Processor
from vla.training.policy_job import init_weights, policy_job

CONFIG = PolicyConfig(
    PI05_TINY, cameras=("wrist", "top"), state_dim=3, action_dim=2, prompt_length=60
)


@pytest.fixture
def policy(video_dataset) -> Policy:
    return make_policy(video_dataset, CONFIG)


def make_policy(dataset: Path, config: PolicyConfig) -> Policy:
    """With every weight random: a new expert's blocks do nothing."""
    model = build(config.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5))
    return Policy(model, Processor(config, norm_stats(dataset), Tokenizer.small()))


def observation(state=(0.1, -0.2, 0.3)):
    rng = np.random.default_rng(0)
    return {
        "observation.images.top": rng.integers(0, 256, (24, 32, 3), np.uint8),
        "observation.images.wrist": rng.integers(0, 256, (48, 48, 3), np.uint8),
        "observation.state": np.array(state, np.float32),
        "task": "push the red cube",
    }


def test_a_folder_says_which_model_it_holds(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vla-pi05"
    again = Policy.from_pretrained(tmp_path)
    assert isinstance(again.model, Pi05)
    assert again.config == policy.config
    assert np.array_equal(again.act(observation()), policy.act(observation()))


def test_a_folder_under_the_other_models_name_is_refused(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("vla-pi05", "vla-pi0"))
    with pytest.raises(ValueError, match=r"missing from the file: expert\.action_time_mlp_in"):
        Policy.from_pretrained(tmp_path)


def test_numerics_are_part_of_the_folder_and_checked(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert values["model"]["backbone"]["numerics"]["resize"] == "pil"
    values["model"]["backbone"]["numerics"]["resize"] = "torch"
    path.write_text(json.dumps(values))
    assert PolicyConfig.load(path).numerics.resize == "torch"
    values["model"]["backbone"]["numerics"]["resize"] = "nearest"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="resize is 'nearest', expected 'pil' or 'jax' or"):
        PolicyConfig.load(path)


def test_the_state_decides_the_actions_unless_it_is_not_told(policy, video_dataset):
    noise = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    near, far = observation(), observation(state=(1.5, 1, -1))
    assert not np.array_equal(policy.act(near, noise), policy.act(far, noise))
    silent = make_policy(video_dataset, dataclasses.replace(CONFIG, discrete_state=False))
    assert np.array_equal(silent.act(near, noise), silent.act(far, noise))


def test_half_precision_moves_actions_by_its_rounding_only(policy, video_dataset):
    noise = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    wide = policy.act(observation(), noise)
    half = make_policy(video_dataset, CONFIG)
    cast(half.model, torch.bfloat16)
    rounded = half.act(observation(), noise)
    assert 0 < np.abs(rounded - wide).max() < 0.05 * np.abs(wide).max()


# --- training -------------------------------------------------------------------------------------


def train_config(root: Path, **data) -> TrainConfig:
    return TrainConfig(
        output_dir=Path("unused"),
        model=PI05_TINY,
        data=DataConfig(root, held_out=0.3, **data),
        steps=4,
        batch_size=4,
    )


def test_training_builds_the_model_that_the_config_names(video_dataset, tmp_path):
    job = policy_job(train_config(video_dataset))
    assert isinstance(job.model, Pi05)
    batch = job.batch(0)[0].inputs[0]
    assert batch.tokens.shape == (4, 200)  # openpi's length for π0.5
    text = Tokenizer.small().decode(batch.tokens[0].tolist())
    assert text.startswith("Task: ")
    assert text.endswith(";\nAction: ")
    job.save(job.begun(), tmp_path)
    assert Policy.from_pretrained(tmp_path).config.model == PI05_TINY
    silent = policy_job(train_config(video_dataset, discrete_state=False, prompt_length=12))
    tokens = silent.batch(0)[0].inputs[0].tokens
    assert tokens.shape == (4, 12)
    assert Tokenizer.small().decode(tokens[0].tolist()).endswith("\n")


def test_pi05_learns_one_batch_by_heart(video_dataset):
    job = policy_job(train_config(video_dataset))
    microbatch, model = job.batch(0)[0], job.begun().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = model(*microbatch.inputs)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_a_pi0_does_not_start_a_pi05(video_dataset, tmp_path):
    config = dataclasses.replace(train_config(video_dataset), model=PI0_TINY)
    job = policy_job(config)
    job.save(job.begun(), tmp_path)
    with pytest.raises(ValueError, match="has other sizes than the config's model: Pi0Config"):
        init_weights(Pi05(PI05_TINY), tmp_path)


def test_overrides_reach_the_model_that_the_file_names(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(
        "from pathlib import Path\n"
        "from vla.config import DataConfig, TrainConfig\n"
        "from vla.pi05 import PI05_TINY\n"
        "config = TrainConfig(output_dir=Path('o'), model=PI05_TINY, data=DataConfig(Path('d')),"
        " steps=5, batch_size=4)\n"
    )
    words = (
        "--model.expert.horizon 9 --model.backbone.numerics.resize torch --data.no-discrete-state"
    )
    config = load_config(path, words.split())
    assert isinstance(config, TrainConfig)
    assert isinstance(config.model, Pi05Config)
    assert config.model.expert == dataclasses.replace(PI05_TINY.expert, horizon=9)
    assert config.model.backbone.numerics.resize == "torch"
    assert config.data.discrete_state is False


def test_build_makes_what_the_config_describes():
    with torch.device("meta"):
        assert isinstance(build(PI05_TINY), Pi05)
        assert isinstance(build(PI0_TINY), Pi0)
