"""Boxes, masks and COCO's mAP: by hand, and against values of pycocotools."""

import numpy as np
import pytest

from vla.metrics import (
    Detection,
    box_accuracy,
    box_iou,
    mask_iou,
    mean_average_precision,
    mean_mask_iou,
    paste_mask,
)


def test_box_overlap():
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert box_iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0


def test_box_accuracy_counts_the_threshold_itself_and_misses():
    truth = [(0.0, 0.0, 2.0, 2.0)] * 3
    score = box_accuracy([(0, 0, 2, 1), (0, 0, 1, 1), None], truth)
    assert (score.name, score.per_example) == ("box accuracy@0.5", (1, 0, 0))
    assert box_accuracy([(0, 0, 2, 1)], truth[:1], 0.75).value == 0


def test_mask_overlap_and_its_mean():
    left, top, empty = np.zeros((3, 2, 2), dtype=bool)
    left[:, 0] = top[0] = True
    assert mask_iou(left, top) == pytest.approx(1 / 3)
    assert mask_iou(empty, empty) == 0
    score = mean_mask_iou([left, None], [top, top])
    assert (score.name, score.value) == ("mIoU", pytest.approx(1 / 6))


def test_a_small_mask_fills_its_box_cut_to_whole_pixels():
    mask = paste_mask(np.ones((64, 64), dtype=np.float32), (1.9, 2.2, 4.9, 3.7), 6, 8)
    assert mask is not None
    expected = np.zeros((6, 8), dtype=bool)
    expected[2:3, 1:4] = True
    np.testing.assert_array_equal(mask, expected)
    assert paste_mask(np.ones((64, 64), dtype=np.float32), (1.2, 1, 1.9, 5), 6, 8) is None


def test_a_small_mask_is_resized_before_it_is_thresholded():
    small = np.full((64, 64), -1, dtype=np.float32)
    small[:, :32] = 1  # the left half
    mask = paste_mask(small, (0, 0, 4, 2), 2, 4)
    assert mask is not None
    np.testing.assert_array_equal(mask, [[True, True, False, False]] * 2)


def objects(*boxes, label="cat", **fields):
    return [Detection(label, box, **fields) for box in boxes]


def test_perfect_boxes_have_map_one_and_none_have_zero():
    truth = [objects((0, 0, 9, 9)), objects((5, 5, 20, 30), label="dog")]
    assert [s.value for s in mean_average_precision(truth, truth)] == pytest.approx([1, 1, 1])
    assert [s.value for s in mean_average_precision([[], []], truth)] == [0, 0, 0]


def test_map_averages_over_labels_and_thresholds():
    # the cat's box has IoU 0.8 (right at 7 of 10 thresholds), the dog isn't found
    truth = [objects((0, 0, 10, 10)) + objects((50, 50, 60, 60), label="dog")]
    found = [objects((0, 0, 10, 8)) + objects((0, 0, 5, 5), label="bird")]
    scores = mean_average_precision(found, truth)
    assert [s.name for s in scores] == ["mAP@[.5:.95]", "mAP@.5", "mAP@.75"]
    assert [s.value for s in scores] == pytest.approx([0.35, 0.5, 0.5])
    assert all(s.n == 1 and s.interval is None for s in scores)


def test_a_more_confident_wrong_box_halves_the_precision():
    truth = [objects((0, 0, 10, 10))]
    right, wrong = (0, 0, 10, 10), (50, 50, 60, 60)
    first = [objects(wrong, confidence=0.9) + objects(right, confidence=0.5)]
    last = [objects(wrong, confidence=0.1) + objects(right, confidence=0.5)]
    assert mean_average_precision(first, truth)[1].value == pytest.approx(0.5)
    assert mean_average_precision(last, truth)[1].value == pytest.approx(1)


def test_a_crowd_counts_neither_way():
    truth = [objects((0, 0, 10, 10)) + objects((20, 20, 60, 60), crowd=True)]
    found = [objects((20, 20, 30, 30), confidence=0.9) + objects((0, 0, 10, 10), confidence=0.5)]
    assert mean_average_precision(found, truth)[0].value == pytest.approx(1)


def test_map_of_a_random_set_has_the_values_of_pycocotools_on_json_files():
    # pycocotools 2.0.11 and faster-coco-eval 1.8.0 both gave these for the same objects, saved in
    # COCO's format and read back with loadRes
    truth, found = random_set()
    boxes = [s.value for s in mean_average_precision(found, truth)]
    assert boxes == pytest.approx([0.31395219368187066, 0.7529107077374404, 0.12959192535794933])
    masks = [s.value for s in mean_average_precision(found, truth, "segm")]
    assert masks == pytest.approx([0.30477490066338425, 0.7302700508146053, 0.1195363955134669])
    equal = [[Detection(d.label, d.box) for d in picture] for picture in found]
    values = [s.value for s in mean_average_precision(equal, truth)]
    assert values == pytest.approx([0.3193969181858478, 0.7503274136937504, 0.14178466165944323])


def random_set():
    """25 pictures with ellipses of three kinds, found with some noise."""
    rng, labels = np.random.default_rng(3), ("cat", "dog", "cup")

    def box():
        (x, y), (w, h) = rng.uniform(0, 70, 2), rng.uniform(4, 25, 2)
        return x, y, x + w, y + h

    truth, found = [], []
    for _ in range(25):
        true_objects, found_objects = [], []
        for _ in range(rng.integers(0, 5)):
            label, place = labels[rng.integers(3)], box()
            crowd = bool(rng.random() < 0.1)
            true_objects.append(Detection(label, place, ellipse(place), crowd=crowd))
            if rng.random() < 0.8:
                x0, y0, x1, y1 = near = tuple(np.array(place) + rng.normal(0, 1.5, 4))
                if x1 > x0 and y1 > y0:
                    seen = label if rng.random() < 0.9 else labels[0]
                    confidence = float(rng.integers(1, 6) / 5)
                    found_objects.append(Detection(seen, near, ellipse(near), confidence))
        if rng.random() < 0.4:
            label = "bird" if rng.random() < 0.5 else "dog"
            place = box()
            found_objects.append(Detection(label, place, ellipse(place), 0.5))
        truth.append(true_objects)
        found.append(found_objects)
    return truth, found


def ellipse(box, side=96):
    y, x = np.mgrid[:side, :side]
    x0, y0, x1, y1 = box
    across, down = (x - (x0 + x1) / 2) / ((x1 - x0) / 2), (y - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return across**2 + down**2 <= 1


def test_map_says_what_it_misses():
    with pytest.raises(ValueError, match="at least one true object"):
        mean_average_precision([[]], [[]])
    with pytest.raises(ValueError, match="expected a mask of 'cat' in picture 0"):
        mean_average_precision([[]], [objects((0, 0, 1, 1))], "segm")
