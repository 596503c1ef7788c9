"""Reads a JSON object field by field, and refuses what was not read.

A field that is null counts as absent, as OpenAI's clients send it.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from vla.serving.refusal import Refused

_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs; JSON can spell them, UTF-8 not


class Fields:
    """The fields of one object of a request.

    Every method that takes a field off raises `Refused` for a value of another kind or range;
    `finish` raises it for fields that nobody took.
    """

    def __init__(self, value: Any, path: str = ""):
        """path: where the object stands in the request, such as "messages[0]"."""
        if not isinstance(value, dict):
            raise Refused(f"expected an object, got {kind(value)}", path or None, "invalid_type")
        self._left = {name: v for name, v in value.items() if v is not None}
        self._known: list[str] = []
        self._path = path

    def path(self, name: str) -> str:
        """The field's full name."""
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str) -> Any:
        """The field's value as it is; None if it is absent."""
        self._known.append(name)
        return self._left.pop(name, None)

    def need(self, name: str) -> Any:
        """The same of a field that must be there."""
        value = self.take(name)
        if value is None:
            raise Refused(f"{self.path(name)} is missing", self.path(name), "missing_field")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A text; must be there unless there is a default."""
        value = self.need(name) if default is None else self.take(name)
        return default or "" if value is None else as_text(value, self.path(name))

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number in [least, most]; None if absent."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(name, f"a whole number from {least} to {most}", value)
        return value

    def number(self, name: str, least: float, most: float, default: float) -> float:
        """A number in [least, most]; NaN is in no such range."""
        value = self.take(name)
        if value is None:
            return default
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or not least <= value <= most:
            raise self._wrong(name, f"a number from {least:g} to {most:g}", value)
        return float(value)

    def only(self, name: str, allowed: Sequence[Any], why: str) -> None:
        """A field of OpenAI's that may be there as long as it asks for nothing.

        allowed: the values that do; `why` completes "{name} is not supported: ".
        """
        value = self.take(name)
        if value is not None and not any(same(value, a) for a in allowed):
            raise Refused(
                f"{self.path(name)} is not supported: {why}", self.path(name), "unsupported"
            )

    def finish(self) -> None:
        """Refuses what is left."""
        for name in self._left:
            near = difflib.get_close_matches(name[:80], self._known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; leave it out"
            raise Refused(
                f"unknown field {short(self.path(name))}{hint}",
                self.path(name)[:80],
                "unknown_field",
            )

    def _wrong(self, name: str, wanted: str, value: Any) -> Refused:
        path = self.path(name)
        return Refused(f"{path}: expected {wanted}, got {short(value)}", path, "invalid_value")


def as_text(value: Any, path: str) -> str:
    """`value` itself, a text that UTF-8 can carry. Raises `Refused` otherwise."""
    if not isinstance(value, str):
        raise Refused(f"{path}: expected a text, got {kind(value)}", path, "invalid_type")
    if _HALVES.search(value):
        raise Refused(f"{path}: half of a surrogate pair is not a character", path, "invalid_value")
    return value


def same(a: Any, b: Any) -> bool:
    """Equal and of one type: JSON's `1` is not `true`."""
    return type(a) is type(b) and a == b


def kind(value: Any) -> str:
    """What JSON calls a value of this type."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
    return names.get(type(value), "nothing" if value is None else "a number")


def short(value: Any, most: int = 60) -> str:
    """`value` for people, never longer than `most` characters, in ASCII."""
    if isinstance(value, dict | list):
        return kind(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    text = ascii(value if not isinstance(value, str) else value[:most])
    return text if len(text) <= most else text[: most - 1] + "..."
