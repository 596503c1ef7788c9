"""Keys, and whom a server without one answers."""

import re

import httpx
import pytest
from fake_model import FakeModel
from running import CHAT, chat, running

from vla.serving.access import check_bind, is_loopback, read_key

KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def locked():
    with running(FakeModel(), key=KEY) as server:
        yield server


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/fake", "/metrics", "/readyz", "/nowhere"]
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": "Bearer"},
        {"Api-Key": KEY},
    ],
)
def test_without_the_key_nothing_is_told(locked, path, headers):
    response = locked.client.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_a_key_in_the_query_does_not_count(locked):
    assert locked.client.get(f"/v1/models?api_key={KEY}").status_code == 401


def test_the_key_opens(locked):
    bearer = {"Authorization": f"Bearer {KEY}"}
    assert locked.client.get("/v1/models", headers=bearer).status_code == 200
    assert locked.client.post(CHAT, headers=bearer, json=chat("hi")).status_code == 200


def test_the_page_and_the_sign_of_life_need_no_key(locked):
    for path in ("/healthz", "/health"):
        assert locked.client.get(path).json() == {"status": "ok"}
    assert "<canvas" in locked.client.get("/").text


def test_a_large_request_without_a_key_still_hears_why(locked):
    response = locked.client.post(CHAT, content=b"x" * 5_000_000)
    assert response.status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_a_server_without_a_key_answers_to_this_machines_names_only(fake, host):
    response = fake.client.get("/v1/models", headers={"Host": host})
    assert response.status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8000"])
def test_names_of_this_machine(fake, host):
    assert fake.client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_pages_of_other_origins_may_not_ask(fake, origin):
    response = fake.client.post(CHAT, json=chat("hi"), headers={"Origin": origin})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "cross_origin"
    assert "access-control-allow-origin" not in response.headers


def test_our_own_page_may_ask(fake):
    response = fake.client.post(CHAT, json=chat("hi"), headers={"Origin": fake.url})
    assert response.status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"])
def test_this_machine_needs_no_key(host):
    assert is_loopback(host)
    check_bind(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "example.org", ""])
def test_other_addresses_need_one(host):
    with pytest.raises(ValueError, match="so a key is needed"):
        check_bind(host, None)
    check_bind(host, KEY)


def test_a_key_comes_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_key(file, {"VLA_API_KEY": "another-key-of-some-length"}) == KEY
    assert read_key(None, {"VLA_API_KEY": KEY}) == KEY
    assert read_key(None, {}) is None


@pytest.mark.parametrize("key", ["", "short", "sixteen but spaced out", "ü" * 20, "a\nb" * 10])
def test_a_poor_key_is_refused_without_being_repeated(key, tmp_path):
    file = tmp_path / "key"
    file.write_text(key)
    for source in ((file, {}), (None, {"VLA_API_KEY": key})):
        with pytest.raises(ValueError, match="expected a key of at least 16") as error:
            read_key(*source)
        assert not key or not re.search(rf"\b{re.escape(key)}\b", str(error.value))


def test_a_missing_key_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_key(tmp_path / "none", {"VLA_API_KEY": KEY})


def test_a_header_that_is_not_text_is_only_a_wrong_key(locked):
    response = httpx.get(f"{locked.url}/v1/models", headers={b"Authorization": b"Bearer \xff\xfe"})
    assert response.status_code == 401
