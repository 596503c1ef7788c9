"""Masks of the tabletop's things, for training a mask codec.

    codec = MaskCodec(replace(SMALL_MASK_CODEC, code_width=16, widths=(8, 16, 32, 32)))
    for loss in train(codec, thing_masks(0), 500, torch.Generator().manual_seed(0)): ...

made `vla/assets/mask_codec_tabletop` (after `torch.manual_seed(0)`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from backbone.mask_codec import cut
from envs.tabletop.scene import STANDARD, sample_scene
from envs.tabletop.truth import boxes, masks
from vla.data.tabletop_vlm import MASK_SIZE, rounded
from vla.training.sampler import HELD_OUT_SEED

__all__ = ["thing_masks"]

BATCH = 32


def thing_masks(seed: int) -> Iterator[Tensor]:
    """Endless batches of things' masks within their boxes, which are rounded as answers are, in
    scenes that no training draws: float32 [32, 64, 64] in [0, 1].
    """
    rng = np.random.default_rng((seed, HELD_OUT_SEED))
    parts: list[np.ndarray] = []
    while True:
        scene = sample_scene(rng, STANDARD).with_random_gripper(rng)
        whole = boxes(scene, "top")
        parts += [cut(m, rounded(whole[n])) for n, m in masks(scene, "top", MASK_SIZE).items()]
        if len(parts) >= BATCH:
            yield torch.from_numpy(np.stack(parts[:BATCH]))
            parts = parts[BATCH:]
