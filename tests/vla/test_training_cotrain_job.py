"""Demonstrations and image-text examples in one run: what is summed, and how it resumes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backbone.paligemma import PALIGEMMA_TINY
from vla.config import DataConfig, OptimConfig
from vla.data.augment import Augment
from vla.data.image_text.formats import Answer, Caption, Detect
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.mixture import MixtureData, Part
from vla.data.tabletop_annotated import write_annotated
from vla.pi0 import PI0_TINY
from vla.pi05 import PI05_TINY
from vla.training.cotrain_job import CoTrainConfig
from vla.training.faults import BadData
from vla.training.loop import train
from vla.training.optimiser import Optimisers
from vla.training.stage_job import StageConfig
from vla.training.update import update
from vla.training.world import World

CPU = torch.device("cpu")
COMMON = {
    "steps": 6,
    "ema": None,
    "log_every": 1,
    "save_every": 3,
    "tensorboard": False,
    "device": "cpu",
    "optim": OptimConfig(lr=1e-3, warmup=2, decay_steps=6),
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> MixtureData:
    root = tmp_path_factory.mktemp("vlm") / "data"
    write_annotated("Tabletop-easy-v0", 6, root, seed=0, image_size=64, progress=False)
    return MixtureData(
        (
            Part("questions", Jsonl(root / "questions.jsonl"), Answer(), weight=0.5),
            Part("captions", Jsonl(root / "captions.jsonl"), Caption(), 0.2, augment=Augment()),
            Part("boxes", Jsonl(root / "detect.jsonl"), Detect(), weight=0.3),
        )
    )


def cotraining(root: Path, text: MixtureData, folder: Path = Path("unused"), **fields):
    values = {
        "output_dir": folder,
        "model": PI0_TINY,
        "data": DataConfig(root, held_out=0.3, prompt_length=12),
        "text": text,
        "text_batch": 6,
        "text_length": 48,
        "batch_size": 4,
    }
    return CoTrainConfig(**COMMON | values | fields)


def losses(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    clock = ("samples_per_second", "tokens_per_second", "data_wait", "mfu")
    left_out = (*clock, "validation_loss")  # the stop itself validates once more
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines]


def stopped_after_three(config, folder: Path) -> list[dict]:
    train(replace(config, output_dir=folder, steps=3))
    train(replace(config, output_dir=folder), resume=True)
    return losses(folder)


def test_a_mixture_resumes_exactly(mixture, tmp_path):
    config = StageConfig(
        output_dir=tmp_path / "whole",
        model=PALIGEMMA_TINY,
        data=mixture,
        fresh=("vision", "language"),
        text_length=16,
        batch_size=8,
        **COMMON,
    )
    train(config)
    whole = losses(tmp_path / "whole")
    assert stopped_after_three(config, tmp_path / "parts") == whole
    assert any(line["cut"] > 0 for line in whole)
    assert any(line.get("cut/boxes", 0) > 0 for line in whole)


def test_cotraining_resumes_exactly_and_reports_both_losses(video_dataset, mixture, tmp_path):
    config = cotraining(video_dataset, mixture, tmp_path / "whole", action_weight=3.0, accumulate=2)
    train(config)
    whole = losses(tmp_path / "whole")
    assert stopped_after_three(config, tmp_path / "parts") == whole
    for line in whole:
        assert line["loss"] == pytest.approx(line["text_loss"] + 3 * line["action_loss"])


@pytest.mark.parametrize("model", [PI0_TINY, PI05_TINY])
def test_the_gradient_is_that_of_the_sum_however_it_is_divided(video_dataset, mixture, model):
    data = DataConfig(video_dataset, held_out=0.3, prompt_length=40)
    fields = {"action_weight": 2.0, "model": model, "data": data}
    job = cotraining(video_dataset, mixture, **fields).job()
    job.begun()
    [action, text] = job.batch(0)
    loss = text_loss = job.model(*text.inputs)
    loss = text_loss + 2.0 * job.model(*action.inputs)
    loss.backward()
    expected = {n: p.grad for n, p in job.model.named_parameters() if p.grad is not None}
    parts = cotraining(video_dataset, mixture, accumulate=2, text_accumulate=3, **fields).job()
    parts.begun()
    batch = parts.batch(0)
    assert [m.kind for m in batch] == ["action"] * 2 + ["text"] * 3
    optimiser = Optimisers(torch.optim.SGD(parts.model.parameters(), lr=0.0))
    outcome = update(parts.model, optimiser, batch, step=0, device=CPU).outcome()
    assert outcome.loss == pytest.approx(loss.item(), rel=1e-5)
    assert outcome.kinds["text_loss"] == pytest.approx(text_loss.item(), rel=1e-5)
    for name, p in parts.model.named_parameters():
        if name in expected:
            assert p.grad is not None
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-4)


def test_insulation_keeps_the_action_loss_from_the_backbone(video_dataset, mixture):
    gradients = {}
    for insulated in (False, True):
        job = cotraining(video_dataset, mixture, insulated=insulated).job()
        job.begun()
        action, text = job.batch(0)
        job.model(*action.inputs).backward()
        backbone = dict(job.model.backbone.named_parameters())  # pyright: ignore
        reached = {n for n, p in backbone.items() if p.grad is not None and p.grad.any()}
        assert bool(reached) is not insulated
        job.model(*text.inputs).backward()
        assert all(p.grad is not None for p in job.model.parameters())
        gradients[insulated] = text
    assert torch.equal(gradients[False].inputs[0].tokens, gradients[True].inputs[0].tokens)


def test_processes_share_each_kind_of_microbatch_equally(video_dataset, mixture):
    whole = cotraining(video_dataset, mixture, accumulate=2).job()
    halves = [
        cotraining(video_dataset, mixture, accumulate=2).job(World(rank, 2)).batch(1)
        for rank in (0, 1)
    ]
    for one, *both in zip(whole.batch(1), *halves, strict=True):
        assert len({m.kind for m in (one, *both)}) == 1
        assert list(one.samples) == [s for m in both for s in m.samples]


def test_what_does_not_fit_is_refused(video_dataset, mixture):
    with pytest.raises(ValueError, match="text_batch 6 does not divide into 4 equal"):
        cotraining(video_dataset, mixture, text_accumulate=4)
    missing = MixtureData((Part("x", Jsonl(Path("nowhere")), Answer()),))
    with pytest.raises(BadData, match=r"expected one \.jsonl file in nowhere"):
        cotraining(video_dataset, missing).job()
