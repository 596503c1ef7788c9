"""Put an image-text test to a model, given as a function, and keep what it said."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.annotated import Annotated
from vla.evaluation.vlm_tasks import VLMTask
from vla.metrics import Score, save_scores, score_table

Pictures = list[np.ndarray]  # of one prompt, uint8 RGB [H, W, 3] each
Generate = Callable[[list[Pictures], list[str]], list[str]]

BATCH = 16


@dataclass(frozen=True)
class VLMEvaluation:
    """The examples of one test, what was asked and generated for each, and the scores."""

    examples: tuple[Annotated, ...]
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    scores: tuple[Score, ...]

    def table(self) -> str:
        return score_table(self.scores)


def evaluate_vlm(
    task: VLMTask, examples: Sequence[Annotated], generate: Generate, batch: int = BATCH
) -> VLMEvaluation:
    """Ask `generate` about all examples, `batch` at a time, and score what it says.

    Raises ValueError for an example that lacks what the task asks about or compares with, before
    anything is generated, and where `generate` gives another number of texts than of prompts.
    """
    prompts = [_prompt(task, e) for e in examples]
    texts: list[str] = []
    for start in range(0, len(examples), batch):
        group = examples[start : start + batch]
        asked = prompts[start : start + batch]
        said = generate([e.read_images() for e in group], asked)
        if len(said) != len(asked):
            raise ValueError(f"expected {len(asked)} texts from generate, got {len(said)}")
        texts += said
    parsed = [task.parse(text, e) for text, e in zip(texts, examples, strict=True)]
    scores = task.score(examples, parsed)
    return VLMEvaluation(tuple(examples), tuple(prompts), tuple(texts), scores)


def save_vlm_evaluation(
    evaluation: VLMEvaluation, folder: Path, settings: dict[str, Any] | None = None
) -> None:
    """Write `scores.json` and, a line per example, `predictions.jsonl` to `folder`."""
    save_scores(evaluation.scores, folder / "scores.json", settings or {})
    columns = (evaluation.examples, evaluation.prompts, evaluation.texts)
    lines = [
        {"images": [str(i) for i in e.images], "prompt": p, "text": t, "references": e.suffixes}
        for e, p, t in zip(*columns, strict=True)
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "predictions.jsonl").write_text(text + "\n", encoding="utf-8")


def _prompt(task: VLMTask, example: Annotated) -> str:
    task.check(example)
    return task.prompt(example) if example.prefix is None else example.prefix
