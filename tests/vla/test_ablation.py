"""Ablations: what each variant changes, and a switch from end to end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backbone.gemma_alone import GemmaAlone, save_gemma
from backbone.paligemma import PALIGEMMA_SMALL, PaliGemma
from backbone.pretrained import save_pretrained
from backbone.siglip_pair import SigLIPPair, SigLIPPairConfig, save_siglip
from backbone.tokenizer import Tokenizer
from vla.ablation.run import ablate, table
from vla.ablation.switches import SWITCHES, Sources, variants
from vla.assets import PALIGEMMA_TABLETOP
from vla.cli import main
from vla.data.collect import collect
from vla.data.tabletop_annotated import write_annotated
from vla.training.optimiser import freeze, make_optimiser
from vla.training.stage_job import StageConfig

FIELDS = ("--batch-size", "2", "--device", "cpu", "--eval-batches", "1")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    tokenizer = Tokenizer.small()
    pair = SigLIPPairConfig(PALIGEMMA_SMALL.vision, PALIGEMMA_SMALL.vocab, 1, 16)
    save_siglip(SigLIPPair(pair), folder / "siglip")
    gemma = GemmaAlone(PALIGEMMA_SMALL.language, PALIGEMMA_SMALL.vocab - 1152)
    save_gemma(gemma, folder / "gemma")
    tokenizer.save(folder / "gemma")
    save_pretrained(PaliGemma(PALIGEMMA_SMALL), tokenizer, folder / "init")
    return Sources(folder / "siglip", folder / "gemma", folder / "init")


def test_every_switch_of_the_paper_is_there():
    wanted = {"ar_mask", "loss", "freeze", "connector", "encoder", "vision_warmup", "resolution"}
    assert wanted | {"task_prefix", "new_rows", "duration", "cotrain"} == set(SWITCHES)


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "cotrain"])
def test_variants_differ_and_each_gives_a_loss(name, sources):
    runs = variants(name, sources, 8)
    assert len(runs) >= 2
    configs = list(runs.values())
    assert all(a != b for i, a in enumerate(configs) for b in configs[:i])
    for variant, config in runs.items():
        if name in ("freeze", "duration") and variant not in ("TT", "FF", "RR"):
            continue
        job = config.job()
        job.begun()
        [microbatch] = config.__class__(**{**vars(config), "batch_size": 1}).job().batch(0)
        with torch.no_grad():
            assert job.model(*microbatch.inputs).isfinite(), variant
        freeze(job.model, config.freeze)
        make_optimiser(job.model, config.optim)


def test_the_freeze_matrix_freezes_and_resets_what_its_letters_say(sources):
    runs = variants("freeze", sources, 8)
    assert runs["TF"].freeze == ("vision",)
    assert runs["FT"].freeze == ("language", "embedding")
    assert runs["RT"].fresh == ("language", "embedding")
    assert runs["TR"].fresh == ("vision",)
    assert runs["FF"].freeze == ("language", "embedding", "vision")
    assert runs["FF"].optim.schedules == ()


def test_resolutions_have_as_many_tokens_as_they_should(sources):
    runs = {
        n: r for n, r in variants("resolution", sources, 8).items() if isinstance(r, StageConfig)
    }
    tokens = {name: run.model.image_tokens for name, run in runs.items()}
    assert tokens == {"144": 144, "72": 36, "72 enlarged to 144": 144, "144 in four windows": 144}
    assert {r.model.resolution for n, r in runs.items() if n != "72"} == {144}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_switch_is_trained_scored_drawn_and_not_trained_again(sources, tmp_path, monkeypatch):
    options = {"sources": sources, "steps": 2, "seeds": 2, "examples": 2, "overrides": FIELDS}
    rows = ablate("connector", tmp_path, **options)
    assert [row["variant"] for row in rows] == ["linear", "MLP"]
    assert all(row["seeds"] == 2 for row in rows)
    loss = rows[0]["answer loss"]
    assert loss["mean"] == pytest.approx(sum(loss["values"]) / 2)
    assert loss["spread"] == pytest.approx(abs(loss["values"][0] - loss["values"][1]) / 2**0.5)
    assert json.loads((tmp_path / "ablation.json").read_text())["rows"] == rows
    assert (tmp_path / "ablation.md").read_text() == table(rows)
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("vla.ablation.run.train", None)  # a call would fail
    assert ablate("connector", tmp_path, **options) == rows


@pytest.fixture(scope="module")
def robot(tmp_path_factory) -> Sources:
    folder = tmp_path_factory.mktemp("robot")
    collect("Tabletop-easy-v0", 3, folder / "dataset", image_size=72, progress=False)
    write_annotated("Tabletop-easy-v0", 4, folder / "vlm", seed=0, image_size=72, progress=False)
    return Sources(vlm=PALIGEMMA_TABLETOP, demonstrations=folder / "dataset", texts=folder / "vlm")


def test_policies_see_the_same_demonstrations_with_and_without_questions(robot):
    runs = variants("cotrain", robot, 8)
    assert list(runs) == [
        "policy alone",
        "policy and questions",
        "policy and questions, insulated",
        "policy alone, backbone frozen",
    ]
    batches = [run.job().batch(3) for run in runs.values()]
    frames = [[m.samples for m in batch if m.kind != "text"] for batch in batches]
    assert all(f == frames[0] for f in frames)
    assert [any(m.kind == "text" for m in batch) for batch in batches] == [False, True, True, False]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_policies_are_rolled_out_and_their_backbones_asked(robot, tmp_path):
    overrides = ("--batch-size", "2", "--device", "cpu", "--eval-batches", "1")
    rows = ablate("cotrain", tmp_path, sources=robot, steps=2, examples=2, overrides=overrides)
    assert len(rows) == 4
    for row in rows:
        assert {"success", "questions right"} <= row.keys()
    with pytest.raises(FileNotFoundError, match="nothing at nowhere, where runs of cotrain start"):
        variants("cotrain", replace(robot, demonstrations=Path("nowhere")), 8)
    with pytest.raises(FileNotFoundError, match="nothing at nowhere, where runs of cotrain start"):
        variants("cotrain", replace(robot, vlm=Path("nowhere")), 8)


def test_a_table_tells_mean_and_spread_and_what_is_missing():
    rows = [
        {"variant": "a", "seeds": 2, "loss": {"mean": 1.5, "spread": 0.25}},
        {"variant": "b", "seeds": 1, "loss": {"mean": 2.0, "spread": None}},
        {"variant": "c", "seeds": 0},
    ]
    assert table(rows).splitlines() == [
        "|  | seeds | loss |",
        "| --- | --- | --- |",
        "| a | 2 | 1.500 ± 0.250 |",
        "| b | 1 | 2.000 |",
        "| c | 0 | not run |",
    ]


def test_without_time_nothing_is_started(sources, tmp_path):
    with pytest.raises(ValueError, match="no run fits into 0 minutes"):
        ablate("connector", tmp_path, sources=sources, steps=2, minutes=0, overrides=FIELDS)


def test_an_unknown_switch_and_a_missing_start_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no switch 'conector'; did you mean connector"):
        variants("conector", Sources(), 8)
    with pytest.raises(SystemExit, match="2"):
        main(["ablate", "connector"])
    error = capsys.readouterr().err
    assert error.startswith("error: nothing at outputs/paligemma_small/stage0/siglip, where runs")
    assert not list(Path().iterdir())
