"""What is checked before any cluster is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpsearch.errors import InputError
from mpsearch_api.execution.ray.checking import check_ray, split_address, token_mode

WITHOUT_RAY = "import sys; sys.modules['ray'] = None; "
DISPATCHER = "from mpsearch_api.execution.dispatcher import main; main()"
SERVE = "from mpsearch.cli import main; main(['serve', '--port', '0', '--no-page'])"


def run(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"MPSEARCH_EXECUTOR": "ray", "MPSEARCH_DATA_DIR": str(folder)}
    environment |= {"HOME": str(folder), "COLUMNS": "300", **variables}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", [DISPATCHER, SERVE])
def test_without_ray_the_error_names_the_extra_and_there_is_no_traceback(command, tmp_path) -> None:
    ended = run(WITHOUT_RAY + command, tmp_path, MPSEARCH_RAY_ADDRESS="head:6379")
    assert ended.returncode == 4
    assert "pip install 'mpsearch[ray]'" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr + ended.stdout


@pytest.mark.parametrize("command", [DISPATCHER, SERVE])
def test_without_an_address_or_a_token_it_does_not_start(command, tmp_path) -> None:
    ended = run(command, tmp_path)
    assert ended.returncode == 2
    assert "MPSEARCH_RAY_ADDRESS" in ended.stderr + ended.stdout
    ended = run(command, tmp_path, MPSEARCH_RAY_ADDRESS="head:6379")
    assert ended.returncode == 2
    assert "no token" in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("head:6379", ("head", 6379)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[fd00::1]:6379", ("fd00::1", 6379)),
    ],
)
def test_an_address_is_host_and_port(address, found) -> None:
    assert split_address(address) == found


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "head", "head:", ":6379", "head:0", "head:99999", "auto", ""]
)
def test_other_addresses_are_refused(address) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        split_address(address)


def test_a_token_is_asked_for_unless_that_is_switched_off(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    named = tmp_path / "token"
    for variables in ({}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN_PATH": str(named)}):
        with pytest.raises(InputError, match="no token"):
            check_ray("head:6379", variables)
    check_ray("head:6379", {"RAY_AUTH_MODE": "disabled"})
    check_ray("head:6379", {"RAY_AUTH_TOKEN": "x"})
    named.write_text("x")
    check_ray("head:6379", {"RAY_AUTH_TOKEN_PATH": str(named)})
    default = tmp_path / ".ray" / "auth_token"
    default.parent.mkdir()
    default.write_text("x")
    check_ray("head:6379", {})


def test_modes_that_ray_may_learn_later_are_not_guessed() -> None:
    assert token_mode({})
    with pytest.raises(InputError, match="RAY_AUTH_MODE"):
        token_mode({"RAY_AUTH_MODE": "kerberos"})
