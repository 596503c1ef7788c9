"""What clients see: answers, errors, limits, and a server that lives on."""

import asyncio
import contextlib
import gc
import json
import logging
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fake_model import FakeModel, answer_to
from PIL import Image
from running import CHAT, COMPLETIONS, chat, data_uri, encoded, picture, running, wait_until

from vla.serving.connection import PatientProtocol
from vla.serving.limits import Limits
from vla.serving.metrics import memory


def events(response: httpx.Response) -> list:
    """What a stream of server-sent events carried; checks its frame."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines]


def test_a_chat_is_answered(fake):
    answer = fake.chat("hi", picture(1), picture(2)).json()
    prompt = "answer en hi"
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "fake"
    (choice,) = answer["choices"]
    text = answer_to(prompt, (48, 96))
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": len(prompt) + 20,
        "completion_tokens": len(text),
        "total_tokens": len(prompt) + 20 + len(text),
    }


def test_a_completion_is_answered(fake):
    body = {"model": "fake", "prompt": "go on", "max_tokens": 3, "images": [picture(1)]}
    answer = fake.client.post(COMPLETIONS, json=body).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "[go"
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_stream_carries_the_same_text_piece_by_piece(fake):
    whole = fake.chat("häßlich", picture(7), stop="ich]").json()
    stream = events(fake.chat("häßlich", picture(7), stop="ich]", stream=True))
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in stream)
    assert text == whole["choices"][0]["message"]["content"] == "[answer en häßl"
    assert {e["object"] for e in stream} == {"chat.completion.chunk"}
    assert len({e["id"] for e in stream}) == 1
    assert [e["choices"][0]["finish_reason"] for e in stream] == [None] * (len(stream) - 1) + [
        "stop"
    ]
    assert len(stream) > 5


def test_several_choices_stream_side_by_side_and_usage_comes_last(fake):
    fields = {"n": 3, "stream": True, "stream_options": {"include_usage": True}}
    *stream, last = events(fake.chat("hi", **fields))
    texts = ["", "", ""]
    for event in stream:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [answer_to("answer en hi")] * 3
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3 * len(texts[0])


def test_log_probabilities_of_a_chat_and_its_stream_agree(fake):
    fields = {"logprobs": True, "top_logprobs": 2}
    whole = fake.chat("é", **fields).json()["choices"][0]["logprobs"]["content"]
    stream = events(fake.chat("é", **fields, stream=True))
    pieces = [e["choices"][0]["logprobs"] for e in stream]
    assert [entry for p in pieces if p for entry in p["content"]] == whole
    assert whole[0] == {
        "token": "[",
        "logprob": -0.5,
        "bytes": [91],
        "top_logprobs": [
            {"token": "[", "logprob": -0.5, "bytes": [91]},
            {"token": "\\", "logprob": -1.5, "bytes": [92]},
        ],
    }


def test_log_probabilities_of_a_completion(fake):
    body = {"model": "fake", "prompt": "a", "logprobs": 1}
    logprobs = fake.client.post(COMPLETIONS, json=body).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["[", "a", "]"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{"[": -0.5}, {"a": -0.5}, {"]": -0.5}],
        "text_offset": [0, 1, 2],
    }


def test_boxes_and_masks_stand_beside_the_text(fake):
    codes = "".join(f"<seg{i:03d}>" for i in range(16))
    prompt = f"<loc0256><loc0000><loc0512><loc1023>{codes} cat ; <loc0000>x"
    body = {"model": "fake", "prompt": prompt, "images": [picture(1, (40, 20))], "max_tokens": 500}
    found = fake.client.post(COMPLETIONS, json=body).json()["choices"][0]["vla"]
    assert found["image_sizes"] == [[40, 20]]
    (cat,) = found["detections"]
    assert cat["name"] == "cat"
    assert cat["box"] == pytest.approx([0, 256 / 1023, 1, 512 / 1023], abs=1e-6)
    assert cat["box_pixels"] == pytest.approx([0, 20 * 256 / 1023, 40, 20 * 512 / 1023], abs=0.01)
    assert cat["mask"].startswith("data:image/png;base64,")
    assert len(found["dropped"]) == 2


def test_what_is_served_is_listed(fake):
    models = fake.client.get("/v1/models").json()
    assert [m["id"] for m in models["data"]] == ["fake"]
    assert fake.client.get("/v1/models/fake").json() == models["data"][0]
    assert fake.client.get("/v1/models/gpt-4").status_code == 404


def test_another_model_is_not_there(fake):
    response = fake.client.post(CHAT, json=chat("hi") | {"model": "gpt-4"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "'fake'" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405)],
)
def test_unknown_paths_and_methods_are_answered_in_the_same_shape(fake, method, path, status):
    response = fake.client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == "no_route"


def test_refusals_have_openais_shape_and_an_id(fake):
    response = fake.chat("hi", temperature="hot")
    assert response.status_code == 400
    assert response.headers["x-request-id"].startswith("req-")
    assert response.json() == {
        "error": {
            "message": "temperature: expected a number from 0 to 2, got 'hot'",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_value",
        }
    }


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/json"}, 400),
    ],
)
def test_only_plain_json_is_read(fake, headers, status):
    assert fake.client.post(CHAT, content=b"{]", headers=headers).status_code == status


# Pictures


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://169.254.169.254/latest/meta-data", "invalid_image_url"),
        ("https://example.org/cat.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("", "invalid_image_url"),
        ("data:", "invalid_image_url"),
        ("data:image/png,abc", "invalid_image_url"),
        ("data:text/html;base64,AAAA", "invalid_image_url"),
        ("data:image/png;base64,A", "invalid_base64"),
        ("data:image/png;base64,AA*A", "invalid_base64"),
        ("data:image/png;base64,AÄAA", "invalid_base64"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:image/png;base64,AAAA", "invalid_image"),
        (data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml"), "invalid_image"),
        (data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "invalid_image"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_place(fake, url, code):
    response = fake.chat("hi", picture(1), url)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == code
    assert error["param"] == "messages[0].content[1].image_url.url"


def test_too_many_pictures_are_refused(fake):
    assert fake.chat("hi", *[picture(1)] * 9).status_code == 400
    assert fake.chat("hi", *[picture(1)] * 8).status_code == 200


# Limits


def test_a_body_that_says_it_is_too_long_is_not_read(fake):
    response = fake.client.post(CHAT, content=b" " * (10 * 2**20 + 1))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_say_so_is_cut_off_while_it_comes():
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(200):
            sent += 1
            yield b" " * 10_000

    with running(FakeModel(), Limits(body=100_000)) as server:
        headers = {"Content-Type": "application/json"}
        response = server.client.post(CHAT, content=chunks(), headers=headers)
        assert response.status_code == 413
        assert server.metric("vla_body_bytes") == 0


def test_all_bodies_together_are_limited():
    limits = Limits(body=50_000, bodies=60_000)
    with (
        running(FakeModel(), limits) as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45000\r\n\r\n"
        slow.sendall(head.encode() + b" " * 40_000)
        wait_until(lambda: server.metric("vla_body_bytes") == 40_000)
        response = server.client.post(CHAT, content=b" " * 30_000)
        assert response.status_code == 429
        assert "retry-after" in response.headers
        assert server.chat("small ones still fit").status_code == 200
        slow.close()
        wait_until(lambda: server.metric("vla_body_bytes") == 0)


def test_a_body_that_comes_too_slowly_is_given_up():
    with (
        running(FakeModel(), Limits(body_seconds=0.2)) as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
        slow.sendall(head.encode())
        slow.settimeout(10)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_headers_that_never_end_close_the_connection():
    with (
        running(FakeModel(), Limits(head_seconds=0.3)) as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        slow.settimeout(10)
        slow.sendall(b"GET /healthz HT")
        assert _rest(slow) == b""


def test_headers_of_a_second_request_have_a_deadline_too():
    with (
        running(FakeModel(), Limits(head_seconds=0.3)) as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        slow.settimeout(10)
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /he")
        assert b"HTTP" not in _rest(slow)


def _rest(connection: socket.socket) -> bytes:
    """What comes until the other side ends the connection; a timeout is an error."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(2**20):
            data += chunk
    return data


