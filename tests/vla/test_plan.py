"""`vla plan`: what it counts, against closed forms and against memory that was measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import profile

from backbone.gemma import GemmaConfig
from backbone.lora import LoRAConfig
from backbone.paligemma import PALIGEMMA_TINY, PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from vla import cli
from vla.config import DataConfig, OptimConfig, ParallelConfig, RunConfig, TrainConfig
from vla.pi0 import PI0, PI0_SMALL, PI0_TINY, Pi0, Pi0Config
from vla.pi05 import PI05_TINY, Pi05
from vla.planning.course import Surroundings, course
from vla.planning.live import Live
from vla.planning.plan import plan
from vla.planning.rehearsal import rehearse
from vla.planning.sketch import sketch
from vla.training.ema import Ema
from vla.training.job import Microbatch
from vla.training.optimiser import freeze, make_optimiser
from vla.training.parallel import parallelise
from vla.training.text_job import TextConfig
from vla.training.update import update
from vla.training.vision_job import VisionConfig
from vla.training.world import ALONE

MIDDLE = Pi0Config(
    PaliGemmaConfig(
        SigLIPConfig(width=192, depth=4, mlp=768, heads=3, patch=14, resolution=112),
        GemmaConfig(width=256, depth=4, mlp=1024, heads=4, kv_heads=1, head_dim=64),
        vocab=2176,
    ),
    replace(PI0.expert, gemma=GemmaConfig(width=128, depth=4, mlp=512, heads=4, head_dim=64)),
)


def policy_run(model=PI0_TINY, **fields) -> TrainConfig:
    data = DataConfig(root=Path("nowhere"), cameras=("top", "wrist"))
    values: dict[str, Any] = {
        "output_dir": Path("unused"),
        "steps": 10,
        "batch_size": 8,
        "device": "cpu",
    }
    return TrainConfig(**values | {"model": model, "data": data} | fields)


def text_run() -> TextConfig:
    return TextConfig(
        output_dir=Path("unused"), steps=10, batch_size=8, device="cpu", model=PALIGEMMA_TINY
    )


def one_update(config: RunConfig, device: torch.device):
    """The state of `config` and a function that makes an update, as training does."""
    drawn = sketch(config)
    model = drawn.model().to(device).train()
    batches = [Microbatch(drawn.inputs(config.batch_size // config.accumulate), 1)]
    batches *= config.accumulate
    if isinstance(model, Pi0 | Pi05):
        freeze(model, model.unreached)
    parallelise(model, config.parallel, ALONE, device, config.precision)
    optimiser = make_optimiser(model, config.optim)
    ema = None if config.ema is None else Ema(model, config.ema)

    def run() -> None:
        update(model, optimiser, batches, step=0, device=device, precision=config.precision)
        if ema is not None:
            ema.update(0)
        optimiser.zero_grad()

    tensors = [*model.parameters()]
    tensors += [x for moments in optimiser.state.values() for x in moments.values()]
    tensors += [] if ema is None else ema.shadow.values()
    return run, sum(x.nbytes for x in tensors)


def allocated_at_most(run) -> int:
    """Bytes that torch's allocator gave out at once while `run` ran, on the CPU."""
    with profile(profile_memory=True, acc_events=True) as seen:
        run()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    found: list[Any] = seen.profiler.kineto_results.events()
    events = [e for e in found if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (PI0_SMALL, {"draws": 4}),
        (PI0_SMALL, {"precision": "bfloat16", "ema": None}),
        (PI0_SMALL, {"parallel": ParallelConfig(recompute=1)}),
        (PI0_SMALL, {"accumulate": 4, "draws": 1}),
        (MIDDLE, {"draws": 1, "batch_size": 4}),
        (MIDDLE, {"draws": 1, "batch_size": 4, "precision": "bfloat16"}),
        (MIDDLE, {"batch_size": 4, "parallel": ParallelConfig(recompute=1)}),
        (MIDDLE, {"batch_size": 4, "parallel": ParallelConfig(recompute=2)}),
    ],
)
def test_the_peak_is_the_measured_one_within_a_tenth(model, fields):
    config = policy_run(model, **fields)
    run, state = one_update(config, torch.device("cpu"))
    run()
    measured = state + allocated_at_most(run)
    told = plan(config)
    assert told.weights + told.moments + told.average == state
    assert told.peak == pytest.approx(measured, rel=0.1)


def test_the_peak_of_a_paligemma_is_the_measured_one_within_a_tenth():
    config = text_run()
    run, state = one_update(config, torch.device("cpu"))
    run()
    assert plan(config).peak == pytest.approx(state + allocated_at_most(run), rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recompute", [None, 1, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_peak_on_a_card_is_what_its_allocator_saw(precision, recompute):
    config = policy_run(
        replace(MIDDLE, backbone=replace(MIDDLE.backbone, vocab=200_000)),
        batch_size=32,
        precision=precision,
        parallel=ParallelConfig(recompute=recompute),
    )
    run, _ = one_update(config, torch.device("cuda"))
    run()
    torch.cuda.reset_peak_memory_stats()
    run()
    assert plan(config).peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)


