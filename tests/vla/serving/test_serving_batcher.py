"""Answers are generated side by side, and stay apart."""

import asyncio
import threading

import pytest
from fake_model import FakeModel, answer_to

from vla.serving.batcher import Answer, Batcher, ModelFailed
from vla.serving.metrics import Metrics
from vla.serving.model import Ask
from vla.serving.refusal import Refused


def ask(prompt: str, max_tokens: int = 100) -> Ask:
    return Ask(prompt, (), max_tokens)


def run(scenario, model=None, **options):
    """Runs `scenario(batcher, model)` with a batcher that patiently collects."""
    model = model or FakeModel()

    async def inside():
        async with Batcher(model, Metrics(), **{"patience": 0.05, **options}) as batcher:
            return await scenario(batcher, model)

    return asyncio.run(inside())


def test_those_that_wait_are_one_batch_and_each_gets_its_own_answer():
    async def scenario(batcher, model):
        jobs = [batcher.submit([ask("x" * i)])[0] for i in range(10)]
        answers = await asyncio.gather(*(job.done for job in jobs))
        return [a.text for a in answers], {a.batch for a in answers}, model.batches

    texts, sizes, batches = run(scenario)
    assert texts == [answer_to("x" * i) for i in range(10)]
    assert sizes == {10}
    assert len(batches) == 1


def test_a_full_batch_does_not_wait_for_more():
    async def scenario(batcher, model):
        jobs = batcher.submit([ask(str(i)) for i in range(5)])
        first = await asyncio.wait_for(jobs[0].done, 5)
        assert not jobs[4].done.done()  # it waits for company
        return first.batch, [len(b) for b in model.batches]

    assert run(scenario, max_batch=4, patience=60) == (4, [4])


def test_an_idle_model_begins_when_patience_is_over():
    async def scenario(batcher, model):
        answer = await batcher.submit([ask("alone")])[0].done
        return answer.waited, answer.batch

    waited, batch = run(scenario, patience=0.1)
    assert batch == 1
    assert 0.1 <= waited < 1


def test_those_that_came_while_the_model_was_busy_have_been_patient_already():
    gate = threading.Event()

    async def scenario(batcher, model):
        first = batcher.submit([ask("a"), ask("b")])
        while model.batches != [["a", "b"]]:
            await asyncio.sleep(0.01)
        late = batcher.submit([ask("c")])
        await asyncio.sleep(0.3)
        gate.set()
        await first[0].done
        return await asyncio.wait_for(late[0].done, 5)

    assert run(scenario, FakeModel(gate), max_batch=2, patience=0.2).batch == 1


def test_the_model_stops_working_for_who_left():
    gate = threading.Event()

    async def scenario(batcher, model):
        job, other = batcher.submit([ask("x" * 1000, 1000), ask("y")])
        while not model.batches:
            await asyncio.sleep(0.01)
        job.done.cancel()
        gate.set()
        answer = await other.done
        await batcher.submit([ask("next")])[0].done
        return answer.text, model.steps

    text, steps = run(scenario, FakeModel(gate))
    assert text == answer_to("y")
    assert steps < 30


def test_who_left_before_the_model_was_free_is_not_asked_at_all():
    async def scenario(batcher, model):
        gone, stays = batcher.submit([ask("gone"), ask("stays")])
        gone.done.cancel()
        await stays.done
        return model.batches

    assert run(scenario) == [["stays"]]


def test_an_error_of_the_model_reaches_its_batch_alone():
    async def scenario(batcher, model):
        jobs = batcher.submit([ask("explode"), ask("beside it"), ask("later")])
        failures = await asyncio.gather(*(j.done for j in jobs), return_exceptions=True)
        return failures, (await batcher.submit([ask("again")])[0].done).text

    (first, second, later), again = run(scenario, max_batch=2)
    assert isinstance(first, ModelFailed)
    assert isinstance(second, ModelFailed)
    assert first is not second
    assert isinstance(first.__cause__, ArithmeticError)
    assert isinstance(later, Answer)
    assert later.text == answer_to("later")
    assert again == answer_to("again")


def test_a_full_queue_takes_all_of_a_request_or_nothing():
    async def scenario(batcher, model):
        batcher.submit([ask("a"), ask("b")])
        with pytest.raises(Refused) as refused:
            batcher.submit([ask("c"), ask("d")])
        batcher.submit([ask("e")])
        return refused.value, batcher.waiting

    refused, waiting = run(scenario, queue=3)
    assert refused.status == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert waiting == 3


def test_who_left_makes_room_in_the_queue():
    async def scenario(batcher, model):
        batcher.submit([ask("a")])[0].done.cancel()
        return await batcher.submit([ask("b")])[0].done

    assert run(scenario, queue=1).text == answer_to("b")


def test_nobody_is_answered_after_the_deadline():
    gate = threading.Event()

    async def scenario(batcher, model):
        first = batcher.submit([ask("a")])[0]
        while not model.batches:
            await asyncio.sleep(0.01)
        late = batcher.submit([ask("too late")])[0]
        await asyncio.sleep(0.2)
        gate.set()
        await first.done
        with pytest.raises(Refused) as refused:
            await late.done
        return refused.value.status, model.batches

    assert run(scenario, FakeModel(gate), wait_seconds=0.1, patience=0) == (503, [["a"]])


def test_answers_end_at_their_own_limits():
    async def scenario(batcher, model):
        jobs = batcher.submit([ask("abc", limit) for limit in (1, 3, 5, 100)])
        return [(a.text, a.complete) for a in [await job.done for job in jobs]]

    assert run(scenario) == [("[", False), ("[ab", False), ("[abc]", False), ("[abc]", True)]


def test_pieces_come_in_order_and_end():
    async def scenario(batcher, model):
        pieces = asyncio.Queue()
        jobs = batcher.submit([ask("ab"), ask("xyz")], ["]"], pieces)
        texts = ["", ""]
        open_jobs = {0, 1}
        while open_jobs:
            index, piece = await pieces.get()
            if piece is None:
                open_jobs.discard(index)
            else:
                texts[index] += piece[0]
        return texts, [(await job.done).text for job in jobs]

    texts, answers = run(scenario)
    assert texts == answers == ["[ab", "[xyz"]


def test_a_failure_ends_the_pieces_too():
    async def scenario(batcher, model):
        pieces = asyncio.Queue()
        (job,) = batcher.submit([ask("explode")], (), pieces)
        end = await asyncio.wait_for(pieces.get(), 5)
        return end, job.done.exception()

    end, error = run(scenario)
    assert end == (0, None)
    assert isinstance(error, ModelFailed)


def test_leaving_refuses_who_still_waits_and_lets_the_model_stop():
    gate = threading.Event()

    async def scenario(batcher, model):
        running = batcher.submit([ask("a" * 1000, 1000)])[0]
        while not model.batches:
            await asyncio.sleep(0.01)
        waits = batcher.submit([ask("b")])[0]
        asyncio.get_running_loop().call_soon(running.done.cancel)
        asyncio.get_running_loop().call_later(0.1, gate.set)
        return waits, batcher

    job, batcher = run(scenario, FakeModel(gate), max_batch=1, patience=0)
    assert isinstance(job.done.exception(), Refused)
    assert not batcher.alive
