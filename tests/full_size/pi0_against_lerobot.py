"""π0 at full size, on a CPU, against LeRobot's own `PI0Policy`: memory, time and the chunk.

    python tests/full_size/pi0_against_lerobot.py FOLDER

writes random bfloat16 weights into FOLDER once (6.5 GB as this package keeps them, 8 GB as LeRobot
does, through `vla convert`), then lets both policies act on one observation with three cameras and
the same noise, each in a process of its own. Needs the dev dependencies, 20 GB of free memory and a
few minutes. The figures of one run stand in docs/results.md.

LeRobot's model is built with bfloat16 as torch's default dtype, since its float32 start of 16 GB
would not fit beside the weights; it sets the dtypes that it computes in by itself afterwards.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbone.numerics import LEROBOT
from backbone.sources.write import write_safetensors
from backbone.tokenizer import Tokenizer
from vla.convert import convert
from vla.data.stats import FeatureStats, NormStats
from vla.model import build
from vla.pi0 import PI0, Pi0Config
from vla.policy import Policy
from vla.policy_config import PolicyConfig

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
ROBOT_DIMS = 14
MODEL = Pi0Config(replace(PI0.backbone, numerics=LEROBOT), PI0.expert)
TASK = "put the red square on the blue plate"
WIDE = (  # LeRobot leaves these as they were made, in float32 but for the default above
    "state_proj",
    "action_in_proj",
    "action_out_proj",
    "action_time_mlp_in",
    "action_time_mlp_out",
)
NOISE_FLOOR = 0.05  # of rms: what bfloat16 leaves undecided, measured in tests/golden


def main() -> None:
    parser = argparse.ArgumentParser(description="π0 at full size against LeRobot's.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--act", choices=("ours", "theirs"), help="(used by the script itself)")
    args = parser.parse_args()
    ours, theirs = args.folder / "ours", args.folder / "lerobot"
    if args.act:
        act = act_here if args.act == "ours" else act_in_lerobot
        chunk, facts = act(theirs)
        facts["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        np.save(args.folder / f"{args.act}.npy", chunk)
        print(json.dumps(facts))
        return
    if not ours.exists():
        write_random(ours)
    if not theirs.exists():
        convert(ours, theirs, "lerobot")
    facts = {who: in_own_process(args.folder, who) for who in ("ours", "theirs")}
    for who, values in facts.items():
        print(who, ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    a, b = (np.load(args.folder / f"{who}.npy") for who in ("ours", "theirs"))
    rms = math.sqrt((b**2).mean())
    difference = math.sqrt(((a - b) ** 2).mean()) / rms
    print(f"chunk {a.shape}, rms {rms:.3f}; rms difference / rms {difference:.4f}")
    if difference > NOISE_FLOOR:
        sys.exit(f"the chunks differ by more than bfloat16's noise floor, {NOISE_FLOOR} of rms")


def in_own_process(folder: Path, who: str) -> dict[str, float]:
    command = [sys.executable, __file__, str(folder), "--act", who]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_random(folder: Path) -> None:
    """A policy's folder with weights that keep activations in a natural range."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in build(MODEL).named_parameters()}
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        std = 0.1 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
        return (torch.randn(shape, generator=generator, dtype=torch.float32) * std).bfloat16()

    write_safetensors(
        partial / "model.safetensors",
        {name: (shape, "bfloat16") for name, shape in shapes.items()},
        ((name, draw(name, shape)) for name, shape in shapes.items()),
        {"format": "pt"},
    )
    spread = FeatureStats(mean=np.zeros(ROBOT_DIMS), std=np.ones(ROBOT_DIMS))
    NormStats(state=spread, actions=spread).save(partial / "norm_stats.json")
    Tokenizer.small().save(partial)
    PolicyConfig(MODEL, CAMERAS, ROBOT_DIMS, ROBOT_DIMS).save(partial / "config.json")
    partial.rename(folder)


def observation() -> dict:
    rng = np.random.default_rng(0)
    images = {
        f"observation.images.{camera}": rng.integers(0, 256, (224, 224, 3), np.uint8)
        for camera in CAMERAS
    }
    state = rng.standard_normal(ROBOT_DIMS).astype(np.float32)
    return {**images, "observation.state": state, "task": TASK}


def noise() -> np.ndarray:
    shape = (MODEL.expert.horizon, MODEL.expert.action_dim)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def act_here(folder: Path) -> tuple[np.ndarray, dict[str, float]]:
    start = time.perf_counter()
    policy = Policy.from_pretrained(folder, dtype="bfloat16", tokenizer=Tokenizer.small())
    loaded = time.perf_counter()
    chunk = policy.act(observation(), noise())
    return chunk, {"load_s": loaded - start, "act_s": time.perf_counter() - loaded}


def act_in_lerobot(folder: Path) -> tuple[np.ndarray, dict[str, float]]:
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy

    start = time.perf_counter()
    torch.set_default_dtype(torch.bfloat16)
    policy = PI0Policy.from_pretrained(folder).eval()
    torch.set_default_dtype(torch.float32)
    for module in WIDE:
        getattr(policy.model, module).float()
    loaded = time.perf_counter()
    seen, tokenizer = observation(), Tokenizer.small()
    prompt = tokenizer.encode(f"{seen['task']}\n", bos=True)
    tokens = torch.tensor([prompt + [0] * (48 - len(prompt))])
    batch = {
        **{
            k: torch.from_numpy(v).permute(2, 0, 1)[None] / 255
            for k, v in seen.items()
            if "im" in k
        },
        "observation.state": torch.from_numpy(seen["observation.state"])[None],
        "observation.language.tokens": tokens,
        "observation.language.attention_mask": tokens != 0,
    }
    options: dict[str, Any] = {"noise": torch.from_numpy(noise())[None]}  # LeRobot doesn't type it
    with torch.no_grad():
        chunk = policy.predict_action_chunk(batch, **options)
    facts = {"load_s": loaded - start, "act_s": time.perf_counter() - loaded}
    return chunk[0].float().numpy(), facts


if __name__ == "__main__":
    main()
