"""What a run reports about its speed, to whom, and that none of it changes the run."""

import json
import sys
from types import ModuleType

import pytest
import torch
from fake_run import WIDTH, Network, fake_config
from safetensors.torch import load_file

from backbone.tokenizer import Tokenizer
from vla.training.job import Microbatch
from vla.training.log import METRICS, Window
from vla.training.loop import train
from vla.training.utilisation import Utilisation, peak_tflops

CPU = torch.device("cpu")


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


@pytest.fixture
def service(monkeypatch):
    """A module called wandb that writes down what it is asked to do."""
    module, calls = ModuleType("wandb"), []
    for name in ("init", "log", "finish"):
        setattr(module, name, lambda *a, _name=name, **k: calls.append((_name, a, k)))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_a_window_tells_speed_waiting_and_utilisation():
    window = Window()
    window.add({"loss": 3.0}, 8, 2.0, tokens=800, waiting=0.5, flops=1e12)
    window.add({"loss": 1.0}, 8, 2.0, tokens=400, waiting=0.0, flops=3e12)
    assert window.means(peak=10) == {
        "loss": 2.0,
        "samples_per_second": 4.0,
        "tokens_per_second": 300.0,
        "data_wait": 0.125,
        "mfu": 4e12 / (4 * 10e12),
    }
    window = Window()
    window.add({"loss": 3.0}, 8, 2.0)
    assert window.means().keys() == {"loss", "samples_per_second", "data_wait"}


def test_work_is_counted_once_a_shape_and_leaves_all_as_it_was():
    """Two layers, 3 × 8 and 8 × 1: the first needs no gradient of its input."""
    model = Network()
    usage = Utilisation(model, peak=1.0)
    state = torch.get_rng_state()
    x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    batch = Microbatch((x, x), 6)
    expected = 2 * 6 * (3 * 8 * 2 + 8 * 1 * 3)
    assert usage.work([batch, batch]) == 2 * expected
    assert usage.work([Microbatch((x[:2], x[:2]), 2)]) == expected / 3
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.device == CPU for p in model.parameters())
    assert Utilisation.on(CPU, model, None).work([batch]) == 0


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Voodoo 2", None),
    ],
)
def test_peaks_of_cards_are_known_by_name(card, peak):
    assert peak_tflops(card) == peak


def test_a_run_reports_its_speed_and_is_the_same_run(tmp_path):
    plain, told = tmp_path / "plain", tmp_path / "told"
    train(fake_config(plain))
    train(fake_config(told, peak_tflops=1e-6, trace=(3, 5), delay=0.01))
    first, second = lines(plain), lines(told)
    assert [r.get("loss") for r in first] == [r.get("loss") for r in second]
    assert all("mfu" not in r for r in first)
    reports = [r for r in second if "loss" in r]
    flops = 2 * 6 * (3 * 8 * 2 + 8 * 1 * 3)
    for report in reports:
        expected = report["samples_per_second"] / 6 * flops / 1e6
        assert report["mfu"] == pytest.approx(expected, rel=1e-6)
    waits = sorted(r["data_wait"] for r in reports)  # the step that is traced takes long
    assert 0.3 < waits[len(waits) // 2] <= 1
    a, b = (load_file(f / "policy/model.safetensors") for f in (plain, told))
    assert all(torch.equal(a[name], b[name]) for name in a)
    (trace,) = (told / "trace").iterdir()
    assert trace.name == "3-5.0.json"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::addmm" in names


def test_a_trace_that_outlasts_the_run_ends_with_it(tmp_path):
    train(fake_config(tmp_path / "run", steps=4, trace=(2, 100)))
    assert [p.name for p in (tmp_path / "run/trace").iterdir()] == ["2-4.0.json"]


def test_trackers_get_what_is_logged(tmp_path, service):
    folder = tmp_path / "run"
    train(fake_config(folder, steps=4, trackers=("wandb",), project="mine"))
    names = [name for name, _, _ in service]
    assert names == ["init", *["log"] * (len(names) - 2), "finish"]
    _, _, started = service[0]
    assert started["project"] == "mine"
    assert started["resume"] == "allow"
    assert started["config"]["steps"] == 4
    logged = [{"step": k["step"], **a[0]} for name, a, k in service if name == "log"]
    assert logged == lines(folder)
    service.clear()
    train(fake_config(folder, steps=6, trackers=("wandb",)), resume=True)
    assert service[0][2]["id"] == started["id"]


def test_a_tracker_that_is_not_there_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.delitem(sys.modules, "trackio")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match="uv pip install trackio"):
        train(fake_config(tmp_path / "run", trackers=("trackio",)))
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"trace": (5, 5)}, "trace is"), ({"peak_tflops": 0.0}, "peak_tflops is 0.0")],
)
def test_fields_that_say_nothing_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        fake_config(tmp_path, **fields)


def test_text_batches_count_what_is_read():
    import numpy as np

    from vla.data.text import TextExample, collate_text, tokens_read

    tokenizer = Tokenizer.small()
    examples = [
        TextExample(np.zeros((2, 8, 8, 3), np.uint8), "caption", "a red square"),
        TextExample(np.zeros((1, 8, 8, 3), np.uint8), "caption", "a"),
    ]
    text = sum(
        len(tokenizer.prefix(e.prompt)) + len(tokenizer.encode(e.answer, eos=True))
        for e in examples
    )
    assert tokens_read(collate_text(examples, tokenizer), patches=4) == text + 3 * 4
