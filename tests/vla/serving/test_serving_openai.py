"""The official client of OpenAI's API, which is how many programs will come."""

import numpy as np
import openai
import pytest
from PIL import Image
from running import data_uri, encoded, running

from backbone.vlm import VLM
from envs.tabletop.render import render
from envs.tabletop.scene import EASY, sample_scene
from vla.assets import PALIGEMMA_TABLETOP as MODEL
from vla.serving.engine import Engine

KEY = "correct-horse-battery"
NAME = "paligemma_tabletop"


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM.from_pretrained(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def client(vlm):
    with (
        running(Engine(vlm), name=NAME, key=KEY) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return render(sample_scene(np.random.default_rng(5), EASY), "top", 72)


@pytest.fixture(scope="module")
def uri(scene) -> str:
    return data_uri(encoded(Image.fromarray(scene)))


def messages(text: str, uri: str):
    image = {"type": "image_url", "image_url": {"url": uri}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, image]}]


def test_text_is_the_vlms(client, vlm, scene, uri):
    chat = client.chat.completions.create(model=NAME, messages=messages("", uri))
    assert chat.choices[0].message.content == vlm.caption(scene)
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage.completion_tokens > 5
    question = "how many objects are there?"
    chat = client.chat.completions.create(model=NAME, messages=messages(question, uri))
    assert chat.choices[0].message.content == vlm.answer(scene, question)


def test_a_stream_is_the_same_text_in_pieces(client, vlm, scene, uri):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = client.chat.completions.create(model=NAME, messages=messages("", uri), **options)
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == vlm.caption(scene)
    assert len(pieces) > 5
    assert chunks[-1].usage.completion_tokens > 5


def test_boxes_come_in_an_extra_field(client, vlm, scene, uri):
    prompt = "detect red plate ; yellow plate"
    chat = client.chat.completions.create(model=NAME, messages=messages(prompt, uri))
    found = chat.choices[0].model_extra["vla"]["detections"]
    expected = vlm.detect(scene, ["red plate", "yellow plate"])
    assert [d["name"] for d in found] == [t.name for t in expected.things]
    assert found[0]["box_pixels"] == pytest.approx(expected.things[0].box, abs=0.01)


def test_log_probabilities_and_several_choices(client, uri):
    chat = client.chat.completions.create(
        model=NAME,
        messages=messages("caption en", uri),
        logprobs=True,
        top_logprobs=3,
        n=2,
        temperature=1.5,
        seed=1,
    )
    first, second = chat.choices
    assert first.message.content != second.message.content
    assert "".join(t.token for t in first.logprobs.content) == first.message.content
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 3 for t in first.logprobs.content)


def test_a_seed_repeats(client, uri):
    options = {"temperature": 1.5, "seed": 7, "messages": messages("caption en", uri)}
    texts = [
        client.chat.completions.create(model=NAME, **options).choices[0].message.content
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_completions_are_raw(client, vlm, scene, uri):
    options = {"model": NAME, "prompt": "caption en", "extra_body": {"images": [uri]}}
    text = vlm.caption(scene)
    assert client.completions.create(**options).choices[0].text == text
    stream = client.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text
    cut = client.completions.create(**options, stop=",", logprobs=1).choices[0]
    assert cut.text == text.partition(",")[0]
    assert cut.logprobs.tokens[0] == "a"


def test_models_are_listed(client):
    assert [m.id for m in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "vla"


def test_errors_are_the_clients_own(client, uri):
    with pytest.raises(openai.BadRequestError, match="tools is not supported") as refused:
        client.chat.completions.create(
            model=NAME, messages=messages("hi", uri), tools=[{"type": "function"}]
        )
    assert refused.value.param == "tools"
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="gpt-4o", messages=messages("hi", uri))
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()
