from __future__ import annotations

import httpx2
import pytest

from mpsearch.client.link import DEFAULT_SERVER, arguments, connection, link_error
from mpsearch.client.steps import Call
from mpsearch.errors import InputError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch) -> None:
    for name in ("MPSEARCH_SERVER", "MPSEARCH_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_the_address_comes_from_the_caller_the_environment_or_this_machine(monkeypatch) -> None:
    assert connection(None, None, 1.0).server == DEFAULT_SERVER
    monkeypatch.setenv("MPSEARCH_SERVER", "https://there/prefix/")
    monkeypatch.setenv("MPSEARCH_API_KEY", "mps_a_b")
    found = connection(None, None, 1.0)
    assert (found.server, found.api_key) == ("https://there/prefix", "mps_a_b")
    found = connection("http://here:1", "mps_c_d", 1.0)
    assert (found.server, found.api_key) == ("http://here:1", "mps_c_d")


@pytest.mark.parametrize(
    "server", ["here:8000", "ftp://here", "http://", "http://a?b=1", "http://a:b"]
)
def test_what_is_no_address_is_refused(server: str) -> None:
    with pytest.raises(InputError, match="server"):
        connection(server, None, 1.0)


@pytest.mark.parametrize("key", ["a b", "a\nb", "\u00fc"])
def test_a_key_that_cannot_be_one_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(InputError, match="characters that a token never has") as caught:
        connection(None, key, 1.0)
    assert key not in str(caught.value)


def test_a_time_limit_must_be_positive() -> None:
    with pytest.raises(InputError, match="timeout 0"):
        connection(None, None, 0)


def test_proxies_of_the_environment_are_not_used_for_this_machine() -> None:
    for server, used in (("http://127.0.0.1:8000", False), ("http://localhost", False),
                         ("http://[::1]:8000", False), ("https://there", True)):  # fmt: skip
        assert connection(server, None, 1.0).options()["trust_env"] is used


def test_the_key_is_sent_as_a_bearer_token() -> None:
    headers = connection(None, "mps_a_b", 1.0).options()["headers"]
    assert headers["authorization"] == "Bearer mps_a_b"
    assert "authorization" not in connection(None, None, 1.0).options()["headers"]


def test_every_request_has_its_time_limits() -> None:
    usual = arguments(Call("GET", "/v1/jobs"), 60.0)["timeout"]
    assert (usual.connect, usual.read, usual.write) == (10.0, 60.0, 60.0)
    assert arguments(Call("GET", "/v1/jobs", silence=45.0), 5.0)["timeout"].read == 45.0


def test_silence_is_told_from_a_broken_connection() -> None:
    assert link_error(httpx2.ReadTimeout("")).silent
    assert not link_error(httpx2.ConnectTimeout("")).silent
    assert str(link_error(httpx2.ConnectError("refused"))) == "refused"
