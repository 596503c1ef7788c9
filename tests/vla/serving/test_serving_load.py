"""Many clients at once: every answer is that of its own picture."""

import asyncio

import pytest
from fake_model import FakeModel
from running import running

from backbone.vlm import VLM
from vla.assets import PALIGEMMA_TABLETOP
from vla.serving import load
from vla.serving.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(VLM.from_pretrained(PALIGEMMA_TABLETOP, dtype="float32"))


@pytest.fixture(scope="module")
def asked(engine):
    return load.questions(engine, 24, engine.resolution)


def test_the_questions_differ_in_their_answers(asked):
    assert len({q.answer for q in asked}) > 12
    assert all(q.answer for q in asked)


def test_no_client_gets_anothers_answer(engine, asked):
    with running(engine, name=load.NAME) as server:
        result = asyncio.run(load.drive(server.url, asked, clients=32, seconds=3))
        batches = server.metric("vla_batch_size_count")
    assert result.wrong == 0
    assert len(result.seconds) > 32
    assert batches < len(result.seconds) / 2  # they were answered together


def test_wrong_answers_are_noticed(asked):
    with running(FakeModel(), name=load.NAME) as server:
        result = asyncio.run(load.drive(server.url, asked, clients=2, seconds=0.2))
    assert result.wrong == len(result.seconds) > 0


@pytest.mark.slow
def test_the_command_compares_with_and_without_batches(capsys):
    status = load.main(["--clients", "8", "--seconds", "2", "--scenes", "12"])
    out = capsys.readouterr().out
    assert status == 0, out
    rows = [line.split() for line in out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["batches", "one"]
    assert all(row[-2:] == ["0", "0"] for row in rows)
