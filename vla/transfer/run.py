"""A transfer: a published row of `vla.transfer.table`, a checkpoint and a folder of examples."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbone.mask_codec import CODEC, VAE_OID, codec_beside
from backbone.pretrained import read_config
from backbone.vlm import VLM
from vla.config import OptimConfig, overridden
from vla.data.annotated import Annotated, read_annotated
from vla.data.image_text.example import told
from vla.data.image_text.formats import Prefixed, Refer
from vla.data.image_text.frames import Frames
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.mixture import MixtureData, Part
from vla.evaluation.evaluate_vlm import evaluate_vlm, save_vlm_evaluation
from vla.evaluation.vlm_tasks import MASK_TASK, TASKS, referring_masks
from vla.metrics import Score
from vla.training.loop import train
from vla.training.optimiser import BIG_VISION_DECAY
from vla.training.schedule import Schedule
from vla.training.stage_job import StageConfig
from vla.transfer.table import GRID, Settings, Transfer, settings, transfer

__all__ = ["Request", "run_transfer", "split_file", "stage", "variants"]


@dataclass(frozen=True)
class Request:
    """What is asked for. task: a name of `TRANSFERS`. resolution: of the pictures, pixels, and of
    the checkpoint `init`. data: a folder with train.jsonl and `split`.jsonl. recipe: the resolution
    whose settings to take, where it is another. few: so many examples of the training split, drawn
    by the run's seed.
    """

    task: str
    resolution: int
    init: Path
    data: Path
    output_dir: Path
    split: str = "val"
    recipe: int | None = None
    few: int | None = None
    tokenizer: Path | None = None


def split_file(folder: Path, split: str) -> Path:
    """`folder`/`split`.jsonl. Raises FileNotFoundError, with what is there, if it is missing."""
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        held = ", ".join(sorted(p.name for p in folder.glob("*.jsonl"))) or "no .jsonl files"
        raise FileNotFoundError(
            f"the split {split!r} is missing: no {path}; {folder} holds {held}. Name another one "
            "with --split, or put the examples there"
        )
    return path


def stage(request: Request, chosen: Settings, seed: int = 0) -> StageConfig:
    """The run: a cosine to zero after 5 % of linear warm-up, Adam, clipping at 1.

    Its steps are `chosen.epochs` passes over the training split; where that has fewer examples than
    a batch, they are the batch. Raises ValueError or FileNotFoundError for a task, split or
    checkpoint that isn't there or doesn't fit.
    """
    row = transfer(request.task)
    train, validation = (split_file(request.data, split) for split in ("train", request.split))
    model = read_config(request.init)
    if model.resolution != request.resolution:
        raise ValueError(
            f"{request.init} is a PaliGemma of {model.resolution} pixels, but --resolution is "
            f"{request.resolution}; give the checkpoint of that resolution"
        )
    ask, lines = asking(request), read_annotated(train)
    for line in lines:
        ask.prompt(told(line))
        if not (line.suffixes or (isinstance(ask, Refer) and line.objects)):
            raise ValueError(f"{line.where}: expected a suffix to answer with")
    part = Part(
        request.task,
        Jsonl(train, request.few, seed),
        ask,
        validation=Jsonl(validation),
        frames=_frames(row, lines),
    )
    count = request.few or len(lines)
    batch = min(chosen.batch, count)
    return StageConfig(
        output_dir=request.output_dir,
        model=model,
        data=MixtureData((part,)),
        init=request.init,
        tokenizer=request.tokenizer,
        text_length=row.length,
        label_smoothing=chosen.smoothing,
        dropout=chosen.dropout,
        freeze=("vision",) if chosen.frozen else (),
        steps=max(1, round(chosen.epochs * count / batch)),
        batch_size=batch,
        optim=OptimConfig(
            lr=chosen.lr,
            betas=(0.9, 0.999),
            weight_decay=chosen.decay,
            decay=BIG_VISION_DECAY,
            decay_by_rate=False,
            schedule=Schedule(warmup_share=0.05),
        ),
        ema=None,
        seed=seed,
    )


def asking(request: Request) -> Prefixed | Refer:
    """How the task's examples are put. Raises ValueError where it needs a mask codec and the
    checkpoint has none."""
    row = transfer(request.task)
    if row.metric != MASK_TASK:
        return Prefixed(row.ask, row.lower)
    codec = codec_beside(request.init)
    if codec is None:
        raise ValueError(
            f"{request.task} is answered with masks, but there is no codec for them beside "
            f"{request.init}; put {VAE_OID} or {CODEC} there"
        )
    return Refer(codec)


def _frames(row: Transfer, lines: Iterable[Annotated]) -> Frames | None:
    """Which frames are shown of films; examples of pictures show all of these."""
    films = any(line.video is not None for line in lines)
    return Frames(row.frames, row.stride) if films else None


def variants(chosen: Settings, axes: Sequence[str]) -> dict[str, Settings]:
    """`chosen` at every point of the paper's grid over `axes`, by a name for its folder.

    Raises ValueError for an axis that the grid doesn't have.
    """
    unknown = [axis for axis in axes if axis not in GRID]
    if unknown:
        raise ValueError(f"no axis {unknown[0]!r} to sweep; there are {', '.join(GRID)}")
    found = {}
    for point in itertools.product(*(GRID[axis] for axis in axes)):
        fields = dict(zip(axes, point, strict=True))
        name = "_".join(f"{axis}={value:g}" for axis, value in fields.items()) or "published"
        if "decay" in fields:
            fields["decay"] *= fields.get("lr", chosen.lr)
        found[name] = replace(chosen, **fields)
    return found


def run_transfer(
    request: Request,
    *,
    seeds: int = 1,
    sweep: Sequence[str] = (),
    overrides: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Train and score every variant with every seed; what is done already is only scored again.

    overrides: fields of the runs' `StageConfig`, as on a command line.
    Writes scores.json and predictions.jsonl into each run's folder, and transfer.json, a row for
    each variant with the mean and spread of its first score over seeds, into `request.output_dir`.
    Returns these rows.
    """
    chosen = settings(request.task, request.recipe or request.resolution)
    words, rows = list(overrides), []
    for name, point in variants(chosen, sweep).items():
        scores = []
        for seed in range(seeds):
            parts = [*([name] if sweep else []), *([f"seed{seed}"] if seeds > 1 else [])]
            folder = request.output_dir.joinpath(*parts)
            config = stage(replace(request, output_dir=folder), point, seed)
            config = overridden(config, words, f"vla transfer {request.task}")
            scores.append(score(request, config, train(config, resume=True)))
        values = [each[0].value for each in scores]
        spread = statistics.stdev(values) if len(values) > 1 else None
        mean = statistics.fmean(values)
        rows.append(
            {"variant": name, "metric": scores[0][0].name, "mean": mean, "spread": spread}
            | {"values": values}
        )
    path = request.output_dir / "transfer.json"
    content = {"task": request.task, "init": str(request.init), "few": request.few, "rows": rows}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return rows


def score(request: Request, config: StageConfig, folder: Path) -> tuple[Score, ...]:
    """Put the examples of the split to the model in `folder`, with the published decoding."""
    row, ask = transfer(request.task), asking(request)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    vlm = VLM.from_pretrained(folder, device=device, dtype="float32")
    if row.metric == MASK_TASK:
        assert vlm.codec is not None, "the run saved none beside its result"
        task = referring_masks(vlm.codec.outline)
    else:
        task = TASKS[row.metric]
    task = replace(task, prompt=lambda line: ask.prompt(told(line)), beams=row.beams)
    examples = read_annotated(split_file(request.data, request.split))
    frames = _frames(row, examples)

    def generate(images: list[list[np.ndarray]], prompts: list[str]) -> list[str]:
        shown = images if frames is None else [frames(film) for film in images]
        options = {"max_new_tokens": task.max_new_tokens, "beams": task.beams}
        return vlm.generate(shown, prompts, **options)

    evaluation = evaluate_vlm(task, examples, generate)
    save_vlm_evaluation(evaluation, config.output_dir, {"task": request.task})
    return evaluation.scores
