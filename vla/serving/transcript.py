"""The text of one answer while its tokens come in."""

from collections.abc import Callable, Sequence

from vla.serving.model import Token

_INCOMPLETE = "\ufffd"  # where tokens end within a character


class Transcript:
    """Turns tokens into pieces of text that can be sent at once and are never taken back.

    text: all of it so far, without a stop text and what follows it. tokens: all that came.
    stopped: whether a stop text came.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()):
        """decode: token ids → text."""
        self._decode, self._stops = decode, tuple(stops)
        self.tokens: list[Token] = []
        self.text = ""
        self.stopped = False
        self._sent = 0

    def add(self, token: Token) -> str:
        """Takes one more token. Returns what can be sent now.

        Held back are a character that is not complete yet, and what may begin a stop text.
        """
        assert not self.stopped, "no token follows a stop text"
        self.tokens.append(token)
        self.text = self._decode([t.id for t in self.tokens])
        ends = [end for end in map(self.text.find, self._stops) if end >= 0]
        if ends:
            self.stopped = True
            self.text = self.text[: min(ends)]
            return self._send(len(self.text))
        safe = len(self.text.rstrip(_INCOMPLETE))
        return self._send(min([safe, *(self._may_begin(stop) for stop in self._stops)]))

    def finish(self) -> str:
        """What was held back; no token comes any more."""
        return self._send(len(self.text))

    def _send(self, end: int) -> str:
        piece = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _may_begin(self, stop: str) -> int:
        """Where the text's end could be the beginning of `stop`; else its length."""
        for length in range(min(len(stop) - 1, len(self.text)), 0, -1):
            if self.text.endswith(stop[:length]):
                return len(self.text) - length
        return len(self.text)
