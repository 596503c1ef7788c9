"""What a folder or file of weights holds, read from headers alone: `vla inspect`.

Policies of this package, LeRobot and openpi; PaliGemmas of this package, Hugging Face and
big_vision. No tensor is read and torch is not imported, so that the answer comes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backbone.sources.headers import Tensor, by_dtype
from backbone.sources.origin import is_paligemma, paligemma_files
from backbone.sources.paligemma_files import TOKENIZERS, PaliGemmaFiles
from backbone.sources.places import some
from vla.sources.origin import policy_files
from vla.sources.policy_files import PolicyFiles
from vla.sources.sizes import Sizes, variant
from vla.sources.statistics import check_spread

PARTS = {
    "vision": ("backbone.vision.",),
    "language": ("backbone.projector.", "backbone.embedding.", "backbone.language."),
    "expert": ("expert.",),
}


@dataclass(frozen=True)
class Description:
    """What stands in `path`. None: it does not say, or the model has no such thing.

    origin: who wrote it. model: "π0", "π0.5" or "PaliGemma". sizes: of every part.
    parameters: elements of every part and in total, dead weight left out. dtypes: elements in each.
    dead_weight: tensor → bytes that no output depends on. numerics: whose rounding it is run with.
    robot: what a policy knows of its robot: cameras, dimensions, statistics.
    problems: what stands in the way of loading it as it is, with what to do.
    """

    path: str
    origin: str
    model: str
    variant: str
    sizes: Mapping[str, Any]
    parameters: Mapping[str, int]
    dtypes: Mapping[str, int]
    dead_weight: Mapping[str, int]
    numerics: str
    tokenizer: str | None
    robot: Mapping[str, Any] | None = None
    problems: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.variant}, written by {self.origin}"]
        rows = [*_size_rows(self.sizes), *self._rows()]
        lines += [f"  {name:<12} {value}" for name, value in rows]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str]]:
        counts = {name: _count(number) for name, number in self.parameters.items()}
        total = counts.pop("total")
        parts = ", ".join(f"{name} {number}" for name, number in counts.items())
        whole = sum(self.dtypes.values())
        dtypes = (f"{name} ({n / whole:.0%})" for name, n in self.dtypes.items())
        rows = [
            ("parameters", f"{total} ({parts})"),
            ("dtype", next(iter(self.dtypes)) if len(self.dtypes) == 1 else ", ".join(dtypes)),
            ("dead weight", _dead(self.dead_weight)),
            ("numerics", self.numerics),
            ("tokenizer", self.tokenizer or "none"),
        ]
        return rows + [(name.replace("_", " "), _text(v)) for name, v in (self.robot or {}).items()]


def describe(path: str | Path, asset: str | None = None) -> Description:
    """Look at a folder, or at a .npz or .safetensors file; `asset` chooses an openpi robot.

    Raises FileNotFoundError if nothing is there, ValueError if it is broken or something else; the
    message says what was found.
    """
    path = Path(path)
    if is_paligemma(path):
        return _paligemma(paligemma_files(path))
    return _policy(policy_files(path, asset))


# --- policies -------------------------------------------------------------------------------------


def _policy(files: PolicyFiles) -> Description:
    weights = files.weights
    used = {place.key for place in weights.places.values()}
    return Description(
        path=str(files.folder),
        origin="this package" if files.origin == "vla" else files.origin,
        model=files.model,
        variant=variant(files.sizes),
        sizes=_sizes(files.sizes),
        parameters=_parameters(weights.shapes),
        dtypes=by_dtype({key: weights.tensors[key] for key in used}),
        dead_weight={key: weights.tensors[key].bytes for key in weights.unused},
        numerics=_numerics(files.origin, files.numerics),
        tokenizer=None if files.tokenizer is None else str(files.tokenizer),
        robot=_robot(files),
        problems=tuple(_problems(files)),
    )


def _robot(files: PolicyFiles) -> dict[str, Any]:
    mode = "q01 and q99" if files.quantiles else "mean and std"
    return {
        "cameras": list(files.cameras),
        "state": files.state_dim,
        "action": files.action_dim,
        "relative_actions": list(files.relative_dims),
        "statistics": None if files.stats is None else mode,
        "horizon": files.horizon,
        "steps": files.steps,
        "prompt_length": files.prompt_length,
    }


def _problems(files: PolicyFiles) -> list[str]:
    problems = []
    if files.stats is None:
        problems.append(files.stats_fault or "there are no statistics")
    else:
        try:
            if files.origin != "vla":  # ours leaves dimensions that never move as they are
                check_spread(files.stats, files.quantiles, files.folder)
        except ValueError as error:
            problems.append(str(error))
    if files.weights.stray:
        problems.append(f"weights that no π0 or π0.5 has: {some(files.weights.stray)}")
    if files.sizes.vision.heads is None:
        problems.append("the number of vision heads is not told; give the sizes with config=")
    if files.horizon is None:
        problems.append("the actions in a chunk are not told; give the sizes with config=")
    if files.tokenizer is None:
        problems.append(f"no {' or '.join(TOKENIZERS)}; give PaliGemma's with tokenizer=")
    return problems


def _numerics(origin: str, own: Mapping[str, Any] | None) -> str:
    """The name of the implementation whose rounding a model keeps."""
    if origin != "vla":
        return origin
    own = own or {}
    if own.get("float32_vision"):
        return "LeRobot"
    if own.get("round_rope_frequencies"):
        return "openpi PyTorch"
    if own.get("rotate_in_activation"):
        return "Hugging Face"
    return "big_vision" if own.get("resize") == "tf" else "openpi JAX"


# --- PaliGemmas -----------------------------------------------------------------------------------


def _paligemma(files: PaliGemmaFiles) -> Description:
    weights = files.weights
    sizes = Sizes(files.vision, files.language, files.vocab)
    shapes = {f"backbone.{name}": shape for name, shape in weights.shapes.items()}
    used = {place.key for place in weights.places.values()}
    stray = [f"weights that no PaliGemma has: {some(weights.stray)}"] if weights.stray else []
    return Description(
        path=str(files.path),
        origin="this package" if files.origin == "vla" else files.origin,
        model="PaliGemma 2" if files.gemma2.get("post_norms") else "PaliGemma",
        variant=variant(sizes),
        sizes=_sizes(sizes),
        parameters=_parameters(shapes),
        dtypes=by_dtype({key: weights.tensors[key] for key in used}),
        dead_weight={key: weights.tensors[key].bytes for key in weights.unused},
        numerics=_numerics(files.origin, files.numerics),
        tokenizer=None if files.tokenizer is None else str(_tokenizer_file(files.tokenizer)),
        problems=tuple(stray),
    )


def _tokenizer_file(folder: Path) -> Path:
    return next(folder / name for name in TOKENIZERS if (folder / name).is_file())


# --- words ----------------------------------------------------------------------------------------


def _sizes(sizes: Sizes) -> dict[str, Any]:
    return {name: value for name, value in asdict(sizes).items() if value is not None}


def _parameters(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    counts = {
        part: sum(Tensor(s, "", 1).count for name, s in shapes.items() if name.startswith(starts))
        for part, starts in PARTS.items()
    }
    present = {part: number for part, number in counts.items() if number}
    return {**present, "total": sum(counts.values())}


def _size_rows(sizes: Mapping[str, Any]) -> list[tuple[str, str]]:
    vision = sizes["vision"]
    heads = "? heads" if vision["heads"] is None else f"{vision['heads']} heads"
    rows = [
        (
            "vision",
            f"{vision['width']} wide, {vision['depth']} deep, {heads}, "
            f"{vision['resolution']} px in patches of {vision['patch']}",
        ),
        ("language", f"{_stack(sizes['language'])}, {sizes['vocab']} ids"),
    ]
    if "expert" in sizes:
        width = f"states of {sizes['state_dim']}, " if "state_dim" in sizes else ""
        actions = f"{width}actions of {sizes['action_dim']}"
        rows.append(("expert", f"{_stack(sizes['expert'])}, {actions}"))
    return rows


def _stack(stack: Mapping[str, int]) -> str:
    heads = f"{stack['heads']} heads of {stack['head_dim']} on {stack['kv_heads']}"
    return f"{stack['width']} wide, {stack['depth']} deep, MLP {stack['mlp']}, {heads}"


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _dead(tensors: Mapping[str, int]) -> str:
    if not tensors:
        return "none"
    return f"{_count(sum(tensors.values()))}B in {', '.join(tensors)}".replace(" BB", " GB")


def _text(value: Any) -> str:
    if value is None:
        return "not told"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
