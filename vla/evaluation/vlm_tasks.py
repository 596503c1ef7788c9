"""The image-text tests that PaliGemma is judged by: what each asks, reads and compares.

A task is plain data and knows no model. Prompts, decoding and metrics are those of big_vision's
transfer configs (`configs/proj/paligemma/transfers/`) and of arXiv 2407.07726, appendix J.
VizWiz is scored as on its server, with VQA accuracy, where big_vision's config takes OKVQA's rule.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from backbone import tasks
from backbone.detections import parse_detections
from vla.data.annotated import Annotated
from vla.metrics import (
    Detection,
    Rule,
    Score,
    all_right,
    anls_lower,
    answer_score,
    box_accuracy,
    by_group,
    caption_scores,
    choice_match,
    exact_match,
    lower_match,
    macro_average,
    mean_average_precision,
    mean_mask_iou,
    mean_score,
    number_match,
    paste_mask,
    relaxed_match_lower,
    soft_accuracy,
    vqa_accuracy,
)

MASK_TASK = "refcoco-masks"  # RefCOCO by masks too: `referring_masks`, which needs a mask decoder

DecodeMasks = Callable[[np.ndarray], np.ndarray]  # codes int [N, 16] → float32 [N, 64, 64]


@dataclass(frozen=True)
class VLMTask:
    """What a test is made of.

    prompt: example → text, unless the example has a prefix, which is the prompt then. parse:
    generated text, example → what `score` takes. check raises ValueError for an example that lacks
    what `score` compares with. max_new_tokens, beams: how its published numbers were decoded.
    """

    prompt: Callable[[Annotated], str]
    parse: Callable[[str, Annotated], Any]
    score: Callable[[Sequence[Annotated], Sequence[Any]], tuple[Score, ...]]
    check: Callable[[Annotated], None]
    max_new_tokens: int = 32
    beams: int = 1


# What a task asks


def caption_prompt(example: Annotated) -> str:
    """`caption en`; for another language give the whole prompt as prefix."""
    return tasks.caption()


def answer_prompt(example: Annotated) -> str:
    return tasks.answer(_question(example))


def question_prompt(example: Annotated) -> str:
    """The question alone (ChartQA, DocVQA)."""
    return _question(example)


def detect_prompt(example: Annotated) -> str:
    """`detect cat ; dog`: each label of the picture once, in alphabetical order."""
    return tasks.detect(sorted({o.label for o in example.objects}))


def label_prompt(example: Annotated) -> str:
    """The one object's label alone: RefCOCO's referring expression."""
    return example.objects[0].label


def own_prompt(example: Annotated) -> str:
    """No prompt but the example's prefix (multiple choice, whose choices belong to the prompt)."""
    raise ValueError(f'{example.where}: expected "prefix", the whole prompt, for this task')


# How its answer is read


@dataclass(frozen=True)
class Referred:
    """The place of one object: its box in pixels and its mask's 16 codes, where asked for."""

    box: tuple[float, float, float, float]
    codes: tuple[int, ...]


def read_text(text: str, example: Annotated) -> str:
    """The text as it is."""
    return text


def read_objects(text: str, example: Annotated) -> list[Detection]:
    """The things of an answer to "detect …", boxes in pixels of the picture.

    What isn't well-formed is left out, as `parse_detections` does.
    """
    items, (width, height) = parse_detections(text).items, example.size
    return [Detection(item.name, item.box.pixels((height, width))) for item in items]


def read_referred(text: str, example: Annotated, codes: int) -> Referred | None:
    """The box, and with `codes` = 16 the mask, that `text` starts with; None unless it is valid.

    Source: big_vision `segmentation.py`: the first tokens count, whatever follows them.
    """
    start = re.match(rf"(<loc[0-9]{{4}}>){{4}}(<seg[0-9]{{3}}>){{{codes}}}", text)
    items = parse_detections(start[0]).items if start else ()
    if not items or len(items[0].codes or ()) != codes:
        return None
    width, height = example.size
    return Referred(items[0].box.pixels((height, width)), items[0].codes or ())


# What it is compared with


def score_captions(examples: Sequence[Annotated], texts: Sequence[str]) -> tuple[Score, ...]:
    """CIDEr-D, BLEU-4, ROUGE-L over all of an example's suffixes."""
    return caption_scores(texts, [e.suffixes for e in examples])


def score_answers(
    examples: Sequence[Annotated], texts: Sequence[str], name: str, rule: Rule
) -> tuple[Score, ...]:
    """The mean of `rule`; each group's and the groups' plain average where all examples have one;
    the share of sets that are right throughout where all examples have one.
    """
    score = answer_score(name, rule, texts, [e.suffixes for e in examples])
    groups = [e.group for e in examples if e.group is not None]
    sets = [e.set for e in examples if e.set is not None]
    scores = [score]
    if len(groups) == len(examples):
        parts = by_group(score, groups)
        scores += [*parts, macro_average(f"{name}, mean of groups", parts)]
    if len(sets) == len(examples):
        scores.append(all_right(f"{name}, whole sets", score, sets))
    return tuple(scores)


