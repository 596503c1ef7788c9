"""The loop on a small network: it learns, counts right, stops and goes on exactly."""

import json
import math
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from fake_run import Network, fake_config
from safetensors.torch import load_file
from torch import nn

from backbone.lora import LoRAConfig, load_adapters, merged
from vla.batch import Batch
from vla.cli import main
from vla.config import OptimConfig
from vla.training import checkpoint, loop
from vla.training.ema import Ema
from vla.training.faults import BadData, NotFinite
from vla.training.job import Microbatch
from vla.training.log import METRICS
from vla.training.loop import train
from vla.training.optimiser import Optimisers, make_optimiser
from vla.training.spikes import Spikes
from vla.training.update import Gate, Outcome, Update, update, validation_loss

CPU = torch.device("cpu")


def metrics(folder: Path) -> list[dict]:
    """Reports without the one value that depends on the clock."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    reports = [json.loads(line) for line in lines]
    return [
        {k: v for k, v in r.items() if k not in ("samples_per_second", "data_wait")}
        for r in reports
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "policy/model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def samples(count: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, count, 3, generator=generator, dtype=dtype)
    return x, noise


# --- one update -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 11), (5, 3, 2, 2)])
def test_an_update_does_not_depend_on_how_its_samples_are_divided(sizes):
    x, noise = samples(12, torch.float64)
    results = []
    for division in ((12,), sizes):
        torch.manual_seed(0)
        model = Network().double()
        optimiser = make_optimiser(model, OptimConfig(lr=0.1, eps=1e-3))
        parts = zip(x.split(list(division)), noise.split(list(division)), strict=True)
        batches = [Microbatch(part, len(part[0])) for part in parts]
        made = update(model, optimiser, batches, step=0, device=CPU, clip=0.5).outcome()
        results.append((made.loss, made.norm, [p.detach().clone() for p in model.parameters()]))
    (loss, norm, whole), (other_loss, other_norm, divided) = results
    assert other_loss == pytest.approx(loss, rel=1e-12)
    assert other_norm == pytest.approx(norm, rel=1e-12)
    for a, b in zip(whole, divided, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Weighted(nn.Module):
    """The gradient of the loss is the input."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.w * x).sum()


