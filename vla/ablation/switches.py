"""What PaliGemma's paper compared (arXiv 2407.07726, section 5), as variants of one small run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backbone.design import Design
from backbone.paligemma import PALIGEMMA_SMALL
from backbone.siglip import raw_patches
from vla.ablation.cotrain import policies
from vla.config import OptimConfig, TrainConfig
from vla.data.examples import TabletopData
from vla.training.cotrain_job import CoTrainConfig
from vla.training.schedule import Schedule
from vla.training.stage_job import StageConfig

__all__ = ["SWITCHES", "Sources", "variants"]

FAST = Schedule("rsqrt", warmup=60, timescale=300)
SLOW = Schedule("rsqrt", warmup=300, timescale=300)
LANGUAGE, VISION = ("language", "embedding"), ("vision",)


Run = StageConfig | TrainConfig


@dataclass(frozen=True)
class Sources:
    """Where runs start: stage 0's parts, and for "resolution" a PaliGemma of stage 1, as the small
    configs leave them; for "cotrain" a PaliGemma that answers, demonstrations, and a folder of
    questions."""

    siglip: Path = Path("outputs/paligemma_small/stage0/siglip")
    gemma: Path = Path("outputs/paligemma_small/stage0_text/gemma")
    init: Path = Path("outputs/paligemma_small/stage1/paligemma")
    vlm: Path = Path("outputs/cotrain/start/paligemma")
    demonstrations: Path = Path("outputs/cotrain/dataset")
    texts: Path = Path("outputs/cotrain/vlm")

    def needed(self, run: Run) -> list[Path]:
        """What a run reads before it starts."""
        if isinstance(run, StageConfig):
            return [path for path in (run.init, run.siglip, run.gemma) if path is not None]
        return [run.data.root, *([self.texts] if isinstance(run, CoTrainConfig) else [])]


def base(sources: Sources, steps: int) -> StageConfig:
    """A short stage 1 at small size: what variants differ from."""
    return StageConfig(
        output_dir=Path(),
        model=PALIGEMMA_SMALL,
        data=TabletopData(),
        siglip=sources.siglip,
        gemma=sources.gemma,
        new_rows="ordered",
        text_length=64,
        steps=steps,
        batch_size=32,
        precision="auto",
        optim=OptimConfig(
            lr=1e-3,
            muon_lr=8e-3,
            betas=(0.9, 0.95),
            schedule=FAST,
            schedules=(("vision", SLOW),),
        ),
        ema=None,
        log_every=25,
        eval_every=max(1, steps // 8),
        eval_batches=4,
        save_every=max(1, steps // 4),
        keep=1,
        tensorboard=False,
    )


def variants(name: str, sources: Sources, steps: int) -> Mapping[str, Run]:
    """The runs of a switch by what they are called, the paper's own choice first.

    Raises ValueError, with the nearest names, for an unknown switch, and FileNotFoundError where
    what the runs start from isn't there.
    """
    if name not in SWITCHES:
        near = difflib.get_close_matches(name, SWITCHES, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no switch {name!r}; {hint}there are {', '.join(SWITCHES)}")
    runs = SWITCHES[name](base(sources, steps), sources)
    for run in runs.values():
        for path in sources.needed(run):
            _require(name, path)
    return runs


def _require(name: str, path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"nothing at {path}, where runs of {name} start; make it as docs/recipe.md says, or "
            "give another with --siglip, --gemma, --init, --vlm, --demonstrations or --texts"
        )


def _design(run: StageConfig, **fields: Any) -> StageConfig:
    return replace(run, model=replace(run.model, design=Design(**fields)))


def _optim(run: StageConfig, **fields: Any) -> StageConfig:
    return replace(run, optim=replace(run.optim, **fields))


def _ar_mask(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    return {
        "answer causal": run,
        "prompt causal too": _design(run, causal="text"),
        "all causal": _design(run, causal="all"),
    }


def _loss(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    causal = _design(run, causal="text")
    return {
        "answer": run,
        "answer, causal prompt": causal,
        "prompt and answer, causal prompt": replace(causal, prompt_loss=True),
    }


def _freeze(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    """The language model's letter first, the image encoder's second: Trained, Frozen, Reset."""
    found = {}
    for letters in ("TT", "TF", "FT", "FF", "TR", "RT", "RR"):
        frozen: tuple[str, ...] = ()
        fresh: tuple[str, ...] = ()
        for letter, part in zip(letters, (LANGUAGE, VISION), strict=True):
            frozen += part * (letter == "F")
            fresh += part * (letter == "R")
        schedules = () if "vision" in frozen else run.optim.schedules
        found[letters] = _optim(replace(run, freeze=frozen, fresh=fresh), schedules=schedules)
    return found


def _connector(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    return {"linear": run, "MLP": _design(run, connector=run.model.language.width)}


def _encoder(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    sizes = run.model.vision
    pixels = replace(run.model, vision=raw_patches(sizes.patch, sizes.resolution))
    none = _optim(replace(run, model=pixels, siglip=None), schedules=())
    return {
        "SigLIP": run,
        "none": none,
        "none, projection at 3 × the rate": _optim(none, lr_factors=(("projector", 3.0),)),
        "none, projection at 0.3 × the rate": _optim(none, lr_factors=(("projector", 0.3),)),
    }


def _vision_warmup(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    return {"slow": run, "as the rest": _optim(run, schedules=())}


def _resolution(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    small = run.model.vision.resolution
    start = replace(run, siglip=None, gemma=None, init=sources.init, new_rows="random")
    start = _optim(start, schedules=())
    twice = replace(run.model, vision=replace(run.model.vision, resolution=2 * small))
    large = replace(start, model=twice, init_resolution=small)
    return {
        f"{2 * small}": large,
        f"{small}": start,
        f"{small} enlarged to {2 * small}": _design(large, detail=small),
        f"{2 * small} in four windows": _design(start, windows=2),
    }


def _task_prefix(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    return {"with": run, "without": replace(run, task_prefix=False)}


def _new_rows(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    return {
        "random": replace(run, new_rows="random"),
        "average": replace(run, new_rows="average"),
        "ordered": run,
    }


def _duration(run: StageConfig, sources: Sources) -> dict[str, StageConfig]:
    parts = {f"{run.steps // k} steps": max(1, run.steps // k) for k in (1, 2, 4, 8)}
    return {name: replace(run, steps=steps) for name, steps in parts.items()}


def _cotrain(run: StageConfig, sources: Sources) -> dict[str, TrainConfig]:
    _require("cotrain", sources.vlm)  # whose sizes the runs have
    return policies(sources.vlm, sources.demonstrations, sources.texts, run.steps)


SWITCHES: Mapping[str, Callable[[StageConfig, Sources], Mapping[str, Run]]] = {
    "ar_mask": _ar_mask,
    "loss": _loss,
    "freeze": _freeze,
    "connector": _connector,
    "encoder": _encoder,
    "vision_warmup": _vision_warmup,
    "resolution": _resolution,
    "task_prefix": _task_prefix,
    "new_rows": _new_rows,
    "duration": _duration,
    "cotrain": _cotrain,
}
