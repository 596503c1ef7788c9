"""`vla serve vlm` as a process: what it refuses, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

from vla import cli
from vla.assets import PALIGEMMA_TABLETOP as MODEL

KEY = "correct-horse-battery"


def run(arguments: list[str], capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", "vlm", *arguments])
    return int(stop.value.code or 0), capsys.readouterr().err


def test_it_does_not_start_beyond_this_machine_without_a_key(capsys, monkeypatch):
    monkeypatch.delenv("VLA_API_KEY", raising=False)
    status, err = run(["--model", str(MODEL), "--host", "0.0.0.0", "--port", "0"], capsys)
    assert status == 2
    assert "error: --host 0.0.0.0 can be reached from other machines, so a key is needed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "--port: expected 0 to 65535"),
        (["--max-wait", "-1"], "--max-wait"),
        (["--max-batch", "0"], "expected a whole number above 0"),
        (["--api-key-file", "/nowhere/key"], "/nowhere/key"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--device", "warp"], "unknown device 'warp'"),
        (["--codec", "/nowhere.npz"], "no mask codec at /nowhere.npz"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    status, err = run(["--model", str(MODEL), "--port", "0", *arguments], capsys)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--debug", "vlm"], ["vlm", "--debug"]])
def test_tracebacks_are_shown_when_asked_for(arguments):
    with pytest.raises(ValueError, match="--port: expected 0 to 65535"):
        cli.main(["serve", *arguments, "--model", str(MODEL), "--port", "-1"])


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, err = run(["--model", str(MODEL), "--port", str(port)], capsys)
    assert status == 2
    assert f"can't listen on port {port} of 127.0.0.1" in err


@pytest.mark.parametrize("kind", [[], ["vlm"]])
def test_help_comes_before_anything_heavy(kind):
    program = (
        "import sys, vla.cli\n"
        "try: vla.cli.main(sys.argv[1:])\n"
        "finally: print(sorted(set(sys.modules) & {'torch', 'numpy', 'starlette', 'uvicorn'}))"
    )
    arguments = [sys.executable, "-c", program, "serve", *kind, "--help"]
    answer = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("usage: vla serve")
    assert answer.stdout.endswith("[]\n")


@contextmanager
def server(*arguments: str, **environment: str):
    """A process that serves the small model, and its URL."""
    python = ["env", "--default-signal=INT", sys.executable]  # a shell's background jobs ignore it
    command = [*python, "-m", "vla", "serve", "vlm", "--model", str(MODEL), "--port", "0"]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[-1].rstrip("/")
    finally:
        process.kill()
        process.communicate()


def body(**fields) -> dict:
    return {"model": "paligemma_tabletop", "prompt": "locate everything", **fields}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_sigterm_finishes_what_has_begun_and_ends_with_status_0(stream):
    with server() as (process, url):
        expected = httpx.post(
            f"{url}/v1/completions", json=body(max_tokens=400, temperature=2, seed=3)
        )
        fields = body(max_tokens=400, temperature=2, seed=3, stream=stream)
        with httpx.stream("POST", f"{url}/v1/completions", json=fields, timeout=30) as response:
            lines = response.iter_lines()
            if stream:
                next(lines)
            process.send_signal(signal.SIGTERM)
            text = "".join(lines)
        assert process.wait(15) == 0
    whole = expected.json()["choices"][0]["text"]
    if stream:
        assert text.endswith("data: [DONE]")
    else:
        assert json.loads(text)["choices"][0]["text"] == whole


@pytest.mark.slow
def test_ctrl_c_ends_with_the_shells_status():
    with server() as (process, url):
        assert httpx.get(f"{url}/healthz").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130


@pytest.mark.slow
def test_a_key_from_the_environment_is_required_and_logged_nowhere():
    with server("--name", "small", VLA_API_KEY=KEY) as (process, url):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        models = httpx.get(f"{url}/v1/models", headers=headers).json()
        assert models["data"][0]["id"] == "small"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=15)
    assert "status=401" in err
    assert "status=200" in err
    assert KEY not in out + err


@pytest.mark.slow
def test_an_idle_connection_does_not_keep_it_from_ending():
    with server() as (process, url):
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as idle:
            idle.sendall(b"GET /heal")
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
