"""Boxes and masks: how far they overlap, and referring expressions scored by it.

A box is (x0, y0, x1, y1) in pixels, x to the right, y down, x0 < x1 and y0 < y1.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vla.metrics.score import Score, check_pairs, mean_score

Box = tuple[float, float, float, float]

MASK_SIDE = 64  # of the masks that the segmentation tokens stand for


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union in [0, 1]; 0 for a box without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (_area(a) + _area(b) - shared) if shared else 0.0


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool [H, W] masks; 0 where both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


def box_accuracy(
    predicted: Sequence[Box | None], truth: Sequence[Box], threshold: float = 0.5
) -> Score:
    """Share of examples whose box overlaps the true one by at least `threshold` (IoU).

    None, for an answer without a valid box, is a miss. Source: big_vision `segmentation.py`
    ("boxacc"), whose numbers these are.
    """
    check_pairs(predicted, truth)
    hits = [
        float(p is not None and box_iou(p, t) >= threshold)
        for p, t in zip(predicted, truth, strict=True)
    ]
    return mean_score(f"box accuracy@{threshold:g}", hits)


def mean_mask_iou(predicted: Sequence[np.ndarray | None], truth: Sequence[np.ndarray]) -> Score:
    """Mean over examples of the IoU of bool [H, W] masks, None counting 0 (RefCOCO's mIoU).

    Source: big_vision `segmentation.py` ("miou"). It isn't cIoU, which sums pixels first.
    """
    check_pairs(predicted, truth)
    pairs = zip(predicted, truth, strict=True)
    return mean_score("mIoU", [0.0 if p is None else mask_iou(p, t) for p, t in pairs])


def paste_mask(small: np.ndarray, box: Box, height: int, width: int) -> np.ndarray | None:
    """A mask decoder's output, drawn into its box: bool [height, width]; None for an empty box.

    small: float32 [64, 64], above 0 inside the object. The box's ends are cut to whole pixels, the
    mask is resized bilinearly and then thresholded. Source: big_vision `segmentation.py`.
    """
    x0, y0, x1, y1 = (int(end) for end in box)
    if x1 <= x0 or y1 <= y0:
        return None
    resized = Image.fromarray(small.astype(np.float32)).resize(
        (x1 - x0, y1 - y0), resample=Image.Resampling.BILINEAR
    )
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = np.asarray(resized) > 0
    return mask


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
