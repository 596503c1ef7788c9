"""How a model comes to be: declared, frozen, divided, and only then filled with numbers."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import building_run
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from backbone.lora import LoRAConfig, add_lora
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from backbone.siglip_pair import SigLIPPair, SigLIPPairConfig
from backbone.weights import save_tensors
from vla.config import DataConfig, TrainConfig
from vla.model import ModelConfig, build
from vla.pi0 import PI0_TINY
from vla.pi05 import PI05_TINY
from vla.planning.sketch import sketch
from vla.policy_config import PolicyConfig
from vla.training.optimiser import freeze, trained_parameters
from vla.training.parallel import outline
from vla.training.start import begin, drawn, own_part
from vla.training.text_job import TextConfig

CPU = torch.device("cpu")
HERE = Path(__file__).parent
GEMMA2 = replace(
    PI0_TINY,
    backbone=replace(
        PALIGEMMA_TINY, language=replace(PALIGEMMA_TINY.language, post_norms=True, window=4)
    ),
)


def unreached(model: nn.Module, *batches: tuple) -> set[str]:
    """The trained parameters that autograd gives no gradient to."""
    for inputs in batches:
        model(*inputs).backward()
    return {name for name, p in trained_parameters(model).items() if p.grad is None}


def declared(model: nn.Module, prefixes) -> set[str]:
    names = trained_parameters(model)
    return {n for n in names if any(f"{n}.".startswith(f"{prefix}.") for prefix in prefixes)}


def batches(sizes: ModelConfig) -> tuple[tuple, tuple]:
    """Zeros: demonstrations, and text."""
    data = DataConfig(Path("nowhere"), prompt_length=8, cameras=("top", "wrist"))
    common = {"output_dir": Path("unused"), "steps": 1, "batch_size": 2}
    run = TrainConfig(**common, model=sizes, data=data)
    text = TextConfig(**common, model=sizes.backbone)
    return sketch(run).inputs(2), sketch(text, text=8).inputs(2)


@pytest.mark.parametrize("sizes", [PI0_TINY, PI05_TINY, GEMMA2])
def test_the_declared_parameters_are_those_that_get_no_gradient(sizes):
    action, text = batches(sizes)
    model = build(sizes)
    assert unreached(model, action) == declared(model, model.unreached) != set()
    assert unreached(build(sizes), action, text) == set()
    assert unreached(PaliGemma(sizes.backbone), text) == set()


@pytest.mark.parametrize("sizes", [PI0_TINY, PI05_TINY])
def test_an_insulated_backbone_is_declared_whole(sizes):
    action, text = batches(sizes)
    model = build(sizes)
    model.insulated = True
    assert unreached(model, action) == declared(model, model.unreached)
    assert unreached(model, action, text) == set()


@pytest.mark.parametrize("sizes", [PI0_TINY, PI05_TINY])
def test_adapters_of_the_last_block_are_declared_too(sizes):
    action, _ = batches(sizes)
    model = build(sizes)
    add_lora(model, LoRAConfig(rank=2))
    found = unreached(model, action)
    assert "backbone.language.blocks.1.attention.q_proj.lora_A" in found
    assert found == declared(model, model.unreached)
    freeze(model, model.unreached)
    assert unreached(model, action) == set()


def test_a_start_is_a_function_of_seed_and_name():
    with torch.device("meta"):
        model = build(PI0_TINY)
    first = {name: tensor.clone() for name, tensor in drawn(model, 3)}
    assert set(first) == dict(model.named_parameters()).keys()
    assert all(p.is_meta for p in model.parameters())
    add_lora(model, LoRAConfig(rank=2))
    part = {"expert.gemma.blocks.1.mlp.up_proj.weight"}
    again = {n: t.clone() for n, t in drawn(model, 3, without=first.keys() - part)}
    assert {n for n in again if "lora" not in n} == part
    for name in part:
        assert again[name].equal(first[name])
    other = dict(drawn(model, 4, without=first.keys() - part))
    assert not any(other[name].equal(first[name]) for name in part)


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(PI0_TINY),
        lambda: build(PI05_TINY),
        lambda: SigLIPPair(SigLIPPairConfig(PALIGEMMA_TINY.vision, vocab=2176)),
    ],
)
def test_a_model_built_without_memory_begins_as_one_with(make):
    """Constants are the same, and of large tensors the mean and the spread."""
    whole = dict(make().named_parameters())
    with torch.device("meta"):
        empty = make()
    for name, tensor in drawn(empty, 0):
        expected = whole[name].detach()
        if expected.unique().numel() == 1:
            assert tensor.equal(expected), name
        elif expected.numel() >= 500:
            assert tensor.std() == pytest.approx(expected.std().item(), rel=0.1), name
            assert tensor.mean().abs() < 0.2 * tensor.std(), name
        else:
            assert tensor.abs().max() < 10 * expected.abs().max(), name


def test_beginning_fills_each_parameter_once():
    with torch.device("meta"):
        model = nn.Linear(2, 3)
    with pytest.raises(AssertionError, match="bias got no value"):
        begin(model, [("weight", torch.ones(3, 2))], CPU)
    begin(model, [("weight", torch.ones(3, 2)), ("bias", torch.zeros(3))], CPU)
    assert model(torch.ones(2)).tolist() == [2.0] * 3


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("placements", [[Shard(0)], [Replicate(), Shard(0)]])
def test_a_process_keeps_the_part_that_torch_would_give_it(rows, placements):
    whole = torch.arange(rows * 2.0).view(rows, 2)
    for rank in range(4):
        dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
        try:
            shape = (4,) if len(placements) == 1 else (2, 2)
            mesh = init_device_mesh("cpu", shape)
            told = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            assert isinstance(told, DTensor)
            assert own_part(whole, told).equal(told.to_local()), rank
        finally:
            dist.destroy_process_group()


def test_an_outline_of_an_outline_has_no_numbers_either():
    with torch.device("meta"):
        model = build(PI0_TINY)
    assert all(p.is_meta for p in outline(model).parameters())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, list[dict]]:
    """What `building_run.py` told, of one and two processes, of random numbers and a file."""
    folder = tmp_path_factory.mktemp("built")
    sizes = building_run.SIZES
    with torch.device("meta"):
        model = build(sizes)
    init = folder / "init"
    init.mkdir()
    save_tensors(dict(drawn(model, 5)), init / "model.safetensors")
    processor = PolicyConfig(sizes, ("top",), 4, 4, prompt_length=8, discrete_state=False)
    processor.save(init / "config.json")
    found = {}
    for processes in (1, 2):
        for name, source in (("random", ()), ("read", (init,))):
            where = folder / f"{name}-{processes}"
            where.mkdir()
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            launch += ["--nproc-per-node", str(processes), building_run.__file__, str(where)]
            paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
            environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
            command = [*launch, *map(str, source)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]
            files = sorted(where.glob("*.json"))
            found[where.name] = [json.loads(file.read_text()) for file in files]
    shutil.rmtree(init)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", ["random", "read"])
def test_no_process_holds_more_than_its_shards_and_one_tensor(built, source):
    [whole], parts = built[f"{source}-1"], built[f"{source}-2"]
    room = 24e6  # the outline, the mesh, pages around what is read
    for told in parts:
        assert told["shard"] == pytest.approx(whole["whole"] / 2, rel=1e-3)
        assert told["end"] < told["shard"] + room
        assert told["peak"] < told["shard"] + 2 * told["tensor"] + room
        assert told["peak"] < 0.6 * whole["peak"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["random", "read"])
def test_processes_begin_with_the_numbers_of_one(built, source):
    [whole], parts = built[f"{source}-1"], built[f"{source}-2"]
    assert sum(told["sum"] for told in parts) == pytest.approx(whole["sum"], rel=1e-9)
    assert built["random-1"][0]["sum"] != pytest.approx(built["read-1"][0]["sum"], rel=1e-3)
