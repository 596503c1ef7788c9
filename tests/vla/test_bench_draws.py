"""`vla bench draws` at toy size: equal time for all, and the files that it leaves."""

import json

import pytest

from vla import cli
from vla.bench.draws import DrawsBench, Point, bench_draws
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.pi0 import PI0_TINY


def config(root, tmp_path, **fields) -> TrainConfig:
    return TrainConfig(
        output_dir=tmp_path,
        steps=1,
        batch_size=2,
        model=PI0_TINY,
        data=DataConfig(root=root, allow_short_episodes=True, held_out=fields.pop("held_out", 0.4)),
        optim=OptimConfig(lr=1e-3, warmup=1),
        device="cpu",
        eval_batches=1,
        **fields,
    )


@pytest.mark.slow
def test_each_number_of_draws_gets_the_same_time_and_starts_from_the_same_weights(
    image_dataset, tmp_path
):
    bench = bench_draws(config(image_dataset, tmp_path), (1, 4), seconds=1.0, points=2)
    first, *later = ([curve[i] for curve in bench.curves.values()] for i in range(3))
    assert [(p.seconds, p.steps) for p in first] == [(0.0, 0)] * 2
    assert first[0].loss == first[1].loss
    for points, least in zip(later, (0.5, 1.0), strict=True):
        assert all(p.seconds >= least for p in points)
        assert all(p.steps > 0 for p in points)
    losses = [curve[-1].loss for curve in bench.curves.values()]
    assert len({first[0].loss, *losses}) == 3  # both learned, from other draws


@pytest.mark.slow
def test_the_command_leaves_a_table_and_a_picture(image_dataset, tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(
        "from pathlib import Path\n"
        "from vla.config import DataConfig, TrainConfig\n"
        "from vla.pi0 import PI0_TINY\n"
        f"data = DataConfig(root=Path({str(image_dataset)!r}), allow_short_episodes=True)\n"
        "config = TrainConfig(output_dir=Path('x'), steps=1, batch_size=2, model=PI0_TINY,\n"
        "    data=data, device='cpu', eval_batches=1)\n"
    )
    command = ["bench", "draws", str(file), "--counts", "1", "2", "--seconds", "0.3"]
    more = ["--points", "1", "--folder", str(tmp_path / "out"), "--data.held_out", "0.4"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, *more])
    assert ended.value.code == 0, capsys.readouterr().err
    saved = json.loads((tmp_path / "out/draws.json").read_text())
    assert list(saved["curves"]) == ["1", "2"]
    assert (tmp_path / "out/draws.png").read_bytes()[:4] == b"\x89PNG"
    assert "draws" in capsys.readouterr().out


def test_the_table_says_what_a_step_takes():
    curve = (Point(0.0, 0, 2.0), Point(10.0, 40, 0.5))
    text = str(DrawsBench({4: curve}, "CPU", 32, 1))
    assert text.splitlines()[-1].split() == ["4", "40", "10", "0.250", "0.5000"]


@pytest.mark.slow
def test_without_held_out_episodes_there_is_nothing_to_compare(image_dataset, tmp_path):
    with pytest.raises(ValueError, match="no episodes are held out"):
        bench_draws(config(image_dataset, tmp_path, held_out=0), (1,), seconds=0.1)
