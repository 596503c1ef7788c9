"""What requests mean, and which are refused."""

import contextlib
import json
import random

import pytest
from running import chat

from vla.serving.limits import Limits
from vla.serving.protocol import parse_chat, parse_completion, parse_json
from vla.serving.refusal import Refused

LIMITS = Limits()
PNG = "data:image/png;base64,AAAA"


def completion(prompt="caption en", **fields):
    return {"model": "m", "prompt": prompt, **fields}


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("", "caption en"),
        ("  \n", "caption en"),
        ("what is on the plate?", "answer en what is on the plate?"),
        (" what? ", "answer en what?"),
        ("caption de", "caption de"),
        ("describe en", "describe en"),
        ("cap zh", "cap zh"),
        ("ocr", "ocr"),
        ("answer fr que vois-tu ?", "answer fr que vois-tu ?"),
        ("question en a cat", "question en a cat"),
        ("detect cat ; dog", "detect cat ; dog"),
        ("segment cat", "segment cat"),
        ("caption <loc0001><loc0002><loc0003><loc0004>",) * 2,
        ("caption", "answer en caption"),
        ("caption this", "answer en caption this"),
        ("ocr this", "answer en ocr this"),
        ("answer me", "answer en answer me"),
        ("Detect the cat", "answer en Detect the cat"),
    ],
)
def test_a_message_becomes_a_prompt_of_paligemmas(text, prompt):
    assert parse_chat(chat(text), LIMITS).prompt == prompt


def test_a_completions_prompt_is_left_as_it_is():
    assert parse_completion(completion(" locate everything\n"), LIMITS).prompt == (
        " locate everything\n"
    )


def test_what_is_not_said_has_openais_defaults_except_for_greedy_decoding():
    question = parse_chat(chat("hi"), LIMITS)
    assert (question.temperature, question.top_p, question.n, question.seed) == (0, 1, 1, None)
    assert (question.stop, question.alternatives, question.stream) == ((), None, False)
    assert question.max_tokens == LIMITS.default_tokens


def test_everything_that_can_be_said_is_heard():
    fields = {
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "n": 3,
        "stop": [";", "."],
        "seed": -4,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "somebody",
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
    }
    question = parse_chat(chat("hi", PNG, PNG, **fields), LIMITS)
    assert [link.path for link in question.links] == [
        f"messages[0].content[{i}].image_url.url" for i in (0, 1)
    ]
    assert question.max_tokens == 7
    assert (question.temperature, question.top_p, question.n, question.seed) == (0.5, 0.25, 3, -4)
    assert (question.stop, question.alternatives) == ((";", "."), 2)
    assert question.stream
    assert question.usage


def test_completions_count_alternatives_and_take_pictures_beside_the_prompt():
    question = parse_completion(completion(logprobs=3, images=[PNG], stop="."), LIMITS)
    assert question.alternatives == 3
    assert [(link.url, link.path) for link in question.links] == [(PNG, "images[0]")]
    assert question.stop == (".",)
    assert not question.chat


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "12"}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 10**9}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": "x" * 65}, "stop"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"logprobs": 2}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"user": 5}, "user"),
        ({"beam_width": 4}, "beam_width"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "system", "content": "be kind"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x" * 2049}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "detect a ; a"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "detect ;"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "hi", "tool_calls": []}]}, None),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(fields, param):
    with pytest.raises(Refused) as refused:
        parse_chat(chat("hi") | fields, LIMITS)
    assert refused.value.status == 400
    assert refused.value.param == (param or "messages[0].tool_calls")
    assert len(refused.value.message) < 400
    json.dumps(refused.value.as_json(), allow_nan=False).encode("ascii")


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "text", "text": "again"}, "messages[0].content"),
        ({"type": "input_audio"}, "messages[0].content[0].type"),
        ({"type": "image_url"}, "messages[0].content[0].image_url"),
        ({"type": "image_url", "image_url": PNG}, "messages[0].content[0].image_url"),
        (
            {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
            "messages[0].content[0].image_url.detail",
        ),
        ({"type": "text"}, "messages[0].content[0].text"),
        ("text", "messages[0].content[0]"),
    ],
)
def test_parts_of_a_message_are_refused_by_their_place(part, param):
    body = chat("hi")
    body["messages"][0]["content"].insert(0, part)
    with pytest.raises(Refused) as refused:
        parse_chat(body, LIMITS)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "é" * 1025}, "prompt"),
        ({"images": PNG}, "images"),
        ({"images": [5]}, "images[0]"),
        ({"images": [PNG] * 9}, "images[8]"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"max_completion_tokens": 4}, "max_completion_tokens"),
        ({"messages": []}, "messages"),
    ],
)
def test_completions_are_as_strict(fields, param):
    with pytest.raises(Refused) as refused:
        parse_completion(completion() | fields, LIMITS)
    assert refused.value.param == param


def test_a_misspelt_field_is_answered_with_the_right_one():
    with pytest.raises(Refused, match="did you mean 'temperature'"):
        parse_chat(chat("hi", temprature=1), LIMITS)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff{}",
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b"{} {}",
    ],
)
def test_only_strict_json_is_read(body):
    with pytest.raises(Refused, match="the body is not JSON") as refused:
        parse_json(body)
    assert refused.value.status == 400


@pytest.mark.parametrize("value", [None, 5, "text", [], [{}], True])
def test_a_body_that_is_no_object_is_refused(value):
    with pytest.raises(Refused, match="expected an object"):
        parse_chat(value, LIMITS)


def mutated(rng: random.Random, value):
    """`value` with something in it replaced, repeated, renamed or left out."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        changed = dict(value)
        inner = changed.pop(name)
        match rng.randrange(4):
            case 0:
                changed[name + rng.choice(["", "s", "\x00"])] = inner
            case 1:
                changed[name] = mutated(rng, inner)
            case 2:
                changed[name] = mutated(rng, inner)
                changed[rng.choice(["n", "stop", "user", "detail"])] = rng.choice(STRANGE)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], mutated(rng, value[at]), *value[at + rng.randrange(2) :]]
    return rng.choice(STRANGE)


STRANGE = [
    None, True, False, 0, -1, 1.5, 1e308, -0.0, 2**63, 10**400, float("nan"), "", " ", "\x00",
    "\ud800", "\u202e", "detect", "detect ;", "detect a ; a", "segment <", "caption xx", "x" * 3000,
    [], {}, [[]], [{}], {"type": "text"}, {"url": "data:"}, [None], ["a", 1], {"a": {"a": {}}},
]  # fmt: skip


def test_ten_thousand_mutations_are_understood_or_refused():
    rng = random.Random(0)
    whole = chat("what?", PNG, PNG, n=2, stop=["a"], logprobs=True, top_logprobs=1, stream=True)
    refused = 0
    for i in range(10_000):
        parse, value = (
            (parse_chat, whole) if i % 2 else (parse_completion, completion(images=[PNG]))
        )
        for _ in range(rng.randint(1, 3)):
            value = mutated(rng, value)
        error = refusal(parse, value)
        if error is not None:
            refused += 1
            assert 400 <= error.status < 500
            assert len(json.dumps(error.as_json())) < 1500
    assert 5000 < refused < 10_000


def refusal(parse, value) -> Refused | None:
    try:
        parse(value, LIMITS)
    except Refused as error:
        return error
    return None


def test_mutated_bytes_are_understood_or_refused():
    rng = random.Random(0)
    whole = json.dumps(chat("what?", PNG, n=2)).encode()
    for _ in range(2000):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        with contextlib.suppress(Refused):
            parse_chat(parse_json(bytes(body)), LIMITS)
