"""Raw observations become what LeRobot 0.6.1's saved processors made of them (see tests/golden)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from toy_tokenizer import characters

from action_expert.expert import ActionExpertConfig
from backbone.gemma import GemmaConfig
from backbone.numerics import LEROBOT
from backbone.paligemma import PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from vla.data.stats import FeatureStats, NormStats
from vla.pi0 import Pi0Config
from vla.pi05 import Pi05Config
from vla.policy_config import PolicyConfig
from vla.processor import Processor

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = (
    PaliGemmaConfig(
        SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=14, resolution=56),
        GemmaConfig(width=56, depth=3, mlp=72, head_dim=16),
        vocab=112,
        numerics=LEROBOT,
    ),
    ActionExpertConfig(GemmaConfig(width=40, depth=3, mlp=56, head_dim=16), horizon=6),
)
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")


class Case:
    def __init__(self, kind: str):
        folder = GOLDEN / f"lerobot_{kind}"
        self.inputs, self.wanted, self.outputs = (
            dict(np.load(folder / f"{name}.npz"))
            for name in ("inputs", "preprocessed", "outputs_f32")
        )
        self.tasks = json.loads((folder / "tasks.json").read_text())
        stats = load_file(next(folder.glob("policy_preprocessor_step_*.safetensors")))
        self.tokens = self.wanted["observation.language.tokens"]
        config = PolicyConfig(
            model=(Pi05Config if kind == "pi05" else Pi0Config)(*SIZES),
            cameras=CAMERAS,
            state_dim=9,
            action_dim=7,
            prompt_length=self.tokens.shape[1],
            still=0,
        )
        self.processor = Processor(
            config,
            NormStats(of(stats, "observation.state"), of(stats, "action")),
            characters(GOLDEN / "lerobot_pi05/tokenizer.json"),
        )

    def observations(self):
        return [
            {
                **{
                    f"observation.images.{camera}": self.inputs[f"observation.images.{camera}"][i]
                    for camera in CAMERAS
                },
                "observation.state": self.inputs["observation.state"][i],
                "task": task,
            }
            for i, task in enumerate(self.tasks)
        ]


def of(stats: dict[str, np.ndarray], feature: str) -> FeatureStats:
    mean, std, q01, q99 = (stats[f"{feature}.{name}"] for name in ("mean", "std", "q01", "q99"))
    return FeatureStats(mean, std, q01, q99)


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def case(request) -> Case:
    return Case(request.param)


def test_prompts_are_the_same_to_the_token(case):
    batch = case.processor.observe(case.observations())
    assert batch.tokens.tolist() == case.tokens.tolist()
    valid = case.wanted["observation.language.attention_mask"]
    assert batch.token_valid.tolist() == valid.tolist()


def test_states_and_pictures_are_the_same(case):
    batch = case.processor.observe(case.observations())
    state = case.wanted["observation.state"]
    assert batch.state[:, :9].numpy() == pytest.approx(state, abs=2e-6)
    assert batch.state[:, 9:].abs().sum() == 0
    pixels = batch.images if batch.images.is_floating_point() else batch.images / 127.5 - 1
    pictures = torch.from_numpy(case.outputs["images_preprocessed"][:, :2])
    torch.testing.assert_close(pixels, pictures, atol=1e-6, rtol=0)


def test_actions_go_in_and_come_out_the_same(case):
    items = [
        {
            "images": {c: o[f"observation.images.{c}"] for c in CAMERAS},
            "state": o["observation.state"],
            "task": o["task"],
            "actions": case.inputs["action"][i],
            "action_valid": np.ones(6, bool),
        }
        for i, o in enumerate(case.observations())
    ]
    batch = case.processor.collate(items)
    assert batch.actions is not None
    assert batch.actions[..., :7].numpy() == pytest.approx(case.wanted["action"], abs=2e-6)
    assert batch.action_dim_valid is not None
    assert batch.action_dim_valid.sum(1).tolist() == [7, 7]  # LeRobot's loss has the robot's own
    chunk = torch.from_numpy(case.outputs["sample_actions_10_padded"])
    wanted = case.outputs["action_chunk_10_unnormalized"]
    assert case.processor.actions(chunk) == pytest.approx(wanted, abs=5e-6)
