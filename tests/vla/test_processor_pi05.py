"""π0.5's prompt: the state as bins of its quantiles, or not at all."""

import dataclasses

import numpy as np
import pytest

from backbone.numerics import LEROBOT
from backbone.tokenizer import Tokenizer
from vla.data.stats import FeatureStats, NormStats
from vla.pi0 import PI0_TINY
from vla.pi05 import PI05_TINY
from vla.policy_config import PolicyConfig
from vla.processor import Processor
from vla.prompt import clean_prompt, instruction_prompt, state_bins, state_prompt

TOKENIZER = Tokenizer.small()
STATS = NormStats(
    FeatureStats(
        np.array([1, 1, 0]), np.array([1, 2, 0]), np.array([0, -1, 3]), np.array([2, 7, 3])
    ),
    FeatureStats(np.array([0, 0]), np.array([1, 1]), np.array([-4, 0]), np.array([4, 1])),
)
CONFIG = PolicyConfig(PI05_TINY, ("top",), state_dim=3, action_dim=2, prompt_length=64)
SIZE = CONFIG.image_size


def observation(state):
    return {
        "observation.images.top": np.zeros((SIZE, SIZE, 3), np.uint8),
        "observation.state": np.array(state, np.float32),
        "task": " put_the cup\naway ",
    }


def prompt(config: PolicyConfig, state, stats: NormStats = STATS) -> str:
    batch = Processor(config, stats, TOKENIZER).observe([observation(state)])
    return TOKENIZER.decode(batch.tokens[0].tolist(), skip_special=False)


def test_bins_divide_minus_one_to_one_evenly():
    edges = [-1, -1 + 1 / 128 - 1e-6, -1 + 1 / 128, -1e-6, 0, 1 - 1e-6]
    assert state_bins(np.array(edges)).tolist() == [0, 0, 1, 127, 128, 255]
    assert state_bins(np.array([-1.001, 1.0, 40.0])).tolist() == [-1, 255, 255]


def test_the_prompt_tells_instruction_and_binned_state():
    # quantiles: 0 → −1, 7 → 1, and a joint that never moved is 0
    expected = "<bos>Task: put the cup away, State: 0 255 128;\nAction: "
    assert prompt(CONFIG, [0, 7.1, 3]).replace("<pad>", "") == expected
    assert prompt(CONFIG, [-0.5, 3, 3]).replace("<pad>", "") == expected.replace("0 255", "-1 127")


def test_without_a_discrete_state_the_prompt_is_pi0s_and_the_state_is_not_in_it():
    silent = dataclasses.replace(CONFIG, discrete_state=False)
    assert prompt(silent, [0, 7, 3]) == prompt(silent, [1, 1, 1])
    assert prompt(silent, [0, 7, 3]).replace("<pad>", "") == "<bos>put the cup away\n"
    pi0 = dataclasses.replace(CONFIG, model=PI0_TINY)
    assert prompt(pi0, [0, 7, 3]) == prompt(silent, [0, 7, 3])


def test_a_prompt_that_is_too_long_is_refused():
    short = dataclasses.replace(CONFIG, prompt_length=24)
    with pytest.raises(
        ValueError, match=r"instruction ' put_the cup\\naway ' takes \d+ tokens, the"
    ):
        prompt(short, [0, 7, 3])


def test_pi05_is_normalised_by_quantiles_and_pi0_is_not_unless_asked():
    def first(**changes):
        config = dataclasses.replace(CONFIG, **changes)
        return Processor(config, STATS, TOKENIZER).observe([observation([2, 1, 3])]).state[0, 0]

    assert first().item() == pytest.approx(1)
    assert first(quantiles=False).item() == pytest.approx((2 - 1) / 1)
    assert first(model=PI0_TINY).item() == pytest.approx(1)
    assert first(model=PI0_TINY, quantiles=True).item() == pytest.approx(1)


def test_statistics_without_quantiles_are_refused_by_pi05():
    plain = NormStats(*(FeatureStats(s.mean, s.std) for s in (STATS.state, STATS.actions)))
    with pytest.raises(ValueError, match="no q01 and q99"):
        Processor(CONFIG, plain, TOKENIZER)
    Processor(dataclasses.replace(CONFIG, quantiles=False), plain, TOKENIZER)


def test_the_loss_covers_padding_as_openpi_or_the_robots_dimensions_as_lerobot():
    item = {
        "images": {"top": np.zeros((SIZE, SIZE, 3), np.uint8)},
        "state": np.zeros(3, np.float32),
        "task": "go",
        "actions": np.zeros((4, 2), np.float32),
        "action_valid": np.ones(4, bool),
    }
    backbone = dataclasses.replace(PI05_TINY.backbone, numerics=LEROBOT)
    lerobot = dataclasses.replace(PI05_TINY, backbone=backbone)
    for model, counted in ((PI05_TINY, [True] * 4), (lerobot, [True, True, False, False])):
        config = dataclasses.replace(CONFIG, model=model)
        batch = Processor(config, STATS, TOKENIZER).collate([item])
        assert batch.action_dim_valid is not None
        assert batch.action_dim_valid.tolist() == [counted]


def test_an_instruction_is_tidied_or_left_as_it_is():
    def text(task, clean):
        return TOKENIZER.decode(instruction_prompt(TOKENIZER, task, clean))

    assert text(" pick_up\nit ", clean=True) == "pick up it\n"
    assert text(" pick_up\nit ", clean=False) == " pick_up\nit \n"
    assert text("pick_up\n", clean=False) == "pick_up\n"
    assert clean_prompt("_a_\n") == " a "  # underscores go after the spaces at the ends


def test_both_prompts_begin_with_bos_alone():
    for ids in (
        instruction_prompt(TOKENIZER, "go"),
        state_prompt(TOKENIZER, "go", np.zeros(2)),
    ):
        assert ids[0] == TOKENIZER.bos
        assert TOKENIZER.bos not in ids[1:]
        assert TOKENIZER.eos not in ids
