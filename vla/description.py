"""What a folder or file of weights holds, read from headers alone: `vla inspect`.

Policies of this package, LeRobot and openpi; PaliGemmas of this package, Hugging Face and
big_vision. No tensor is read and torch is not imported, so that the answer comes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backbone.sources.headers import (
    WEIGHTS,
    Tensor,
    by_dtype,
    npz_header,
    read_json,
    safetensors_header,
)
from backbone.sources.places import Weights, some
from backbone.sources.sizes import Heads, Stack, Vision
from vla.layouts import VLM, Depths, jax_places, port_depths, port_key, port_names
from vla.sources.origin import origin_of, policy_files
from vla.sources.policy_files import TOKENIZERS, PolicyFiles
from vla.sources.sizes import Sizes, sizes_of, variant
from vla.sources.statistics import check_spread

PARTS = {
    "vision": ("backbone.vision.",),
    "language": ("backbone.projector.", "backbone.embedding.", "backbone.language."),
    "expert": ("expert.",),
}
OUR_PALIGEMMA, HF_PALIGEMMA = "vla-paligemma", "paligemma"


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
    if path.is_file():
        return _paligemma_file(path)
    config_path = path / "config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    if config.get("model_type") == OUR_PALIGEMMA:
        return _our_paligemma(path, config)
    if config.get("model_type") == HF_PALIGEMMA:
        return _hf_paligemma(path, config)
    origin_of(path)  # says what is wrong with any other folder
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
        numerics=_numerics(files),
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


def _numerics(files: PolicyFiles) -> str:
    """The name of the implementation whose rounding the policy keeps."""
    if files.origin != "vla":
        return files.origin
    own = files.numerics or {}
    if own.get("float32_vision"):
        return "LeRobot"
    if own.get("round_rope_frequencies"):
        return "openpi PyTorch"
    return "Hugging Face" if own.get("rotate_in_activation") else "openpi JAX"


# --- PaliGemmas -----------------------------------------------------------------------------------


def _hf_paligemma(folder: Path, config: Mapping[str, Any]) -> Description:
    tensors = safetensors_header(folder)
    keys = {port_key(VLM + key.removeprefix("model.")): key for key in tensors}
    names = port_names(port_depths(keys))
    shapes = {
        ours: tensors[keys[theirs]].shape
        for ours, theirs in names.items()
        if ours.startswith("backbone.") and theirs in keys
    }
    text, vision = config.get("text_config", {}), config.get("vision_config", {})
    heads = None
    if "num_key_value_heads" in text and "num_attention_heads" in vision:
        size = text.get("head_dim", 256)
        heads = Heads(vision["num_attention_heads"], (text["num_key_value_heads"], size))
    dead = [key for key in tensors if "lm_head" in key]
    return _paligemma(folder, "Hugging Face", "Hugging Face", tensors, shapes, dead, heads)


def _our_paligemma(folder: Path, config: Mapping[str, Any]) -> Description:
    tensors = safetensors_header(folder / WEIGHTS)
    shapes = {f"backbone.{name}": tensor.shape for name, tensor in tensors.items()}
    language = config["language"]
    sizes = Sizes(
        Vision(**config["vision"]),
        Stack(**{name: language[name] for name in Stack.__dataclass_fields__}),
        config["vocab"],
    )
    return _of_sizes(folder, "this package", "openpi JAX", tensors, shapes, (), sizes)


def _paligemma_file(path: Path) -> Description:
    if path.suffix != ".npz":
        raise ValueError(
            f"{path} is a single file; give the folder that it stands in (of files, big_vision's "
            ".npz alone hold a whole model)"
        )
    arrays = npz_header(path)
    tensors = {f"PaliGemma/{key.removeprefix('params/')}": value for key, value in arrays.items()}
    try:
        places = jax_places(Depths(_layers(tensors, "img"), _layers(tensors, "llm"), 0, False))
        own = {k: p for k, p in places.items() if k.startswith("backbone.") and p.key in tensors}
        kv = tensors["PaliGemma/llm/layers/attn/kv_einsum/w"].shape
        query = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
        heads = Heads(tensors[f"PaliGemma/{query}"].shape[2], (kv[2], kv[4]))
    except KeyError as error:
        raise ValueError(
            f"{path} holds no PaliGemma of big_vision: {error} is missing; it holds {some(arrays)}"
        ) from error
    shapes = Weights(path, tensors, own).shapes
    return _paligemma(path, "big_vision", "big_vision", tensors, shapes, (), heads)


def _layers(tensors: Mapping[str, Tensor], part: str) -> int:
    first = {
        "img": "img/Transformer/encoderblock/LayerNorm_0/scale",
        "llm": "llm/layers/mlp/linear",
    }
    return tensors[f"PaliGemma/{first[part]}"].shape[0]


def _paligemma(path: Path, origin, numerics, tensors, shapes, dead, heads) -> Description:
    try:
        sizes = sizes_of(shapes, heads)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} holds no whole PaliGemma: {error} is missing; it holds {some(tensors)}"
        ) from error
    return _of_sizes(path, origin, numerics, tensors, shapes, dead, sizes)


def _of_sizes(path: Path, origin, numerics, tensors, shapes, dead, sizes: Sizes) -> Description:
    folder = path if path.is_dir() else path.parent
    tokenizer = next((folder / n for n in TOKENIZERS if (folder / n).is_file()), None)
    live = {key: tensor for key, tensor in tensors.items() if key not in dead}
    vision, total = _parameters(shapes)["vision"], sum(t.count for t in live.values())
    return Description(
        path=str(path),
        origin=origin,
        model="PaliGemma",
        variant=variant(sizes),
        sizes=_sizes(sizes),
        parameters={"vision": vision, "language": total - vision, "total": total},
        dtypes=by_dtype(live),
        dead_weight={key: tensors[key].bytes for key in dead},
        numerics=numerics,
        tokenizer=None if tokenizer is None else str(tokenizer),
    )


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