def test_a_client_that_never_reads_is_let_go(caplog):
    caplog.set_level(logging.INFO, "vla.serving")
    fields = {"stream": True, "n": 8, "max_tokens": 1000, "logprobs": True, "top_logprobs": 5}
    body = json.dumps(chat("x" * 1000, **fields)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    limits = Limits(write_seconds=0.3, max_tokens=1000)
    with running(FakeModel(), limits) as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(head.encode() + body)
        wait_until(lambda: any(CHAT in record.getMessage() for record in caplog.records), 30)
        slow.settimeout(10)
        assert b"[DONE]" not in _rest(slow)
        assert server.chat("hi").status_code == 200


def test_two_hundred_slow_clients_do_not_stop_others():
    with running(FakeModel(), replace(Limits(), head_seconds=60)) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        for i, connection in enumerate(slow):
            if i % 2:
                connection.sendall(b"POST /v1/chat/compl")
            else:
                head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{{"
                connection.sendall(head.encode())
        wait_until(lambda: server.metric("vla_body_bytes") == 100)
        for _ in range(10):
            assert server.chat("hi").status_code == 200
        for connection in slow:
            connection.close()
        wait_until(lambda: server.metric("vla_body_bytes") == 0)


def test_a_full_queue_says_when_to_come_again():
    gate = threading.Event()
    model = FakeModel(gate)
    with running(model, Limits(queue=2), max_batch=1, patience=0) as server:

        async def storm():
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                waiting = [asyncio.create_task(client.post(CHAT, json=chat("hi")))]
                while not model.batches:
                    await asyncio.sleep(0.01)
                waiting += [
                    asyncio.create_task(client.post(CHAT, json=chat("hi"))) for _ in range(5)
                ]
                refused = 0
                while refused < 3:
                    await asyncio.sleep(0.01)
                    refused = sum(task.done() for task in waiting)
                health = await client.get("/healthz")
                gate.set()
                return health, await asyncio.gather(*waiting)

        health, responses = asyncio.run(storm())
    assert health.status_code == 200
    assert sorted(r.status_code for r in responses) == [200] * 3 + [429] * 3
    refused = next(r for r in responses if r.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_answers_on_one_connection_do_not_wait_for_acknowledgements(fake):
    assert fake.client.get("/healthz").status_code == 200
    ours = [c for c in gc.get_objects() if issubclass(type(c), PatientProtocol)]
    sockets = [c.transport.get_extra_info("socket") for c in ours if not c.transport.is_closing()]
    assert sockets
    assert all(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in sockets)


# Leaving


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_work(stream):
    gate = threading.Event()
    model = FakeModel(gate)
    with running(model, Limits(max_tokens=5000)) as server:
        body = json.dumps(chat("x" * 2000, stream=stream, max_tokens=5000)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: bool(model.batches))
        if not stream:  # a stream's client is noticed to be gone before its first piece too
            wait_until(lambda: server.metric("vla_cancelled_total") == 1)
        else:
            time.sleep(0.2)
        gate.set()
        assert server.chat("hi").status_code == 200
        wait_until(lambda: server.metric("vla_cancelled_total") == 1)
        assert model.steps < 100


def test_a_client_that_leaves_in_the_middle_of_a_stream_ends_its_work():
    class Slow(FakeModel):
        def decode(self, asks, wanted):
            for row in super().decode(asks, wanted):
                time.sleep(0.005)
                yield row

    model = Slow()
    with running(model, Limits(max_tokens=5000)) as server:
        body = chat("x" * 2000, stream=True, max_tokens=5000)
        with server.client.stream("POST", CHAT, json=body) as response:
            assert "assistant" in next(response.iter_lines())
        wait_until(lambda: server.metric("vla_cancelled_total") == 1)
        assert server.chat("hi").status_code == 200
        assert model.steps < 1000


# Failures


def test_a_failing_model_is_a_500_with_an_id_that_the_log_has(fake, caplog):
    with caplog.at_level(logging.ERROR, "vla.serving"):
        response = fake.chat("explode")
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["type"] == "server_error"
    assert "secret" not in response.text
    id = response.headers["x-request-id"]
    assert id in error["message"]
    (record,) = [r for r in caplog.records if r.name == "vla.serving"]
    assert id in record.getMessage()
    assert record.exc_info
    assert fake.chat("hi").status_code == 200


def test_a_model_that_fails_before_the_first_piece_of_a_stream_is_a_500_too(fake):
    assert fake.chat("explode", stream=True).status_code == 500


def test_a_model_that_fails_in_the_middle_ends_the_stream_with_an_error():
    class Breaks(FakeModel):
        def decode(self, asks, wanted):
            for step, row in enumerate(super().decode(asks, wanted)):
                if step == 5:
                    raise ArithmeticError("secret")
                yield row

    with running(Breaks()) as server:
        *stream, last = events(server.chat("hello", stream=True))
        assert last["error"]["type"] == "server_error"
        assert "secret" not in last["error"]["message"]
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in stream)
        assert text == answer_to("answer en hello")[:5]


def test_a_bug_of_ours_is_a_500_with_an_id_and_the_server_lives_on(caplog):
    class Buggy(FakeModel):
        def prepare(self, image):
            raise KeyError("bug")

    with running(Buggy()) as server:
        response = server.chat("hi", picture(1))
        assert response.status_code == 500
        assert response.headers["x-request-id"] in response.json()["error"]["message"]
        assert any(response.headers["x-request-id"] in r.getMessage() for r in caplog.records)
        assert server.chat("hi").status_code == 200


def test_nothing_is_left_behind_by_clients_of_any_kind():
    def mixed(server, port: int) -> None:
        for i in range(25):
            server.chat("hi", picture(i))
            server.chat("hi", picture(i), stream=True, n=2)
            server.chat("explode")
            server.chat("hi", "data:image/png;base64,AAAA")
            server.client.post(CHAT, content=b"{")
            server.client.post(CHAT, content=b" " * 300_000)
            body = json.dumps(chat("x" * 1000, stream=bool(i % 2))).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            for sent in (head.encode() + body, head.encode() + body[:50], b"GET /"):
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(sent)

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    with running(FakeModel(), Limits(body=200_000)) as server:
        mixed(server, server.port)
        wait_until(lambda: server.metric("vla_body_bytes") == 0)
        time.sleep(0.3)
        before, memory_before = held(), memory()
        for _ in range(4):
            mixed(server, server.port)
        wait_until(lambda: server.metric("vla_body_bytes") == 0)
        wait_until(lambda: server.metric("vla_queue_length") == 0)  # of those who left at once
        wait_until(lambda: held() <= before)
        assert memory() < 1.05 * memory_before
        assert server.chat("hi").status_code == 200


# What is counted


def test_metrics_are_counted_and_well_formed():
    with running(FakeModel()) as server:
        for _ in range(3):
            server.chat("hi")
        server.chat("hi", temperature=9)
        text = server.client.get("/metrics").text
        assert server.metric('vla_requests_total{status="200"}') >= 3
        assert server.metric('vla_requests_total{status="400"}') == 1
        assert server.metric("vla_tokens_total") == 3 * len(answer_to("answer en hi"))
        assert server.metric("vla_batch_size_count") == 3
        assert server.metric('vla_batch_size_bucket{le="+Inf"}') == 3
        assert server.metric("vla_resident_bytes") > 1e6
        kinds = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(kinds) == len(set(kinds))
        assert all(line.startswith(("# ", "vla_")) for line in text.splitlines())


def test_ready_while_it_runs(fake):
    assert fake.client.get("/readyz").json() == {"status": "ok"}


POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(5000)) + b"\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST + b"Content-Length: -5\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_nonsense_on_the_wire_ends_in_an_answer_or_a_closed_connection(fake, bytes_):
    with socket.create_connection(("127.0.0.1", fake.port)) as connection:
        connection.settimeout(10)
        connection.sendall(bytes_)
        connection.shutdown(socket.SHUT_WR)
        _rest(connection)
    assert fake.client.get("/healthz").status_code == 200


def test_pictures_that_come_in_are_shrunk_before_they_wait(fake):
    big = data_uri(encoded(Image.new("RGB", (2000, 1500))))
    assert fake.chat("hi", big).json()["choices"][0]["vla"]["image_sizes"] == [[2000, 1500]]
