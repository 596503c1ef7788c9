"""The published transfers of PaliGemma as data: arXiv 2407.07726, appendix J.

Prompts and text lengths are those of big_vision's transfer configs
(`configs/proj/paligemma/transfers/`), which the appendix doesn't print. A resolution without
settings was not published for its task.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GRID", "START", "TRANSFERS", "Settings", "Transfer", "settings", "transfer"]


@dataclass(frozen=True)
class Settings:
    """epochs: passes over the examples. batch: examples of an update. lr: at its highest. decay: of
    the kernels, not times the rate. dropout, smoothing: of the language model and the labels.
    frozen: whether the image encoder stays as it is."""

    epochs: float
    batch: int
    lr: float
    decay: float = 0.0
    dropout: float = 0.0
    smoothing: float = 0.0
    frozen: bool = False


@dataclass(frozen=True)
class Transfer:
    """settings: by resolution, pixels. metric: how it is scored, a name of
    `vla.evaluation.vlm_tasks.TASKS`, or `MASK_TASK`. length: text tokens. ask: the prompt, of an
    example's {question} or {label}; None: every example brings its own as `prefix`. beams: of the
    published decoding. frames: pictures of an example; of a film every `stride`-th frame, None:
    spread over it. lower: answers are trained in lower case. note: what else is to be known.
    """

    settings: Mapping[int, Settings]
    metric: str
    length: int
    ask: str | None = "answer en {question}"
    beams: int = 1
    frames: int = 1
    stride: int | None = None
    lower: bool = False
    note: str = ""


def _at(
    resolutions: tuple[int, ...], epochs: float, batch: int, lr: float, decay: float = 0.0, **more
) -> dict[int, Settings]:
    return {size: Settings(epochs, batch, lr, decay, **more) for size in resolutions}


LOW, BOTH, ALL = (224,), (224, 448), (224, 448, 896)
CAPTION, QUESTION = "caption en", "{question}"
START = Settings(10, 256, 1e-5)  # where the paper says to begin with a new task
GRID: dict[str, tuple] = {  # what the paper searched
    "epochs": (1, 3, 10, 30, 100),
    "lr": (3e-5, 1e-5, 3e-6),
    "smoothing": (0.0, 0.1, 0.3),
    "dropout": (0.0, 0.1, 0.3),
    "decay": (0.0, 0.1),  # times the rate
    "frozen": (False, True),
}

TRANSFERS: dict[str, Transfer] = {
    "cococap": Transfer(_at(BOTH, 5, 256, 1e-5, 1e-6), "cococap", 32, CAPTION, beams=2),
    "coco35l": Transfer(
        _at(BOTH, 25, 256, 1e-5, 1e-6),
        "xm3600",
        32,
        None,
        note='prefix is "caption {lang}"; 25 epochs are 5 of each of five captions',
    ),
    "screen2words": Transfer(
        _at(BOTH, 10, 256, 1e-5, dropout=0.3, smoothing=0.2), "screen2words", 24, CAPTION
    ),
    "textcaps": Transfer(
        _at(BOTH, 5, 256, 1e-5, 1e-6), "textcaps", 32, CAPTION, beams=3, lower=True
    ),
    "scicap": Transfer(_at(BOTH, 80, 256, 3e-5, dropout=0.1, smoothing=0.1), "scicap", 96, CAPTION),
    "widgetcap": Transfer(
        _at(BOTH, 4, 64, 3e-6, 3e-7, dropout=0.1, smoothing=0.1),
        "widgetcap",
        32,
        CAPTION,
        note="the widget's box is drawn into the picture in red",
    ),
    "vqav2": Transfer(
        {224: Settings(10, 256, 1e-5, 1e-6), 448: Settings(10, 256, 1e-5)}, "vqav2", 32
    ),
    "okvqa": Transfer(_at(BOTH, 10, 128, 5e-6), "okvqa", 32),
    "aokvqa-mc": Transfer(
        _at(BOTH, 15, 128, 5e-6),
        "aokvqa-mc",
        128,
        None,
        note='prefix is "answer en  {question} choose from: \\t " and choices, " \\t " in between',
    ),
    "aokvqa-da": Transfer(_at(BOTH, 10, 128, 5e-6), "aokvqa-da", 32),
    "gqa": Transfer(
        {224: Settings(1, 256, 1e-5), 448: Settings(1, 256, 1e-5, frozen=True)}, "gqa", 32
    ),
    "nlvr2": Transfer(
        {224: Settings(3, 256, 1e-5, 1e-6), 448: Settings(10, 256, 3e-6, 3e-7)},
        "nlvr2",
        64,
        frames=2,
    ),
    "ai2d": Transfer(
        _at(BOTH, 10, 256, 1e-5, 1e-6), "ai2d", 128, None, note="prefix as for aokvqa-mc"
    ),
    "scienceqa": Transfer(
        _at(BOTH, 20, 128, 1e-5, frozen=True),
        "scienceqa",
        512,
        None,
        note='prefix ends in "Answer:", the suffix is "The answer is A."',
    ),
    "rsvqa-lr": Transfer(_at(BOTH, 3, 256, 3e-6, smoothing=0.2), "rsvqa", 32, lower=True),
    "rsvqa-hr": Transfer(_at(BOTH, 1, 256, 1e-5), "rsvqa", 32, lower=True),
    "chartqa": Transfer(
        _at(BOTH, 30, 256, 1e-5, 1e-6, dropout=0.1, smoothing=0.2), "chartqa", 48, QUESTION
    ),
    "vizwiz": Transfer(_at(BOTH, 10, 256, 1e-5), "vizwiz", 48),
    "tallyqa": Transfer(
        {
            224: Settings(2, 256, 1e-5),
            448: Settings(2, 256, 1e-5, 1e-6),
            896: Settings(2, 256, 7e-6, 7e-7),
        },
        "tallyqa",
        32,
    ),
    "ocrvqa": Transfer({**_at(BOTH, 3, 128, 3e-6), 896: Settings(3, 128, 1e-5)}, "ocrvqa", 32),
    "textvqa": Transfer(
        {
            224: Settings(5, 256, 3e-6),
            448: Settings(10, 256, 3e-6, 3e-7),
            896: Settings(10, 256, 3e-6),
        },
        "textvqa",
        32,
    ),
    "docvqa": Transfer(_at(ALL, 10, 256, 1e-5, 1e-6), "docvqa", 32, QUESTION),
    "infovqa": Transfer(
        {
            224: Settings(3, 256, 1e-5, 1e-6, smoothing=0.4),
            448: Settings(3, 128, 1e-5, 1e-6, smoothing=0.4),
            896: Settings(3, 32, 3e-6, 3e-7, smoothing=0.4),
        },
        "infovqa",
        48,
        lower=True,
    ),
    "stvqa": Transfer(
        {
            224: Settings(3, 256, 1e-5, 1e-6, smoothing=0.1),
            448: Settings(3, 128, 1e-5, 1e-6, smoothing=0.1),
            896: Settings(3, 32, 3e-6, 3e-7, smoothing=0.1),
        },
        "stvqa",
        48,
        lower=True,
    ),
    "refcoco": Transfer(
        {
            224: Settings(100, 256, 3e-5, dropout=0.1, smoothing=0.3),
            448: Settings(100, 256, 1e-5, smoothing=0.3),
            896: Settings(100, 64, 1e-5, smoothing=0.3),
        },
        "refcoco-masks",
        48,
        "{label}",
        note="the answer is four <loc> and sixteen <seg>; mIoU of masks, then boxes",
    ),
    "activitynet-qa": Transfer(_at(LOW, 1, 128, 1e-5, 1e-6), "gqa", 64, frames=16, stride=70),
    "activitynet-cap": Transfer(
        _at(LOW, 1, 128, 1e-5, 1e-6, frozen=True),
        "xm3600",
        64,
        CAPTION,
        frames=16,
        stride=30,
    ),
    "msrvtt-qa": Transfer(_at(LOW, 1, 128, 1e-5, frozen=True), "gqa", 64, frames=16, stride=9),
    "msrvtt-cap": Transfer(_at(LOW, 20, 128, 1e-5, frozen=True), "xm3600", 32, CAPTION, frames=16),
    "msvd-qa": Transfer(_at(LOW, 1, 128, 3e-6, 3e-7), "gqa", 64, frames=8, stride=26),
    "vatex": Transfer(_at(LOW, 10, 128, 3e-6, 3e-7), "xm3600", 64, CAPTION, frames=16, stride=7),
}


def transfer(task: str) -> Transfer:
    """The row of a task. Raises ValueError, with the nearest names, for an unknown one."""
    if task not in TRANSFERS:
        near = difflib.get_close_matches(task, TRANSFERS, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown task {task!r}; {hint}known are {' '.join(TRANSFERS)}")
    return TRANSFERS[task]


def settings(task: str, resolution: int) -> Settings:
    """The published ones. Raises ValueError where there are none for this resolution."""
    row = transfer(task)
    if resolution not in row.settings:
        published = ", ".join(map(str, row.settings))
        raise ValueError(
            f"no settings of {task} were published for {resolution} pixels, only for {published}; "
            "choose whose to take with --recipe"
        )
    return row.settings[resolution]
