"""Who may ask: a key, and no pages of other origins."""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from vla.serving.refusal import Refused
from vla.serving.responses import refusal_response

KEY_VARIABLE = "VLA_API_KEY"
KEY_LENGTH = 16  # characters at least
OPEN_PATHS = frozenset(
    {"/", "/healthz", "/health"}
)  # a page that holds no secret, and whether we live


def read_key(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The key in `file`, or in the environment's VLA_API_KEY; None where neither is given.

    Raises ValueError for a key of under 16 characters, or with anything but visible ASCII in it,
    and OSError for a file that can't be read.
    """
    if file is not None:
        key, source = file.read_text(encoding="utf-8").strip(), str(file)
    elif KEY_VARIABLE in environment:
        key, source = environment[KEY_VARIABLE].strip(), KEY_VARIABLE
    else:
        return None
    if len(key) < KEY_LENGTH or not all("!" <= c <= "~" for c in key):
        raise ValueError(
            f"{source}: expected a key of at least {KEY_LENGTH} visible ASCII characters, got "
            f"{len(key)} characters; `openssl rand -hex 32` makes a good one"
        )
    return key


def check_bind(host: str, key: str | None) -> None:
    """Raises ValueError where `host` can be reached from other machines and there is no key."""
    if key is None and not is_loopback(host):
        raise ValueError(
            f"--host {host} can be reached from other machines, so a key is needed: give "
            f"--api-key-file FILE or set {KEY_VARIABLE}, or stay on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine alone: localhost, 127.0.0.0/8 or ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Gate:
    """Lets requests through that carry the key, or, without a key, that name this machine.

    A browser that shows another site's page could reach a server on this machine: by that page's
    own requests, which carry its Origin, or by a name that is made to point here, which then stands
    in Host. Both are refused.
    """

    def __init__(self, app: ASGIApp, key: str | None):
        self._app = app
        self._digest = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await refusal_response(refused)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if self._digest is None and not is_loopback(_name(host)):
            return Refused("this server answers to localhost only", code="wrong_host", status=403)
        if origin and origin.partition("://")[2] != host:
            return Refused("pages of other origins may not ask", code="cross_origin", status=403)
        if self._digest is None or scope["path"] in OPEN_PATHS:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(_digest(given.strip()), self._digest)
        if scheme.lower() == b"bearer" and right:
            return None
        return Refused(
            "a key is needed; send the header Authorization: Bearer KEY",
            code="invalid_api_key",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )


def _digest(key: bytes) -> bytes:
    """Of one length whatever the key's, so that comparing takes one time."""
    return hashlib.sha256(key).digest()


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
