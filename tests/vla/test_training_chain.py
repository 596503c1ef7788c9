"""The stages one after the other, at small size, also when they are killed on the way."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from backbone.pretrained import save_pretrained
from backbone.tokenizer import Tokenizer
from vla.config import load_config
from vla.data.image_text.mixture import MixtureData
from vla.training.chain import chain
from vla.training.schedule import multiplier
from vla.training.stage_job import StageConfig, started

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("stage0_vision", "stage0", "stage0_text", "stage1", "stage2", "stage3")
STAGES = [CONFIGS / f"paligemma_{name}_small.py" for name in NAMES]
RESULTS = (
    "stage0_vision/vision",
    "stage0/siglip",
    "stage0_text/gemma",
    "stage1/paligemma",
    "stage2/paligemma",
)
FAST = ("--batch-size", "2", "--workers", "0", "--no-tensorboard", "--device", "cpu")


def command(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONFIGS.parent)}
    words = [sys.executable, "-m", "vla", "chain", *map(str, STAGES), "--quick", *FAST]
    return subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_chain_that_is_killed_in_every_stage_ends_as_one_that_is_not(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert command(tmp_path / "whole").wait() == 0
    stages = tmp_path / "killed/outputs/paligemma_small"
    for reached in (stages / name / "checkpoints/2" for name in NAMES):
        running = command(tmp_path / "killed")
        while not reached.exists():
            assert running.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert command(tmp_path / "killed").wait() == 0
    for result in (*RESULTS, "stage3/paligemma"):
        whole, killed = (
            load_file(tmp_path / name / "outputs/paligemma_small" / result / "model.safetensors")
            for name in ("whole", "killed")
        )
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[key], killed[key]) for key in whole), result


def test_a_file_that_is_no_config_stops_a_chain_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no config file"):
        list(chain([STAGES[0], tmp_path / "stage9.py"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["paligemma_stage2_448", "paligemma_stage2_small"])
def test_stage_2_refuses_a_checkpoint_of_its_own_resolution(name, tmp_path):
    """One that has been through stage 2 already: 448 pixels where 224 are expected."""
    config = load_config(CONFIGS / f"{name}.py")
    assert isinstance(config, StageConfig)
    fine, before = config.model.vision.resolution, config.init_resolution
    vision = replace(PALIGEMMA_TINY.vision, resolution=fine, patch=config.model.vision.patch)
    tiny = PaliGemma(replace(PALIGEMMA_TINY, vision=vision))
    save_pretrained(tiny, Tokenizer.small(), tmp_path / "done")
    told = f"PaliGemma of {fine} pixels, but init_resolution says {before}; give the checkpoint"
    with pytest.raises(ValueError, match=told):
        started(replace(config, init=tmp_path / "done"), Tokenizer.small())


def test_stage_2_shows_the_same_data_with_ocr_detection_and_segmentation_more_often():
    first, second = (load_config(CONFIGS / f"paligemma_{n}.py") for n in ("stage1", "stage2_448"))
    assert isinstance(first, StageConfig)
    assert isinstance(second, StageConfig)
    assert isinstance(first.data, MixtureData)
    assert isinstance(second.data, MixtureData)
    assert first.data.parts == second.data.parts
    weights = [
        {p.name: p.weight for p in d.parts} | dict(d.weights) for d in (first.data, second.data)
    ]
    shares = [{name: w / sum(found.values()) for name, w in found.items()} for found in weights]
    more = {name for name in shares[0] if shares[1][name] > shares[0][name]}
    assert more == {"ocr", "detect", "segment"}
    assert sum(weights[0].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("before", "after"),
    [("stage1", "stage2_448"), ("stage2_448", "stage2_896"), ("stage1_small", "stage2_small")],
)
def test_the_learning_rate_goes_on_without_a_break(before, after):
    """Of the image encoder and of everything else, and as many examples later too."""
    first, second = (load_config(CONFIGS / f"paligemma_{name}.py") for name in (before, after))
    assert isinstance(first, StageConfig)
    assert isinstance(second, StageConfig)
    assert first.optim.lr == second.optim.lr
    assert second.init == first.output_dir / "paligemma"
    assert second.init_resolution == first.model.vision.resolution
    pairs = [(first.optim.schedule, second.optim.schedule)]
    pairs += [
        (a[1], b[1]) for a, b in zip(first.optim.schedules, second.optim.schedules, strict=True)
    ]
    assert len(pairs) == 2
    for a, b in pairs:
        assert a is not None
        assert b is not None
        assert multiplier(b, 0, second.steps) == pytest.approx(multiplier(a, first.steps, 1))
        later = 640
        steps = later * first.batch_size // second.batch_size
        expected = multiplier(a, first.steps + later, 1)
        assert multiplier(b, steps, second.steps) == pytest.approx(expected)
