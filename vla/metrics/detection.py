"""COCO's mean average precision of boxes or masks, computed by pycocotools."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vla.metrics.boxes import Box
from vla.metrics.score import Score, check_pairs

Kind = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Detection:
    """One object in a picture: what it is called, its box in pixels, its mask where known.

    mask: bool [H, W] of the whole picture. confidence orders predictions; a truth's is ignored.
    crowd: a truth that stands for a group, which predictions may or may not find.
    """

    label: str
    box: Box
    mask: np.ndarray | None = None
    confidence: float = 1.0
    crowd: bool = False


def mean_average_precision(
    predicted: Sequence[Sequence[Detection]],
    truth: Sequence[Sequence[Detection]],
    kind: Kind = "bbox",
) -> tuple[Score, ...]:
    """mAP@[.5:.95], mAP@.5 and mAP@.75 over pictures, at most 100 objects in each.

    The mean runs over the labels that occur in `truth`; a predicted label that doesn't occur there
    counts nothing, as in COCO. PaliGemma's text gives no confidence: with all of them equal, order
    within a picture and of the pictures decides, so mAP is lower than with real confidences.
    Source: pycocotools 2.0.11 `COCOeval`, which does the computing. These scores have no parts per
    example and no interval. Raises ValueError without a truth, and for "segm" without masks.
    """
    check_pairs(predicted, truth)
    labels = sorted({d.label for objects in truth for d in objects if not d.crowd})
    if not labels:
        raise ValueError("expected at least one true object that isn't a crowd, got none")
    numbers = {label: i for i, label in enumerate(labels, start=1)}
    annotations = _records(truth, numbers, kind)
    stats = _evaluate(annotations, _records(predicted, numbers, kind), len(truth), numbers, kind)
    names = ("mAP@[.5:.95]", "mAP@.5", "mAP@.75")
    suffix = "" if kind == "bbox" else " masks"
    return tuple(
        Score(name + suffix, float(value), len(truth))
        for name, value in zip(names, stats[:3], strict=True)
    )


def _records(
    pictures: Sequence[Sequence[Detection]], numbers: dict[str, int], kind: Kind
) -> list[dict[str, Any]]:
    """COCO's annotation records, numbered from 1: COCOeval takes number 0 for "no match"."""
    from pycocotools import mask as rle

    records: list[dict[str, Any]] = []
    for image, objects in enumerate(pictures, start=1):
        for d in objects:
            if d.label not in numbers:
                continue
            x0, y0, x1, y1 = d.box
            record = {
                "id": len(records) + 1,
                "image_id": image,
                "category_id": numbers[d.label],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": int(d.crowd),
                "score": d.confidence,
            }
            if kind == "segm":
                if d.mask is None:
                    raise ValueError(f"expected a mask of {d.label!r} in picture {image - 1}")
                record["segmentation"] = rle.encode(np.asfortranarray(d.mask.astype(np.uint8)))
                record["area"] = float(d.mask.sum())
            records.append(record)
    return records


def _evaluate(
    truth: list[dict[str, Any]],
    predicted: list[dict[str, Any]],
    pictures: int,
    numbers: dict[str, int],
    kind: Kind,
) -> np.ndarray:
    """COCOeval's twelve numbers; what it prints is kept back."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    shared = {
        "images": [{"id": i + 1, "height": 0, "width": 0} for i in range(pictures)],  # masks know
        "categories": [{"id": number, "name": label} for label, number in numbers.items()],
    }
    sides = COCO(), COCO()
    with redirect_stdout(io.StringIO()):
        for side, records in zip(sides, (truth, predicted), strict=True):
            dataset: Any = {**shared, "annotations": records}
            side.dataset = dataset
            side.createIndex()
        evaluation = COCOeval(*sides, iouType=kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats
