"""What a policy's prompt says, as token ids.

    π0      <bos> pick up the cup ⏎
    π0.5    <bos> Task: pick up the cup, State: 12 130 7 255; ⏎ Action:

Source: openpi `models/tokenizer.py`; LeRobot writes π0.5's the same.
"""

import numpy as np

from backbone.tokenizer import Tokenizer

BINS = 256  # of a state dimension, evenly over [-1, 1]


def instruction_prompt(tokenizer: Tokenizer, task: str, clean: bool = True) -> list[int]:
    """Token ids of π0's prompt: the instruction and a newline.

    clean: tidy the instruction as openpi does; else it is left as it is, as in LeRobot, and keeps a
    newline that it ends in as its own.
    """
    if clean:
        return tokenizer.prefix(clean_prompt(task))
    return tokenizer.encode(task if task.endswith("\n") else f"{task}\n", bos=True)


def state_prompt(tokenizer: Tokenizer, task: str, state: np.ndarray) -> list[int]:
    """Token ids of π0.5's prompt: the instruction and the state, float [S], mostly in [-1, 1]."""
    numbers = " ".join(map(str, state_bins(state).tolist()))
    return tokenizer.encode(f"Task: {clean_prompt(task)}, State: {numbers};\nAction: ", bos=True)


def clean_prompt(task: str) -> str:
    """The instruction as openpi reads it: one line, without underscores."""
    return task.strip().replace("_", " ").replace("\n", " ")


def state_bins(state: np.ndarray) -> np.ndarray:
    """Bin of every dimension, int64 [S]: 0 … 255 over [-1, 1], 255 above it, and −1 below it."""
    return np.digitize(state, np.linspace(-1, 1, BINS + 1)[:-1]) - 1
