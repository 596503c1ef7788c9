"""Tests about tabletop scenes as pictures and JSONL files, in the form of `vla.data.annotated`.

pictures/00007.png        masks/00007.png
questions.jsonl           of each kind of `tabletop_questions` one a scene, the kind as group
captions.jsonl            one a scene
detect.jsonl              up to four things of a scene
segment.jsonl             one thing of a scene and its mask
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from backbone import tasks
from envs.make import TABLETOP
from envs.tabletop.render import render
from envs.tabletop.scene import Scene, sample_scene
from envs.tabletop.truth import boxes, masks
from vla.data.tabletop_questions import KINDS, ask
from vla.data.tabletop_text import caption
from vla.data.tabletop_vlm import some_names

FILES = ("questions", "captions", "detect", "segment")
Line = dict[str, Any]


def write_annotated(
    env_id: str, scenes: int, root: str | Path, *, seed: int, image_size: int, progress: bool = True
) -> Path:
    """Write tests about random scenes of `env_id` to the new folder `root`, complete or not at all.

    The i-th scene and what is asked about it are a pure function of (seed, i), drawn as
    `TabletopVLM` draws its examples. Boxes and masks are the truth, not rounded to tokens or codes.
    image_size: of the top camera's pictures and masks, pixels.
    Returns `root`. Raises FileExistsError if there is something at `root`, ValueError for an
    environment that isn't a tabletop.
    """
    root = Path(root)
    if env_id not in TABLETOP:
        raise ValueError(
            f"nothing is known to ask about {env_id!r}; known are {', '.join(TABLETOP)}"
        )
    if root.exists():
        raise FileExistsError(f"{root} exists already; delete it or choose another folder")
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    try:
        for folder in ("pictures", "masks"):
            (partial / folder).mkdir(parents=True)
        lines: dict[str, list[Line]] = {name: [] for name in FILES}
        for i in tqdm(range(scenes), "scenes", disable=None if progress else True):
            rng = np.random.default_rng((seed, i))
            scene = sample_scene(rng, TABLETOP[env_id]).with_random_gripper(rng)
            for name, more in _about(scene, rng, f"{i:05d}.png", image_size, partial).items():
                lines[name] += more
        for name in FILES:
            text = "".join(json.dumps(line) + "\n" for line in lines[name])
            (partial / f"{name}.jsonl").write_text(text, encoding="utf-8")
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _about(
    scene: Scene, rng: np.random.Generator, file: str, size: int, root: Path
) -> dict[str, list[Line]]:
    """What is asked about a scene, by test; its picture and a mask are written under `root`."""
    picture = {"image": f"pictures/{file}"}
    Image.fromarray(render(scene, "top", size)).save(root / "pictures" / file)
    places = {
        name: [size * min(max(edge, 0.0), 1.0) for edge in (x0, y0, x1, y1)]  # they err by 1e-17
        for name, (y0, x0, y1, x1) in boxes(scene, "top").items()
    }
    questions = [ask(scene, rng, kind) for kind in KINDS]
    wanted = some_names(places, rng, 4)
    visible = masks(scene, "top", size)
    thing = sorted(visible)[rng.integers(len(visible))]
    Image.fromarray(visible[thing]).save(root / "masks" / file)
    masked = {"label": thing, "box": places[thing], "mask": f"masks/{file}"}
    return {
        "questions": [
            {**picture, "question": q.text, "suffix": q.answer, "group": q.kind} for q in questions
        ],
        "captions": [{**picture, "suffix": caption(scene)}],
        "detect": [{**picture, "objects": [{"label": n, "box": places[n]} for n in wanted]}],
        "segment": [{**picture, "prefix": tasks.segment([thing]), "objects": [masked]}],
    }
