"""Reading tests/golden and comparing with it."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def arrays(path: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5):
    """Within `tolerance` of the reference's rms."""
    rms = theirs.double().square().mean().sqrt().item()
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() <= tolerance * max(rms, 1e-8)