def score_objects(
    examples: Sequence[Annotated], found: Sequence[Sequence[Detection]]
) -> tuple[Score, ...]:
    """COCO's mAP of boxes, every prediction equally confident."""
    truth = [[Detection(o.label, o.box, crowd=o.crowd) for o in e.objects] for e in examples]
    return mean_average_precision(found, truth)


def score_referred_boxes(
    examples: Sequence[Annotated], found: Sequence[Referred | None]
) -> tuple[Score, ...]:
    """Box accuracy at IoU 0.5 and 0.75, and the share of answers that could be read."""
    boxes = [None if f is None else f.box for f in found]
    truth = [e.objects[0].box for e in examples]
    valid = mean_score("valid answers", [float(f is not None) for f in found])
    return *(box_accuracy(boxes, truth, threshold) for threshold in (0.5, 0.75)), valid


def score_referred_masks(
    examples: Sequence[Annotated], found: Sequence[Referred | None], decode: DecodeMasks
) -> tuple[Score, ...]:
    """RefCOCO's mIoU, then what `score_referred_boxes` gives."""
    valid = [f for f in found if f is not None]
    small = iter(decode(np.array([f.codes for f in valid])) if valid else ())
    masks = []
    for example, f in zip(examples, found, strict=True):
        width, height = example.size
        masks.append(None if f is None else paste_mask(next(small), f.box, height, width))
    truth = [e.objects[0].read_mask() for e in examples]
    return mean_mask_iou(masks, truth), *score_referred_boxes(examples, found)


# What an example must have: these raise ValueError


def has_answers(example: Annotated, least: int = 1) -> None:
    if len(example.suffixes) < least:
        wanted = "an answer" if least == 1 else f"at least {least} people's answers"
        raise ValueError(f"{example.where}: expected {wanted} as suffixes")


def has_objects(example: Annotated) -> None:
    if not example.objects:
        raise ValueError(f'{example.where}: expected "objects" to be found')


def has_one_object(example: Annotated, mask: bool) -> None:
    if len(example.objects) != 1 or (mask and example.objects[0].mask is None):
        raise ValueError(f"{example.where}: expected one object" + " with a mask" * mask)


def answers(
    name: str,
    rule: Rule,
    prompt: Callable[[Annotated], str] = answer_prompt,
    max_new_tokens: int = 32,
    least: int = 1,
) -> VLMTask:
    """A task of questions whose answers are compared by `rule`."""
    score = partial(score_answers, name=name, rule=rule)
    return VLMTask(prompt, read_text, score, partial(has_answers, least=least), max_new_tokens)


def captions(max_new_tokens: int = 32, beams: int = 1) -> VLMTask:
    """A task of captions."""
    return VLMTask(caption_prompt, read_text, score_captions, has_answers, max_new_tokens, beams)


def referring_masks(decode: DecodeMasks) -> VLMTask:
    """RefCOCO's segmentation. decode: the mask decoder, codes → masks that are > 0 inside."""
    read = partial(read_referred, codes=16)
    score = partial(score_referred_masks, decode=decode)
    return VLMTask(label_prompt, read, score, partial(has_one_object, mask=True), 48)


REFERRING_BOXES = VLMTask(
    label_prompt,
    partial(read_referred, codes=0),
    score_referred_boxes,
    partial(has_one_object, mask=False),
    48,
)

TASKS: dict[str, VLMTask] = {
    "cococap": captions(beams=2),
    "nocaps": captions(beams=2),
    "textcaps": captions(beams=3),
    "screen2words": captions(24),
    "scicap": captions(96),
    "widgetcap": captions(),
    "xm3600": captions(),
    "vqav2": answers("VQA accuracy", vqa_accuracy, least=2),
    "textvqa": answers("VQA accuracy", vqa_accuracy, least=2),
    "vizwiz": answers("VQA accuracy", vqa_accuracy, max_new_tokens=48, least=2),
    "okvqa": answers("accuracy", soft_accuracy),
    "aokvqa-da": answers("accuracy", soft_accuracy),
    "aokvqa-mc": answers("accuracy", exact_match, own_prompt, 128),
    "ai2d": answers("accuracy", exact_match, own_prompt, 128),
    "scienceqa": answers("accuracy", choice_match, own_prompt, 512),
    "gqa": answers("accuracy", exact_match),
    "nlvr2": answers("accuracy", exact_match, max_new_tokens=64),
    "marvl": answers("accuracy", exact_match, max_new_tokens=64),
    "pope": answers("accuracy", lower_match, max_new_tokens=48),
    "rsvqa": answers("accuracy", lower_match),
    "ocrvqa": answers("accuracy", lower_match),
    "tallyqa": answers("accuracy", number_match),
    "countbenchqa": answers("accuracy", number_match),
    "chartqa": answers("relaxed accuracy", relaxed_match_lower, question_prompt, 48),
    "docvqa": answers("ANLS", anls_lower, question_prompt),
    "infovqa": answers("ANLS", anls_lower, max_new_tokens=48),
    "stvqa": answers("ANLS", anls_lower, max_new_tokens=48),
    "refcoco": REFERRING_BOXES,
    "detect": VLMTask(detect_prompt, read_objects, score_objects, has_objects, 256),
}


def _question(example: Annotated) -> str:
    if example.question is None:
        raise ValueError(f'{example.where}: expected "question" (or "prefix", the whole prompt)')
    return example.question
