"""Pictures from other servers, for a server that was told to fetch them (`--allow-remote-images`).

Only public addresses are asked: a URL in a request must not reach what this machine can reach and
its sender can't. The name is resolved once, all of its addresses are looked at, and the connection
goes to the address that was looked at. Redirects are not followed.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from vla.serving.refusal import Refused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv6 addresses that lead to an IPv4 address inside them
_TUNNELS = tuple(
    ipaddress.IPv6Network(n) for n in ("::ffff:0:0/96", "64:ff9b::/32", "2002::/16", "2001::/32")
)


def is_public(address: Address) -> bool:
    """Whether `address` belongs to the internet at large rather than to a network around us."""
    if isinstance(address, ipaddress.IPv6Address) and any(address in n for n in _TUNNELS):
        return False
    return address.is_global and not address.is_multicast


@dataclass(frozen=True)
class Remote:
    """Fetches pictures. size: bytes at most. seconds: for all of it. allowed: which addresses."""

    size: int
    seconds: float = 10.0
    allowed: Callable[[Address], bool] = is_public

    async def fetch(self, url: str, path: str) -> bytes:
        """The bytes at `url`. path: the request's field, for errors.

        Raises `Refused` (400) for anything but an answer of status 200 and the right size, in time.
        """
        try:
            async with asyncio.timeout(self.seconds):
                return await self._fetch(url, path)
        except TimeoutError as error:
            raise _refused(f"the picture did not arrive within {self.seconds:g} s", path) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _refused(
                f"the picture could not be fetched ({type(error).__name__})", path
            ) from error

    async def _fetch(self, url: str, path: str) -> bytes:
        parts = _split(url, path)
        host = parts.host
        address = await self._address(
            host, parts.port or (443 if parts.scheme == "https" else 80), path
        )
        headers = {
            "Host": parts.netloc.decode("ascii"),
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        }
        target = parts.copy_with(host=str(address))
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(trust_env=False, timeout=self.seconds, limits=limits) as client,
            client.stream(
                "GET", target, headers=headers, extensions={"sni_hostname": host}
            ) as response,
        ):
            if response.status_code != 200:
                raise _refused(f"expected status 200, got {response.status_code}", path)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _refused("the picture came compressed though this was not asked for", path)
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > self.size:
                    raise _refused(f"the picture is larger than {self.size} bytes", path)
            return bytes(data)

    async def _address(self, host: str, port: int, path: str) -> Address:
        """An address of `host`, all of which are allowed."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _refused("the server's name could not be resolved", path) from error
        addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
        if not all(map(self.allowed, addresses)):
            raise _refused("only pictures on public addresses are fetched", path)
        return addresses[0]


def _split(url: str, path: str) -> httpx.URL:
    parts = httpx.URL(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise _refused("expected an http or https URL", path)
    if parts.userinfo:
        raise _refused("expected a URL without a name and password", path)
    return parts


def _refused(message: str, path: str) -> Refused:
    return Refused(f"{path}: {message}", path, "image_not_fetched")
