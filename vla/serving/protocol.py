"""OpenAI's requests, read strictly: what would have no effect here is refused, never ignored.

Sources: OpenAI's API reference, "Chat" and "Completions". Ours differs in that temperature is 0
unless given, a chat has one message (PaliGemma has no turns), and `images` may stand beside the
prompt of a completion.
"""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from vla.serving.fields import Fields, as_text, kind, short
from vla.serving.limits import Limits
from vla.serving.prompts import chat_prompt
from vla.serving.refusal import Refused

_SEED = 2**63 - 1


@dataclass(frozen=True)
class Link:
    """A picture's URL, and the name of the field that it stood in."""

    url: str
    path: str


@dataclass(frozen=True)
class Question:
    """What one request wants.

    chat: it came as a chat, and is answered as one. prompt: as the model reads it. links: its
    pictures. model: the name asked for. max_tokens: the most tokens of an answer. temperature: 0
    takes the likeliest token always. top_p: in (0, 1]. n: answers. stop: texts that end an answer
    and do not belong to it. seed: None for another draw each time. alternatives: how many further
    tokens to report with each token's log probability; None reports none at all. stream: send text
    as it comes. usage: end a stream with the number of tokens.
    """

    chat: bool
    model: str
    prompt: str
    links: tuple[Link, ...]
    max_tokens: int
    temperature: float
    top_p: float
    n: int
    stop: tuple[str, ...]
    seed: int | None
    alternatives: int | None
    stream: bool
    usage: bool


