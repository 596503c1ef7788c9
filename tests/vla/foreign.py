"""Folders of LeRobot's and openpi's policies at toy size, put together from tests/golden."""

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np

from action_expert.expert import ActionExpertConfig
from backbone.gemma import GemmaConfig
from backbone.paligemma import PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from backbone.tokenizer import Tokenizer
from vla.pi0 import Pi0Config
from vla.pi05 import Pi05Config

GOLDEN = Path(__file__).parents[1] / "golden"
LEROBOT = (
    PaliGemmaConfig(
        SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=14, resolution=56),
        GemmaConfig(width=56, depth=3, mlp=72, head_dim=16),
        vocab=112,
    ),
    ActionExpertConfig(GemmaConfig(width=40, depth=3, mlp=56, head_dim=16), horizon=6),
)
LEROBOT_CONFIGS = {"pi0": Pi0Config(*LEROBOT), "pi05": Pi05Config(*LEROBOT)}


def openpi(width: int, mlp: int, head_dim: int, expert: tuple[int, int]):
    return (
        PaliGemmaConfig(
            SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=14, resolution=28),
            GemmaConfig(width=width, depth=3, mlp=mlp, head_dim=head_dim),
            vocab=96,
        ),
        ActionExpertConfig(
            GemmaConfig(width=expert[0], depth=3, mlp=expert[1], head_dim=head_dim),
            state_dim=10,
            action_dim=10,
            horizon=6,
        ),
    )


OPENPI_CONFIGS = {
    "pi0": Pi0Config(*openpi(96, 80, 12, (48, 56))),
    "pi05": Pi05Config(*openpi(80, 72, 10, (40, 48))),
}


def lerobot_folder(kind: str, folder: Path) -> Path:
    """What LeRobot 0.6.1 saved, as `PI0Policy.save_pretrained` and its processors lay it out."""
    shutil.copytree(GOLDEN / f"lerobot_{kind}/model", folder)
    shutil.copy(GOLDEN / f"lerobot_{kind}/model.safetensors", folder)
    return folder


def openpi_jax_folder(folder: Path, assets: tuple[str, ...] = ("robot",)) -> Path:
    """A π0 checkpoint of openpi's JAX training, with made-up statistics."""
    shutil.copytree(GOLDEN / "openpi_jax_pi0/params", folder / "params")
    return _with_assets(folder, assets)


def openpi_pytorch_folder(folder: Path, assets: tuple[str, ...] = ("robot",)) -> Path:
    """A π0.5 of openpi's PyTorch port, with made-up statistics."""
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        shutil.copy(GOLDEN / "openpi_pytorch_pi05" / name, folder)
    return _with_assets(folder, assets)


def _with_assets(folder: Path, assets: tuple[str, ...]) -> Path:
    for i, name in enumerate(assets):
        path = folder / "assets" / name / "norm_stats.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"norm_stats": made_up_stats(8 + i, 7 + i)}))
    return folder


def made_up_stats(state_dim: int, action_dim: int) -> dict:
    """openpi's, of a robot with these dimensions."""
    return {
        "state": _feature(np.linspace(-1, 1, state_dim)),
        "actions": _feature(np.linspace(0, 2, action_dim)),
    }


def _feature(mean: np.ndarray) -> dict:
    spread = 0.5 + np.abs(mean)
    numbers = {"mean": mean, "std": spread, "q01": mean - 2 * spread, "q99": mean + 2 * spread}
    return {name: values.tolist() for name, values in numbers.items()}


class Letters:
    """What a processor asks of a tokenizer, with few enough ids for openpi's toy vocabulary."""

    pad, bos, vocab_size = 0, 2, 96

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [self.bos] * bos + [3 + ord(c) % 93 for c in text]

    def prefix(self, text: str) -> list[int]:
        return self.encode(text + "\n", bos=True)


LETTERS = cast(Tokenizer, Letters())


def rewrite(path: Path, change) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
