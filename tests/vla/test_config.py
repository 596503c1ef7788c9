"""A run's file, with overrides: right values, and mistakes answered in one line."""

import json
from pathlib import Path

import pytest

from backbone.gemma import GemmaConfig
from vla.config import DataConfig, OptimConfig, TrainConfig, as_dict, load_config, save_config
from vla.pi0 import PI0_TINY

TINY = Path(__file__).parents[2] / "configs/tiny.py"
HEADER = """
from pathlib import Path
from backbone.gemma import GemmaConfig
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.pi0 import PI0_TINY
"""


def config_file(tmp_path: Path, fields: str) -> Path:
    path = tmp_path / "run.py"
    required = "output_dir=Path('out'), model=PI0_TINY, data=DataConfig(Path('d')), steps=5, "
    path.write_text(f"{HEADER}config = TrainConfig({required} batch_size=4, {fields})")
    return path


def tiny(**fields) -> TrainConfig:
    values = {"output_dir": Path("o"), "model": PI0_TINY, "data": DataConfig(Path("d"))}
    return TrainConfig(**{**values, "steps": 5, "batch_size": 4, **fields})


def test_without_overrides_a_file_means_what_it_says(tmp_path):
    config = load_config(config_file(tmp_path, "draws=3, optim=OptimConfig(lr=0.5)"))
    assert config == tiny(
        output_dir=Path("out"), draws=3, optim=OptimConfig(lr=0.5), data=DataConfig(Path("d"))
    )


def test_overrides_reach_every_level_and_leave_the_rest():
    words = (
        "--steps 20 --optim.lr=1e-4 --no-ema-ramp --ema None --model.expert.horizon 8 "
        "--data.cameras top --freeze backbone.vision backbone.projector "
        "--optim.lr-factors backbone 0.1 expert 2"
    )
    config = load_config(TINY, words.split())
    original = load_config(TINY)
    assert isinstance(config, TrainConfig)
    assert isinstance(original, TrainConfig)
    assert config.steps == 20
    assert config.optim.lr == 1e-4
    assert config.optim.lr_factors == (("backbone", 0.1), ("expert", 2.0))
    assert config.ema is None
    assert config.ema_ramp is False
    assert config.model.expert.horizon == 8
    assert config.model.expert.gemma == original.model.expert.gemma
    assert config.data.cameras == ("top",)
    assert config.freeze == ("backbone.vision", "backbone.projector")
    assert config.batch_size == original.batch_size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--optim.lrr", "the config has no field '--optim.lrr'; did you mean '--optim.lr'?"),
        ("--lr", "the config has no field '--lr'; did you mean '--optim.lr'?"),
        ("--batchsize=3", "the config has no field '--batchsize'; did you mean '--batch_size'?"),
        ("--horizon", "no field '--horizon'; did you mean '--model.expert.horizon'?"),
        ("--zzz", "the config has no field '--zzz'; it has accumulate, "),
    ],
)
def test_an_unknown_override_is_answered_with_the_closest_field(override, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config(TINY, [override, "3"])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("stepz=5", "TrainConfig has no field 'stepz'; did you mean 'steps'?"),
        ("optim=OptimConfig(lrate=1)", "OptimConfig has no field 'lrate'; did you mean 'lr'"),
        ("x=GemmaConfig(head=3)", "GemmaConfig has no field 'head'; did you mean 'head"),
    ],
)
def test_an_unknown_field_in_a_file_is_answered_with_the_closest_one(tmp_path, fields, message):
    with pytest.raises(ValueError, match=r"run\.py: ") as error:
        load_config(config_file(tmp_path, fields))
    assert message in str(error.value)


def test_other_mistakes_in_a_file_keep_their_own_error(tmp_path):
    with pytest.raises(TypeError, match="unsupported operand"):
        load_config(config_file(tmp_path, "draws=1 + 'a'"))


def test_a_missing_file_lists_those_beside_it(tmp_path):
    path = config_file(tmp_path, "")
    with pytest.raises(FileNotFoundError, match=rf"no config file .*rum\.py; .* has {path}"):
        load_config(tmp_path / "rum.py")


def test_a_file_without_a_config_is_refused(tmp_path):
    path = tmp_path / "run.py"
    for text, found in (("x = 1", "missing"), ("config = 3", "int")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"must end in .*; its `config` is {found}"):
            load_config(path)


def test_a_value_of_the_wrong_type_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(TINY, ["--steps", "many"])
    assert stop.value.code == 2
    assert "many" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 10, "accumulate": 4}, "batch_size 10 does not divide into 4 equal"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"ema": 1.0}, r"ema is 1.0; it is a decay in \[0, 1\)"),
        ({"draws": 0}, "draws is 0"),
        ({"keep": 0}, "at least 1 checkpoint has to be kept"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


def test_values_of_parts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"optim\.lr is 0"):
        OptimConfig(lr=0)
    with pytest.raises(ValueError, match=r"optim\.clip is 0\.0; give a norm above 0, or None"):
        OptimConfig(clip=0.0)
    with pytest.raises(ValueError, match=r"data\.held_out is 1\.0"):
        DataConfig(Path("d"), held_out=1.0)


def test_the_resolved_config_is_plain_json(tmp_path):
    config = tiny(optim=OptimConfig(lr_factors=(("backbone", 0.1),)))
    save_config(config, tmp_path / "config.json")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved == as_dict(config)
    assert saved["data"]["root"] == "d"
    assert saved["optim"]["lr_factors"] == [["backbone", 0.1]]
    assert saved["model"]["expert"]["horizon"] == 4
    assert GemmaConfig(**saved["model"]["expert"]["gemma"]) == PI0_TINY.expert.gemma
