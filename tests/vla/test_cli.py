"""The command line: quick help, errors in one line, crashes with their traceback."""

import json
import resource
import subprocess
import sys

import pytest

from vla import cli

COMMANDS = (
    *("demo", "collect", "train", "eval", "stats", "check"),
    *("caption", "ask", "ocr", "detect", "segment", "collect-vlm", "evaluate-vlm", "bench"),
    *("chain", "transfer", "ablate", "dedup", "stamps", "score-captions"),
)
HEAVY = ("torch", "lerobot", "mujoco", "gymnasium", "numpy", "tensorboard", "matplotlib")


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_within_a_second_of_cpu_time(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [sys.executable, "-m", "vla", *command.split(), "--help"]
    answer = subprocess.run(arguments, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.stdout.startswith(f"usage: vla {command}".rstrip())
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_parsing_arguments_loads_nothing_heavy():
    program = (
        "import json, sys, vla.cli\n"
        "vla.cli._parser().parse_known_args(['train', 'x.py', '--steps', '3'])\n"
        "print(json.dumps(list(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not set(HEAVY) & set(json.loads(answer.stdout))


def test_help_after_a_config_lists_its_fields(capsys):
    status, out, _ = run(["train", "configs/tabletop_vlm.py", "--help"], capsys)
    assert status == 0
    assert "--model.vision.depth INT" in out
    status, out, _ = run(["train", "--help"], capsys)
    assert status == 0
    assert "--resume" in out
    status, _, err = run(["train", "nothing.py", "--help"], capsys)
    assert status == 2
    assert "no config file nothing.py" in err


def test_the_help_of_the_program_lists_every_command(capsys):
    status, out, _ = run(["--help"], capsys)
    assert status == 0
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("    ")}
    assert set(COMMANDS) <= listed


def fail_with(error: Exception, module: str):
    """A command that raises `error` from a function that belongs to `module`."""
    scope = {"__name__": module, "error": error}
    exec("def fail(args):\n    raise error", scope)
    return scope["fail"]


def run_failing(monkeypatch, error: Exception, module: str, *options: str) -> None:
    monkeypatch.setattr(cli, "_run_stats", fail_with(error, module))
    cli.main(["stats", "somewhere", *options])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("horizon 50 but\n  chunks of 16"), "error: horizon 50 but chunks of 16\n"),
        (FileNotFoundError(2, "No such file", "a.py"), "error: No such file: a.py\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (ImportError("install vla[sim]"), "error: install vla[sim]\n"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(monkeypatch, capsys, error, line):
    with pytest.raises(SystemExit) as stop:
        run_failing(monkeypatch, error, "vla.data.stats")
    assert stop.value.code == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("module", ["torch.nn", "numpy", "vlasomething"])
def test_an_error_raised_inside_a_library_stays_a_crash(monkeypatch, module):
    with pytest.raises(ValueError, match="bad"):
        run_failing(monkeypatch, ValueError("bad"), module)


def test_a_bug_of_ours_stays_a_crash(monkeypatch):
    with pytest.raises(AssertionError):
        run_failing(monkeypatch, AssertionError("impossible"), "vla.pi0")


def test_debug_shows_the_traceback_of_user_errors(monkeypatch):
    with pytest.raises(ValueError, match="bad"):
        run_failing(monkeypatch, ValueError("bad"), "vla.pi0", "--debug")
    monkeypatch.setenv("VLA_DEBUG", "1")
    with pytest.raises(ValueError, match="bad"):
        run_failing(monkeypatch, ValueError("bad"), "vla.pi0")


def test_an_interrupt_is_not_a_traceback(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run_stats", interrupted)
    assert run(["stats", "somewhere"], capsys)[::2] == (130, "interrupted\n")


def test_an_argument_that_no_command_takes_is_refused(capsys):
    status, _, err = run(["stats", "somewhere", "--colour", "red"], capsys)
    assert status == 2
    assert "unrecognized arguments: --colour red" in err


def test_train_hands_unknown_options_to_the_config(monkeypatch):
    seen = {}
    monkeypatch.setattr("vla.config.load_config", lambda p, o: seen.update(path=p, overrides=o))
    monkeypatch.setattr("vla.training.loop.train", lambda c, resume: seen.update(resume=resume))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "tiny.py", "--steps", "20", "--resume", "--optim.lr", "1e-4"])
    assert str(seen["path"]) == "tiny.py"
    assert seen["overrides"] == ["--steps", "20", "--optim.lr", "1e-4"]
    assert seen["resume"] is True


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["eval", "no/policy", "--env", "Tabletop-easy-v0", "--episodes", "1"], ["no/policy"]),
        (["collect", "Tabletop-easy", "--episodes", "1", "--root", "x"], ["Tabletop-easy-v0"]),
        (["collect", "metaworld/reach-v9", "--episodes", "1", "--root", "x"], ["reach-v3"]),
        (["train", "no/config.py"], ["no/config.py"]),
        (["stats", "no/dataset"], ["no/dataset"]),
        (["check", "no/dataset"], ["no/dataset"]),
    ],
)
def test_a_wrong_name_is_answered_in_one_line(capsys, monkeypatch, tmp_path, arguments, parts):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(arguments, capsys)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(part in err for part in parts)
    assert not list(tmp_path.iterdir())


def test_check_lists_faults_and_says_so_in_its_status(capsys, video_dataset):
    assert run(["check", str(video_dataset)], capsys)[:2] == (0, f"{video_dataset}: no faults\n")


def test_stats_prints_every_dimension(capsys, video_dataset):
    status, out, _ = run(["stats", str(video_dataset)], capsys)
    assert status == 0
    assert "actions: " in out