def test_pi0_has_the_parameters_and_the_work_that_are_known_of_it():
    """FLOPs of a forward pass with three cameras: 4.03 T, counted by hand, less 0.18 T of the last
    block, which only gives its keys and values."""
    drawn = sketch(policy_run(PI0, draws=1), cameras=3)
    with torch.device("meta"):
        model = drawn.model()
    assert sum(p.numel() for p in model.parameters()) == 3_238_048_528
    done = rehearse(model, drawn.inputs, precision="bfloat16", every=None, gradients=False)
    assert done.forward == pytest.approx(4.03e12 - 0.183e12, rel=0.005)
    assert done.backward == pytest.approx(2 * done.forward, rel=0.005)
    assert len(done.unused) == 7
    assert all("language.blocks.17" in n or "language.norm" in n for n in done.unused)


def test_live_bytes_are_told_for_any_batch():
    weight = torch.zeros(100, 7)
    with Live(101) as live:
        live.ignore([weight])
        a = torch.zeros(101, 7)  # 28 bytes a sample
        b = a @ weight.T  # 400 a sample
        del a
        c = b.sum(0)  # 400 bytes
        del b
        torch.cat([c, c, c])
    assert live.envelope.peak(0) == 4 * 100 * 4  # c and three of it
    assert live.envelope.peak(10) == 400 + 10 * 400  # b and c
    assert live.envelope.peak(1000) == 1000 * (28 + 400)  # a and b


def test_shares_of_eight_gpus_and_what_they_gather():
    config = policy_run(precision="bfloat16", parallel=ParallelConfig(shards=4))
    alone, told = plan(replace(config, parallel=ParallelConfig())), plan(config, gpus=8)
    assert (told.gpus, told.shards, told.batch) == (8, 4, 1)
    for name in ("weights", "gradients", "moments", "average"):
        assert getattr(told, name) == getattr(alone, name) / 4
    assert told.gathered > 0
    assert alone.gathered == 0
    assert told.samples_per_second == pytest.approx(8 * alone.samples_per_second)
    host = replace(config, parallel=replace(config.parallel, offload=True))
    state = told.weights + told.gradients + told.moments + told.average
    assert plan(host, gpus=8).peak == pytest.approx(told.peak - state)


def test_the_largest_batch_fits_and_the_next_one_does_not():
    config = policy_run()
    for choice in plan(config, memory=0.05, reserve=0.01).choices:
        exact = [
            next(
                c.peak
                for c in plan(replace(config, batch_size=n)).choices
                if c.recompute == choice.recompute
            )
            for n in (choice.largest, choice.largest + 1)
        ]
        assert exact[0] <= 0.04e9 < exact[1]
    assert all(c.largest == 0 for c in plan(config, memory=0.001, reserve=0).choices)


def test_recomputing_takes_less_memory_and_more_work():
    told = plan(policy_run(MIDDLE, parallel=ParallelConfig(recompute=3)))
    by_name = {choice.recompute: choice for choice in told.choices}
    assert list(by_name) == [None, 1, 2, 3]
    activations = [by_name[k].activations for k in (1, 2, 3, None)]
    assert activations == sorted(activations)
    work = [by_name[k].work for k in (None, 3, 2, 1)]
    assert work == sorted(work)
    assert work[0] == 1
    assert 1.2 < work[-1] < 4 / 3


@pytest.mark.parametrize(
    ("fields", "learning"),
    [
        ({"freeze": ("backbone",)}, {"expert"}),
        ({"lora": LoRAConfig(rank=2)}, {"backbone.language", "expert"}),
        ({"model": PI05_TINY, "freeze": ("backbone.vision",)}, None),
    ],
)
def test_only_what_learns_has_gradients_moments_and_an_average(fields, learning):
    told = plan(policy_run(**fields))
    trained = sum(part.trained for part in told.parts)
    assert (told.gradients, told.average) == (4 * trained, 4 * trained)
    assert told.moments == pytest.approx(8 * trained, rel=0.05)
    if learning is not None:
        assert {part.name for part in told.parts if part.trained} == learning


def test_cameras_come_from_the_dataset_where_the_config_names_none(tmp_path):
    features = {"observation.images.top": {}, "observation.state": {}, "action": {}}
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(json.dumps({"features": features}))
    assert sketch(policy_run(data=DataConfig(root=tmp_path))).cameras == 1
    assert sketch(policy_run(data=DataConfig(root=tmp_path / "none"))).cameras == 3
    assert sketch(policy_run(), cameras=5).cameras == 5