@pytest.mark.parametrize(
    ("clip", "expected"), [(1.0, (-0.6, -0.8)), (10.0, (-3.0, -4.0)), (None, (-3.0, -4.0))]
)
def test_the_global_norm_is_clipped_and_reported_as_it_was(clip, expected):
    model = Weighted()
    optimiser = Optimisers(torch.optim.SGD(model.parameters(), lr=1.0))
    batch = [Microbatch((torch.tensor([3.0, 4.0]),), 1)]
    made = update(model, optimiser, batch, step=0, device=CPU, clip=clip).outcome()
    assert made.norm == pytest.approx(5.0)
    assert tuple(model.w.tolist()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_samples(bad):
    model = Weighted()
    optimiser = make_optimiser(model, OptimConfig())
    model.w.data.fill_(1.0)
    batches = [
        Microbatch((torch.ones(2),), 1, ["episode 3 frame 7"]),
        Microbatch((torch.tensor([bad, 1.0]),), 1, ["episode 4 frame 2"]),
    ]
    with pytest.raises(
        ValueError, match=r"loss .* at step 12 is not finite.*\['episode 4 frame 2'\]"
    ):
        update(model, optimiser, batches, step=12, device=CPU, clip=1.0).outcome()
    assert model.w.tolist() == [1.0, 1.0]
    assert float(optimiser.state[model.w]["step"]) == 0


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    model = Weighted()
    model.w.data.fill_(0.0)
    optimiser = make_optimiser(model, OptimConfig())
    batch = [Microbatch((torch.tensor([3e38, 3e38]),), 1, [8, 9])]
    with pytest.raises(ValueError, match=r"gradient norm inf at step 0 .*\[8, 9\]"):
        update(model, optimiser, batch, step=0, device=CPU).outcome()
    assert model.w.tolist() == [0.0, 0.0]


class Blocks(nn.Module):
    """With a matrix that Muon takes."""

    def __init__(self):
        super().__init__()
        self.part = nn.Module()
        self.part.blocks = nn.ModuleList([nn.Linear(2, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part.get_submodule("blocks.0")(x).sum()


@pytest.mark.parametrize("muon_lr", [None, 0.1])
def test_what_is_not_finite_changes_nothing_though_nobody_looks(muon_lr):
    model = Blocks()
    optimiser = make_optimiser(model, OptimConfig(lr=0.1, muon_lr=muon_lr))
    assert len(optimiser.parts) == (1 if muon_lr is None else 2)
    ema, gate = Ema(model, 0.5), Gate(CPU, limit=1)

    def all_tensors() -> list[torch.Tensor]:
        moments = [x for kept in optimiser.state.values() for x in kept.values()]
        return [x.clone() for x in (*model.parameters(), *moments, *ema.shadow.values())]

    def changed(value: float) -> bool:
        before = all_tensors()
        batch = [Microbatch((torch.full((1, 2), value),), 1)]
        made = update(model, optimiser, batch, step=0, device=CPU, gate=gate)
        ema.update(0, made.shut)
        return not all(map(torch.equal, before, all_tensors()))

    assert [changed(x) for x in (1.0, math.nan, 1.0)] == [True, False, True]
    assert [changed(x) for x in (math.inf, 1.0)] == [False, False]  # one too many


def test_pinning_reaches_every_tensor_of_a_micro_batch(monkeypatch):
    """Torch pins only where there is a card, so that here a sign stands for it."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    mask = torch.zeros(1, 2, dtype=torch.long)
    observed = Batch(mask, mask, mask, mask, torch.zeros(1, 3))
    pinned = Microbatch((observed, torch.zeros(2)), 1, ["a"]).pin_memory()
    batch, plain = pinned.inputs
    assert plain.tolist() == [1, 1]
    assert all(x.eq(1).all() for x in vars(batch).values() if x is not None)
    assert (batch.actions, pinned.samples) == (None, ["a"])
    assert observed.tokens.sum() == 0


def test_a_step_is_asked_for_before_the_one_before_is_heard_of(tmp_path, monkeypatch):
    events = []

    def asked(*args, step: int, **kwargs):
        events.append(f"ask {step}")
        return update(*args, step=step, **kwargs)

    def heard(made: Update) -> Outcome:
        events.append(f"hear {made.step}")
        return outcome(made)

    outcome = Update.outcome
    monkeypatch.setattr(loop, "update", asked)
    monkeypatch.setattr(Update, "outcome", heard)
    train(fake_config(tmp_path, steps=4, log_every=3, eval_every=4, save_every=4))
    first = ["ask 0", "ask 1", "hear 0", "ask 2", "hear 1"]
    assert events == [*first, "hear 2", "ask 3", "hear 3"]  # at reports, nothing is left


def test_bfloat16_computes_coarsely_but_keeps_weights_and_moments_in_float32():
    x, noise = samples(8)
    norms = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = Network()
        optimiser = make_optimiser(model, OptimConfig())
        batch = [Microbatch((x, noise), 8)]
        made = update(model, optimiser, batch, step=0, device=CPU, precision=precision)
        norms[precision] = made.outcome().norm
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert optimiser.state[model.head.weight]["exp_avg"].dtype == torch.float32
    assert norms["bfloat16"] != norms["float32"]
    assert norms["bfloat16"] == pytest.approx(norms["float32"], rel=0.05)


@pytest.mark.parametrize(
    ("precision", "told"),
    [
        ("auto", "computes in float32: cpu here has no fast products in bfloat16"),
        ("bfloat16", 'precision="auto" computes in float32 and is much faster'),
        ("float32", None),
    ],
)
def test_a_cpu_without_bfloat16_is_told(tmp_path, capsys, monkeypatch, precision, told):
    monkeypatch.setattr("vla.training.loop.multiplies_bfloat16", lambda device: False)
    train(fake_config(tmp_path, steps=1, precision=precision))
    out, err = capsys.readouterr()
    assert ("bfloat16" in out + err) == (told is not None)
    assert told is None or told in out + err


def test_validation_weighs_samples_equally_and_leaves_the_model_training():
    model = Network().double().train()
    x, noise = samples(7, torch.float64)
    with torch.no_grad():
        expected = model(x, noise).item()
    parts = [Microbatch((x[:5], noise[:5]), 5), Microbatch((x[5:], noise[5:]), 2)]
    assert validation_loss(model, parts, CPU, "float32") == pytest.approx(expected, rel=1e-12)
    assert model.training


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_what_it_promises(tmp_path):
    result = train(fake_config(tmp_path, steps=60, save_every=25))
    assert result == tmp_path / "policy"
    assert checkpoint.steps(tmp_path / "checkpoints") == [50, 60]  # keep=2 of 25, 50, 60
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 2e-2
    reports = metrics(tmp_path)
    assert [r["step"] for r in reports] == list(range(2, 61, 2))
    assert reports[-1]["loss"] < 0.5 * reports[0]["loss"]
    assert reports[-1]["validation_loss"] < reports[1]["validation_loss"]
    assert [r["step"] for r in reports if "validation_loss" in r] == list(range(4, 61, 4))


def test_the_result_is_the_average_and_without_one_the_weights(tmp_path):
    for name, ema in (("with", 0.9), ("without", None)):
        train(fake_config(tmp_path / name, ema=ema))
        last = tmp_path / name / "checkpoints/20"
        own = load_file(last / "model.safetensors")
        assert same(weights(tmp_path / name), own) == (ema is None)
        assert (last / "ema.safetensors").exists() == (ema is not None)
    average = load_file(tmp_path / "with/checkpoints/20/ema.safetensors")
    result = weights(tmp_path / "with")
    assert all(torch.equal(result[name], average[name]) for name in average)
    # averaging does not change what is learned
    assert same(
        *(load_file(tmp_path / n / "checkpoints/20/model.safetensors") for n in ("with", "without"))
    )


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_accumulation_and_saving_do_not_change_the_losses(tmp_path):
    train(fake_config(tmp_path / "plain"))
    train(fake_config(tmp_path / "often", save_every=1, keep=1))
    assert metrics(tmp_path / "often") == metrics(tmp_path / "plain")
    train(fake_config(tmp_path / "workers", workers=2))
    assert metrics(tmp_path / "workers") == metrics(tmp_path / "plain")
    train(fake_config(tmp_path / "parts", accumulate=3))
    for a, b in zip(metrics(tmp_path / "parts"), metrics(tmp_path / "plain"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_a_frozen_part_stays_as_it_was(tmp_path):
    train(fake_config(tmp_path, freeze=("vision",), ema=None))
    torch.manual_seed(0)
    start = Network().state_dict()
    end = weights(tmp_path)
    changed = {name for name in end if not torch.equal(end[name], start[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_run_with_adapters_leaves_them_and_merges_them_into_its_result(tmp_path):
    lora = LoRAConfig(rank=2, alpha=4.0, targets="vision|head", train=("head.bias",))
    train(fake_config(tmp_path, lora=lora))
    torch.manual_seed(0)
    plain = Network()
    start = {name: weight.clone() for name, weight in plain.state_dict().items()}
    load_adapters(plain, tmp_path / "adapter")
    expected = merged(plain).state_dict()
    result = weights(tmp_path)
    assert result.keys() == start.keys()
    for name in ("vision.weight", "head.weight"):
        torch.testing.assert_close(result[name], expected[name])
        assert not torch.equal(result[name], start[name])
    assert torch.equal(result["vision.bias"], start["vision.bias"])
    assert not torch.equal(result["head.bias"], start["head.bias"])


def test_a_sample_with_nan_stops_the_run_and_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"at step \d+ is not finite; .*\b13\b"):
        train(fake_config(tmp_path, poison=13))


def test_steps_that_are_not_finite_can_be_left_out_up_to_a_limit_and_their_batches_are_kept(
    tmp_path,
):
    """Each epoch of 20 samples meets the bad one once: six times in 20 steps of 6."""
    with pytest.raises(NotFinite, match=r"Its batch is kept in .*not_finite/\d+\.0\.safetensors"):
        train(fake_config(tmp_path / "few", poison=13, skip_not_finite=5))
    train(fake_config(tmp_path / "all", poison=13, skip_not_finite=6))
    saved = checkpoint.read_state(tmp_path / "all/checkpoints/20")
    assert saved["skipped"] == 6  # a run that goes on has none left
    kept = list((tmp_path / "all/not_finite").glob("*.safetensors"))
    assert len(kept) == 6
    batch = load_file(kept[0])
    assert batch["0.0"].shape == (6, 3)
    assert batch["0.0"].isnan().any()
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "all").values())


def test_errors_of_a_run_have_exit_statuses_of_their_own(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    run = tmp_path / "run.py"
    run.write_text(
        "from pathlib import Path\n"
        "from fake_run import fake_config\n"
        f"config = fake_config(Path({str(tmp_path)!r}) / 'run', poison=13)\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["train", str(run)])
    assert ended.value.code == NotFinite.exit_status == 4
    assert "is not finite" in capsys.readouterr().err
    assert BadData.exit_status == 3


def test_a_loss_that_stands_out_is_told_from_those_before_it():
    spikes = Spikes(width=4, span=50)
    generator = random.Random(0)
    assert not any(spikes.add(1 + 0.1 * generator.gauss(0, 1)) for _ in range(300))
    assert spikes.add(2.0)
    assert not Spikes(width=4, span=50).add(100.0)  # nothing is before it


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path):
    train(fake_config(tmp_path, steps=5))
    with pytest.raises(ValueError, match=r"already holds a run .* step 5; add --resume"):
        train(fake_config(tmp_path, steps=5))


# --- going on -------------------------------------------------------------------------------------


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path):
    """Stopped between two reports, so the means of a report span the break."""
    decay = OptimConfig(lr=1e-2, warmup=3, decay_steps=20)
    train(fake_config(tmp_path / "whole", optim=decay, log_every=4))
    train(fake_config(tmp_path / "parts", optim=decay, log_every=4, steps=15, save_every=10))
    (tmp_path / "parts/checkpoints/15").rename(tmp_path / "15")  # as if killed after 10
    train(fake_config(tmp_path / "parts", optim=decay, log_every=4), resume=True)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_saves_after_the_running_update_and_then_stops(
    tmp_path, monkeypatch, number, error
):
    train(fake_config(tmp_path / "whole"))

    def update_and_signal(*args, step: int, **kwargs):
        if step == 6:
            os.kill(os.getpid(), number)
        return update(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "update", update_and_signal)
    before = signal.getsignal(number)
    with pytest.raises(error) as stop:
        train(fake_config(tmp_path / "stopped"))
    assert number == signal.SIGINT or stop.value.code == 143
    assert signal.getsignal(number) is before
    assert checkpoint.steps(tmp_path / "stopped/checkpoints") == [5, 7]
    monkeypatch.undo()
    train(fake_config(tmp_path / "stopped"), resume=True)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_resuming_a_finished_run_only_returns_its_result(tmp_path):
    train(fake_config(tmp_path))
    before = (tmp_path / METRICS).read_bytes()
    assert train(fake_config(tmp_path), resume=True) == tmp_path / "policy"
    assert (tmp_path / METRICS).read_bytes() == before


def test_resuming_where_nothing_was_saved_starts_from_the_beginning(tmp_path):
    train(fake_config(tmp_path / "a"), resume=True)
    train(fake_config(tmp_path / "b"))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_resuming_with_another_config_is_refused_field_by_field(tmp_path):
    train(fake_config(tmp_path, steps=5))
    changed = fake_config(tmp_path, steps=10, batch_size=4, optim=OptimConfig(lr=1.0, warmup=3))
    with pytest.raises(
        ValueError, match=r"batch_size: 6 then, 4 now; .*optim.lr: 0.02 then, 1.0 now"
    ):
        train(changed, resume=True)


def test_resuming_past_the_last_step_is_refused(tmp_path):
    train(fake_config(tmp_path, steps=10))
    with pytest.raises(ValueError, match="is past the 5 steps of this run"):
        train(fake_config(tmp_path, steps=5), resume=True)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_goes_on(tmp_path, capsys):
    train(fake_config(tmp_path / "whole"))
    train(fake_config(tmp_path / "hurt"))
    file = tmp_path / "hurt/checkpoints/20/optimiser.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    train(fake_config(tmp_path / "hurt"), resume=True)
    assert (
        "optimiser.safetensors is not as it was written; renamed to 20.damaged"
        in capsys.readouterr().out
    )
    assert metrics(tmp_path / "hurt") == metrics(tmp_path / "whole")
    assert same(weights(tmp_path / "hurt"), weights(tmp_path / "whole"))


# --- tensorboard ----------------------------------------------------------------------------------


def test_tensorboard_gets_what_the_lines_say(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(fake_config(tmp_path, tensorboard=True, steps=4))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (r["step"], pytest.approx(r["loss"])) for r in metrics(tmp_path)
    ]
