"""What a step asks of the device while it runs: nothing."""

import traceback
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vla.bench.train import SIZES, _inputs
from vla.config import OptimConfig
from vla.pi0 import Pi0
from vla.training.ema import Ema
from vla.training.job import Microbatch
from vla.training.optimiser import make_optimiser
from vla.training.update import update

READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal")

ADAMW, MUON = OptimConfig(), OptimConfig(muon_lr=1e-2)


class Reads(TorchDispatchMode):
    """Where operations come from after which Python waits for a number of the device."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in READS:
            frames = traceback.extract_stack()[:-1]
            self.seen.append(" < ".join(f"{f.filename}:{f.lineno}" for f in frames[-1:-5:-1]))
        return func(*args, **kwargs or {})


def stepping(device: torch.device, precision: str, optim: OptimConfig):
    """A function that makes one step of the toy π0 and moves its average."""
    torch.manual_seed(0)
    model = Pi0(SIZES["toy"]).to(device).train()
    batch = [Microbatch(_inputs(SIZES["toy"], 2, 2, device), 2)] * 2
    optimiser = make_optimiser(model, optim)
    ema = Ema(model, 0.99)

    def step(number: int) -> None:
        made = update(
            model, optimiser, batch, step=number, device=device, precision=precision, clip=1.0
        )
        ema.update(number, made.shut)

    return step


def test_the_mode_sees_what_it_should():
    x = torch.ones(2)
    with Reads() as reads:
        x.sum().item()
        bool(x[0] > 0)
    assert len(reads.seen) >= 2


@pytest.mark.parametrize(
    ("precision", "optim"), [("float32", ADAMW), ("bfloat16", ADAMW), ("float32", MUON)]
)
def test_nothing_in_a_step_reads_single_numbers(precision, optim):
    """Forward, backward, clipping, optimisers and the average."""
    step = stepping(torch.device("cpu"), precision, optim)
    step(0)
    with Reads() as reads:
        step(1)
        step(2)
    assert reads.seen == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("precision", "optim"), [("float32", ADAMW), ("bfloat16", ADAMW), ("bfloat16", MUON)]
)
def test_the_host_does_not_wait_for_the_card(precision, optim):
    """Not even for whether all is finite: that holds the optimisers back on the card."""
    step = stepping(torch.device("cuda"), precision, optim)
    step(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in told if "synchroniz" in str(w.message)]
    assert waits == [], [str(w.message) for w in waits]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_adamw_is_one_fused_kernel_on_a_card():
    model = torch.nn.Linear(64, 64, device="cuda")
    optimiser = make_optimiser(model, OptimConfig())
    model(torch.ones(1, 64, device="cuda")).sum().backward()
    with torch.profiler.profile() as seen:
        optimiser.step()
    assert any("fused_adamw" in event.name for event in seen.events() or [])