def test_a_stack_of_plain_layers_needs_what_its_saved_tensors_take():
    """Each layer keeps its input: 4 · width bytes a sample; nothing else grows while it runs."""
    layers = 5
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)), nn.Flatten(0))

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x).sum()

    done = rehearse(
        Sum(),
        lambda batch: (torch.zeros(batch, 8),),
        precision="float32",
        every=None,
        gradients=False,
    )
    assert done.forward == 2 * 8 * 8 * layers
    assert done.backward == 2 * 8 * 8 * (2 * layers - 1)
    assert 4 * 8 * layers <= done.activations.peak(1000) / 1000 <= 4 * 8 * (layers + 2)


def test_the_command_prints_a_table_or_json(capsys, tmp_path):
    run = tmp_path / "run.py"
    run.write_text(Path("configs/tiny.py").read_text(encoding="utf-8"), encoding="utf-8")

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            cli.main(["plan", str(run), *arguments])
        return capsys.readouterr().out

    text = said("--gpus", "2", "--memory", "24", "--cameras", "2", "--batch_size", "32")
    assert "2 GPUs, 2 shards, float32; 16 samples on each GPU at once: 2 cameras, 48 text" in text
    assert "largest batch on a GPU" in text
    told = json.loads(said("--json", "--parallel.recompute", "1", "--mfu", "0.5", "--tflops", "1"))
    assert told["chosen"] == 1
    assert told["samples_per_second"] == pytest.approx(0.5e12 / told["flops"])
    assert told["course"]["samples"] == 200 * 16


def test_a_run_lasts_as_long_as_its_flops_and_loses_what_failures_cost():
    """Closed forms; a pretend cluster of 2 GPUs that fails once in 100 of their hours."""
    config = replace(policy_run(), steps=1000, batch_size=8, save_every=100)
    told = plan(config, gpus=2, memory=24, mfu=0.5, tflops=1e-3, cameras=2)
    around = Surroundings(picture_kb=10, failure_hours=200, restart=15, disk=1e-4)
    found = course(config, told, around)
    rate = 2 * 0.5 * 1e9 / told.flops
    assert found.days == pytest.approx(8000 / rate / 86400)
    assert found.pictures == pytest.approx(2 * rate)
    assert found.encoded == pytest.approx(2 * rate * 1e4)
    assert found.decoded == pytest.approx(2 * rate * 3 * config.model.backbone.resolution**2)
    numbers = sum(part.parameters for part in told.parts)
    learning = 2 * told.moments / 8  # two float32 moments of what learns, on two GPUs
    assert found.checkpoint == pytest.approx(4 * (2 * numbers + 3 * learning), rel=1e-3)
    assert found.interval == pytest.approx(100 * 8 / rate)
    assert found.failures == pytest.approx(0.24)
    writing = found.checkpoint / 1e5
    expected = writing / found.interval + (found.interval / 2 + 900) / 360_000
    assert found.lost == pytest.approx(expected)
    for factor in (0.8, 1.25):  # the best interval is the best
        other = found.best * factor
        assert writing / other + (other / 2 + 900) / 360_000 > found.least
    assert "0.24 failures a day" in str(found)
    with pytest.raises(ValueError, match="disk is 0; it must be above 0"):
        Surroundings(disk=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpus": 3}, "3 GPUs don't divide"),
        ({"memory": 2.0}, "must be less than --memory"),
        ({"mfu": 40.0}, "a share in"),
        ({"gpus": 0}, "--gpus is 0"),
    ],
)
def test_numbers_that_make_no_plan_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(policy_run(), **arguments)


def test_a_run_of_another_kind_is_refused():
    vision = SigLIPConfig(width=32, depth=1, mlp=64, heads=2, patch=8, resolution=32)
    config = VisionConfig(
        output_dir=Path("x"), steps=1, batch_size=1, model=vision, optim=OptimConfig()
    )
    with pytest.raises(ValueError, match="VisionConfig can't be planned"):
        plan(config)


def test_gradients_that_are_summed_once_are_held_whole_until_then():
    once = plan(policy_run(accumulate=2), gpus=2)
    each = plan(policy_run(accumulate=2, parallel=ParallelConfig(reduce_once=False)), gpus=2)
    assert once.gathered - each.gathered == 2 * once.gradients
    assert once.peak - each.peak == 2 * once.gradients


def test_products_that_are_kept_take_room_and_save_work():
    every, none = (
        {c.recompute: c for c in plan(policy_run(MIDDLE, parallel=parallel)).choices}
        for parallel in (ParallelConfig(recompute=1), ParallelConfig())
    )
    kept = ParallelConfig(recompute=1, keep_products=True)
    products = {c.recompute: c for c in plan(policy_run(MIDDLE, parallel=kept)).choices}
    assert every[1].activations < products[1].activations < none[None].activations
    assert products[1].work == pytest.approx(1)
    assert every[1].work > 1
