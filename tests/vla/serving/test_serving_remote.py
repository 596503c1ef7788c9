"""Pictures by URL: fetched only from public servers, and only so much."""

import asyncio
import ipaddress
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fake_model import FakeModel
from PIL import Image
from running import encoded, running

from vla.serving.refusal import Refused
from vla.serving.remote import Remote, is_public

PICTURE = encoded(Image.new("RGB", (3, 3), (5, 5, 5)))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        paths = {"/cat.png": (200, {}), "/moved": (302, {"Location": "/cat.png"})}
        status, headers = paths.get(self.path, (200 if self.path == "/large" else 404, {}))
        if self.path == "/zipped":
            status, headers = 200, {"Content-Encoding": "gzip"}
        if self.path == "/slow":
            time.sleep(0.5)
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(bytes(10_000) if self.path == "/large" else PICTURE)

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def site():
    """A web server on this machine that stands for one on the internet."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


ANY = Remote(5000, seconds=5, allowed=lambda address: True)


def fetch(remote: Remote, url: str) -> bytes:
    return asyncio.run(remote.fetch(url, "images[0]"))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1",
        "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
        "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:4136:e378::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_around_us_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111"])
def test_addresses_of_the_internet_are(address):
    assert is_public(ipaddress.ip_address(address))


def test_a_picture_is_fetched(site):
    assert fetch(ANY, f"{site}/cat.png") == PICTURE


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/moved", "expected status 200, got 302"),
        ("/none", "expected status 200, got 404"),
        ("/large", "larger than 5000 bytes"),
        ("/zipped", "compressed"),
    ],
)
def test_other_answers_are_refused(site, path, message):
    with pytest.raises(Refused, match=message) as refused:
        fetch(ANY, f"{site}{path}")
    assert refused.value.status == 400
    assert refused.value.param == "images[0]"


def test_a_slow_server_is_not_waited_for(site):
    with pytest.raises(Refused, match=r"did not arrive within 0\.2 s"):
        fetch(Remote(5000, seconds=0.2, allowed=lambda address: True), f"{site}/slow")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "169.254.169.254",
    ],
)
def test_private_addresses_are_not_asked_however_they_are_spelt(host):
    with pytest.raises(Refused, match=r"on public addresses|could not be"):
        fetch(Remote(5000), f"http://{host}/cat.png")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/cat.png",
        "gopher://example.org/",
        "http:///cat.png",
        "http://user:secret@example.org/cat.png",
        "http://[::1/cat.png",
        "cat.png",
        "http://\x00/",
        "http://exa mple.org/",
        "http://" + "a" * 300 + ".example/",
        "http://example.org:99999/",
    ],
)
def test_other_urls_are_refused_before_anyone_is_asked(url):
    with pytest.raises(Refused):
        fetch(Remote(5000), url)


def test_a_server_that_may_fetch_does(site):
    with running(FakeModel(), remote=ANY) as server:
        choice = server.chat("hi", f"{site}/cat.png").json()["choices"][0]
        assert choice["message"]["content"].endswith("(135)")
        assert server.chat("hi", f"{site}/none").status_code == 400


def test_a_server_that_may_fetch_still_asks_no_private_address(site):
    with running(FakeModel(), remote=Remote(5000)) as server:
        response = server.chat("hi", f"{site}/cat.png")
        assert response.status_code == 400
        assert "public" in response.json()["error"]["message"]
