"""A step that is not finite, kept and made again: what broke first is named."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from vla.cli import main
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.pi0 import PI0_TINY
from vla.training import policy_job
from vla.training.diagnosis import diagnose, one_by_one
from vla.training.faults import NotFinite
from vla.training.job import Microbatch
from vla.training.loop import train
from vla.training.replay import keep, kept, replay

CPU = torch.device("cpu")


class Parts(nn.Module):
    """The loss of a row is w · x through two parts, the second of which breaks as it is told."""

    def __init__(self, second: nn.Module):
        super().__init__()
        self.first = nn.Linear(2, 1, bias=False)
        nn.init.ones_(self.first.weight)
        self.second = second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)).mean()


class Root(nn.Module):
    """NaN below zero; at zero, a slope that is infinite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()


def batch(*rows: tuple[float, float]) -> Microbatch:
    names = [f"data: episode 0 frame {i}" for i in range(len(rows))]
    return Microbatch((torch.tensor(rows, dtype=torch.float32),), len(rows), names)


def found(model: nn.Module, microbatch: Microbatch) -> str:
    return diagnose(model, microbatch, CPU, "float32").where


def test_the_first_that_breaks_is_named():
    model = Parts(Root())
    assert found(model, batch((1, 1), (2, 2))) == ""
    assert found(model, batch((1, 1), (torch.nan, 1))) == "input 0"
    assert found(model, batch((1, 1), (-2, 1))) == "what second gives"
    assert found(model, batch((1, 1), (-1, 1))) == "the gradient that comes back to first"
    assert found(Parts(nn.Identity()), batch((3e38, 3e38))) == "what first gives"
    model.first.weight.data[0, 0] = torch.inf
    assert found(model, batch((1, 1))) == "the weight first.weight"


def test_a_finding_has_the_loss_and_the_norm_and_leaves_no_gradient():
    model = Parts(nn.Identity())
    finding = diagnose(model, batch((1, 2), (3, 4)), CPU, "float32")
    assert finding.loss == 5
    assert finding.norm == pytest.approx((2**2 + 3**2) ** 0.5)
    assert model.first.weight.grad is None


def test_the_sample_that_does_it_alone_is_named():
    alone = dict(one_by_one(Parts(Root()), batch((1, 1), (-2, 1), (2, 2)), CPU, "float32"))
    assert [name for name, f in alone.items() if not f.finite] == ["data: episode 0 frame 1"]


def test_what_is_kept_comes_back(tmp_path):
    microbatches = [batch((1, 2)), replace(batch((3, 4), (5, 6)), factor=0.5, kind="text")]
    back = kept(keep(microbatches, tmp_path / "3.0.safetensors"))
    for one, other in zip(back, microbatches, strict=True):
        assert torch.equal(one.inputs[0], other.inputs[0])
        assert replace(one, inputs=()) == replace(other, inputs=())


@pytest.mark.slow
def test_a_policys_run_that_broke_is_seen_again(tmp_path, image_dataset, monkeypatch, capsys):
    """One frame's state is NaN, after all checks. The run saves its weights at the step; the
    replay finds the same loss, the frame, and that it came in with the batch."""

    class Broken(policy_job.Processor):
        def collate(self, items):
            made = super().collate(items)
            for row, item in enumerate(items):
                if (item["episode"], item["frame"]) == (1, 3):
                    made.state[row] = torch.nan
            return made

    monkeypatch.setattr(policy_job, "Processor", Broken)
    config = TrainConfig(
        output_dir=tmp_path,
        steps=30,
        batch_size=4,
        model=PI0_TINY,
        data=DataConfig(root=image_dataset, allow_short_episodes=True, held_out=0),
        optim=OptimConfig(lr=1e-3, warmup=1),
        draws=2,
        device="cpu",
        tensorboard=False,
    )
    with pytest.raises(NotFinite, match=rf"{image_dataset}: episode 1 frame 3.* vla replay") as e:
        train(config)
    (file,) = (tmp_path / "not_finite").glob("*.safetensors")
    told = replay(file, CPU)
    assert told.behind == 0
    assert f"at step {told.step} " in str(e.value)
    bad = {name: finding for name, finding in told.alone.items() if not finding.finite}
    assert list(bad) == [f"{image_dataset}: episode 1 frame 3"]
    assert len(told.alone) == 4
    assert told.whole[0].where == "input 0.state"
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(file), "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["step"] == told.step
    main_text = str(told)
    assert "episode 1 frame 3: loss nan" in main_text
