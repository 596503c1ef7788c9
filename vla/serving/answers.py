"""Answers in OpenAI's shapes, with what was found in the picture in a field of its own, `vla`."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vla.serving.batcher import Answer
from vla.serving.model import Token
from vla.serving.protocol import Question

PieceOf = Callable[[int], bytes]


@dataclass(frozen=True)
class Reply:
    """Builds what is sent back for one question: whole, or piece by piece."""

    question: Question
    piece_of: PieceOf
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(
        self, answers: Sequence[Answer], findings: Sequence[dict[str, Any]], prompt_tokens: int
    ) -> dict[str, Any]:
        """One response with all choices."""
        choices = []
        for i, (answer, found) in enumerate(zip(answers, findings, strict=True)):
            choice = self._choice(i, "message", {"role": "assistant", "content": answer.text})
            choice["logprobs"] = self._logprobs(answer.tokens)
            choices.append(choice | {"finish_reason": reason(answer), "vla": found})
        return self._frame(chunk=False, choices=choices, usage=usage(answers, prompt_tokens))

    def opening(self, index: int) -> dict[str, Any]:
        """The first piece of a stream's choice, without text."""
        delta = {"role": "assistant", "content": ""}
        return self._frame(True, [self._choice(index, "delta", delta) | _UNFINISHED])

    def piece(self, index: int, text: str, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        """Some more text. offset: characters that were sent before."""
        choice = self._choice(index, "delta", {"content": text}) | _UNFINISHED
        choice["logprobs"] = self._logprobs(tokens, offset)
        return self._frame(True, [choice])

    def closing(self, index: int, answer: Answer, found: dict[str, Any]) -> dict[str, Any]:
        """The last piece of a choice: why it ended and what was found."""
        choice = self._choice(index, "delta", {}) | {"finish_reason": reason(answer), "vla": found}
        return self._frame(True, [choice])

    def usage(self, answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
        """The piece after all choices, if the question wanted it."""
        return self._frame(True, [], usage(answers, prompt_tokens))

    def _frame(
        self, chunk: bool, choices: list[dict[str, Any]], usage: dict[str, int] | None = None
    ) -> dict[str, Any]:
        chat = self.question.chat
        kind = (
            ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
        )
        frame = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.question.model,
            "choices": choices,
        }
        return frame if usage is None else frame | {"usage": usage}

    def _choice(self, index: int, name: str, message: dict[str, str]) -> dict[str, Any]:
        if self.question.chat:
            return {"index": index, name: message, "logprobs": None}
        return {"index": index, "text": message.get("content", ""), "logprobs": None}

    def _logprobs(self, tokens: Sequence[Token], offset: int = 0) -> dict[str, Any] | None:
        if self.question.alternatives is None:
            return None
        build = chat_logprobs if self.question.chat else completion_logprobs
        return build(tokens, self.piece_of, offset)


_UNFINISHED = {"finish_reason": None}


def reason(answer: Answer) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "stop" if answer.complete else "length"


def usage(answers: Sequence[Answer], prompt_tokens: int) -> dict[str, int]:
    """Tokens read and written; the prompt counts once, pictures included."""
    written = sum(len(a.tokens) for a in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


def chat_logprobs(tokens: Sequence[Token], piece_of: PieceOf, offset: int = 0) -> dict[str, Any]:
    """Each token with its log probability and the likeliest ones."""

    def entry(id: int, logprob: float | None) -> dict[str, Any]:
        piece = piece_of(id)
        text = piece.decode("utf-8", "replace")
        return {"token": text, "logprob": logprob, "bytes": list(piece)}

    content = [
        entry(t.id, t.logprob) | {"top_logprobs": [entry(*pair) for pair in t.likeliest]}
        for t in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: Sequence[Token], piece_of: PieceOf, offset: int = 0
) -> dict[str, Any]:
    """The same in the older shape: lists side by side; offsets count characters."""

    def text(id: int) -> str:
        return piece_of(id).decode("utf-8", "replace")

    words = [text(t.id) for t in tokens]
    offsets = [offset + sum(map(len, words[:i])) for i in range(len(words))]
    return {
        "tokens": words,
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [{text(id): p for id, p in t.likeliest} for t in tokens],
        "text_offset": offsets,
    }