def parse_json(body: bytes) -> Any:
    """The JSON value in `body`. Raises `Refused` for anything but strict JSON in UTF-8."""
    try:
        return json.loads(body, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else short(str(error), 100)
        raise Refused(f"the body is not JSON: {why}", code="invalid_json") from error


def parse_chat(value: Any, limits: Limits) -> Question:
    """The body of /v1/chat/completions. Raises `Refused`."""
    fields = Fields(value)
    model = fields.text("model")
    text, links = _message(fields.need("messages"), limits)
    wants_logprobs = fields.flag("logprobs")
    alternatives = fields.whole("top_logprobs", 0, limits.alternatives)
    if alternatives is not None and not wants_logprobs:
        raise Refused("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
    for name in ("tools", "functions"):
        fields.only(name, ([],), "PaliGemma calls no tools")
    for name in ("tool_choice", "function_call"):
        fields.only(name, ("none",), "PaliGemma calls no tools")
    fields.only("parallel_tool_calls", (True, False), "PaliGemma calls no tools")
    fields.only("modalities", (["text"],), "answers are text")
    fields.only("audio", (), "answers are text")
    fields.only("response_format", ({"type": "text"},), "answers are plain text")
    fields.only("reasoning_effort", ("none",), "PaliGemma doesn't reason before it answers")
    return _question(
        fields,
        limits,
        chat=True,
        model=model,
        prompt=_prompt(text, limits),
        links=links,
        alternatives=(alternatives or 0) if wants_logprobs else None,
    )


def parse_completion(value: Any, limits: Limits) -> Question:
    """The body of /v1/completions; its prompt goes to the model as it is. Raises `Refused`."""
    fields = Fields(value)
    model = fields.text("model")
    prompt = fields.need("prompt")
    if isinstance(prompt, list):
        raise Refused("prompt: expected one text; send several requests", "prompt", "unsupported")
    prompt = as_text(prompt, "prompt")
    if not prompt.strip():
        raise Refused("prompt is empty; for a caption use 'caption en'", "prompt", "invalid_value")
    links = fields.take("images")
    if links is None:
        links = []
    if not isinstance(links, list):
        raise Refused(f"images: expected a list, got {kind(links)}", "images", "invalid_type")
    places = [f"images[{i}]" for i in range(len(links))]
    alternatives = fields.whole("logprobs", 0, limits.alternatives)
    fields.only("best_of", (1,), "every answer that is generated is returned; use n")
    fields.only("echo", (False,), "only answers are returned")
    fields.only("suffix", ("",), "text is only continued")
    return _question(
        fields,
        limits,
        chat=False,
        model=model,
        prompt=_checked(prompt, "prompt", limits),
        links=_links([Link(as_text(u, p), p) for u, p in zip(links, places, strict=True)], limits),
        alternatives=alternatives,
    )


def _question(
    fields: Fields,
    limits: Limits,
    *,
    chat: bool,
    model: str,
    prompt: str,
    links: tuple[Link, ...],
    alternatives: int | None,
) -> Question:
    """Reads what both kinds of requests share, then refuses what is left over."""
    max_tokens = fields.whole("max_tokens", 1, limits.max_tokens)
    if chat:
        newer = fields.whole("max_completion_tokens", 1, limits.max_tokens)
        if None not in (newer, max_tokens) and newer != max_tokens:
            raise Refused(
                "max_tokens and max_completion_tokens differ; give one", "max_tokens", "conflict"
            )
        max_tokens = newer if max_tokens is None else max_tokens
    top_p = fields.number("top_p", 0, 1, 1)
    if top_p == 0:
        raise Refused("top_p: expected a number above 0", "top_p", "invalid_value")
    stream = fields.flag("stream")
    question = Question(
        chat=chat,
        model=model,
        prompt=prompt,
        links=links,
        max_tokens=limits.default_tokens if max_tokens is None else max_tokens,
        temperature=fields.number("temperature", 0, 2, 0),
        top_p=top_p,
        n=fields.whole("n", 1, limits.choices) or 1,
        stop=_stops(fields, limits),
        seed=fields.whole("seed", -_SEED, _SEED),
        alternatives=alternatives,
        stream=stream,
        usage=_usage(fields, stream),
    )
    for name in ("frequency_penalty", "presence_penalty"):
        fields.only(name, (0, 0.0), "answers are not penalised for repeating")
    fields.only("logit_bias", ({},), "tokens are not biased")
    fields.only("store", (False,), "nothing is stored")
    fields.only("service_tier", ("auto", "default"), "there is one tier")
    fields.text("user", "")  # names whoever asks, and by its definition changes no answer
    fields.finish()
    return question


def _message(messages: Any, limits: Limits) -> tuple[str, tuple[Link, ...]]:
    """Text and pictures of the only message of a chat."""
    if not isinstance(messages, list) or not messages:
        wanted = "expected a list with one message"
        raise Refused(f"messages: {wanted}, got {short(messages)}", "messages", "invalid_type")
    fields = Fields(messages[-1], f"messages[{len(messages) - 1}]")
    role = fields.text("role")
    if len(messages) > 1 or role != "user":
        raise Refused(
            "messages: PaliGemma has no turns and no system message; expected one message of the "
            f"role 'user', got {len(messages)} of which the last is of {short(role)}",
            "messages",
            "unsupported",
        )
    content = fields.take("content")
    fields.text("name", "")
    fields.finish()
    if content is None or isinstance(content, str):
        return as_text(content or "", "messages[0].content"), ()
    if not isinstance(content, list):
        path = "messages[0].content"
        raise Refused(f"{path}: expected a text or a list, got {kind(content)}", path)
    texts: list[str] = []
    links: list[Link] = []
    for i, part in enumerate(content):
        _part(Fields(part, f"messages[0].content[{i}]"), texts, links)
    if len(texts) > 1:
        path = "messages[0].content"
        raise Refused(f"{path}: expected one text part, got {len(texts)}; join them", path)
    return "".join(texts), _links(links, limits)


def _part(fields: Fields, texts: list[str], links: list[Link]) -> None:
    """Adds one part of a message's content to the texts or the links."""
    match fields.text("type"):
        case "text":
            texts.append(fields.text("text"))
        case "image_url":
            place = fields.path("image_url")
            image = Fields(fields.need("image_url"), place)
            links.append(Link(image.text("url"), f"{place}.url"))
            image.only("detail", ("auto",), "every picture is seen at the model's own resolution")
            image.finish()
        case other:
            path = fields.path("type")
            raise Refused(f"{path}: expected text or image_url, got {short(other)}", path)
    fields.finish()


def _prompt(text: str, limits: Limits) -> str:
    _checked(text, "messages[0].content", limits)
    try:
        return chat_prompt(text)
    except ValueError as error:
        raise Refused(str(error), "messages[0].content", "invalid_value") from error


def _checked(text: str, path: str, limits: Limits) -> str:
    size = len(text.encode())
    if size > limits.prompt:
        raise Refused(
            f"{path}: the text is {size} bytes long, at most {limits.prompt} are read",
            path,
            "context_length_exceeded",
        )
    return text


def _links(links: list[Link], limits: Limits) -> tuple[Link, ...]:
    if len(links) > limits.images:
        path = links[limits.images].path
        raise Refused(f"{len(links)} pictures, at most {limits.images} are read", path)
    return tuple(links)


def _stops(fields: Fields, limits: Limits) -> tuple[str, ...]:
    value = fields.take("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > limits.stops:
        raise Refused(f"stop: expected a text or up to {limits.stops} of them", "stop")
    for stop in stops:
        if not 1 <= len(as_text(stop, "stop")) <= limits.stop_length:
            raise Refused(f"stop: expected 1 to {limits.stop_length} characters", "stop")
    return tuple(stops)


def _usage(fields: Fields, stream: bool) -> bool:
    options = fields.take("stream_options")
    if options is None:
        return False
    if not stream:
        raise Refused("stream_options needs stream: true", "stream_options", "invalid_value")
    inner = Fields(options, "stream_options")
    usage = inner.flag("include_usage")
    inner.only("include_obfuscation", (False,), "streams are not padded")
    inner.finish()
    return usage


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError where a name stands in it twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a field of an object is there twice")
    return value
