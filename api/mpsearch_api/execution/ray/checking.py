"""Whether the Ray executor can run at all: its package, its address, its authentication."""

from __future__ import annotations

import importlib.util
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from mpsearch.errors import DependencyError, InputError

__all__ = ["MODE", "check_ray", "reachable", "split_address", "token_mode"]

MODE = "RAY_AUTH_MODE"
DISABLED = "disabled"
REACH = 2.0
"""Seconds that a connection to the cluster may take."""

ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):([0-9]{1,5})")


def check_ray(address: str | None, environment: Mapping[str, str]) -> None:
    """Check what can be checked without asking the cluster.

    Args:
        address: `HOST:PORT` of the cluster.
        environment: With Ray's own variables.

    Raises:
        DependencyError: Ray is not installed.
        InputError: No address, or one of another kind; or no token where one is needed.
    """
    if importlib.util.find_spec("ray") is None:
        raise DependencyError(
            "MPSEARCH_EXECUTOR=ray needs Ray, which is not installed; "
            "run: pip install 'mpsearch[ray]'"
        )
    if address is None:
        raise InputError(
            "MPSEARCH_EXECUTOR=ray needs MPSEARCH_RAY_ADDRESS, HOST:PORT of the cluster's head, "
            "such as ray-head:6379"
        )
    split_address(address)
    if token_mode(environment) and not _has_token(environment):
        raise InputError(
            "no token for the Ray cluster: put it into a file that RAY_AUTH_TOKEN_PATH names, or "
            "into RAY_AUTH_TOKEN (`ray get-auth-token --generate` makes one). "
            "RAY_AUTH_MODE=disabled would let anyone who reaches the cluster run code on it"
        )


def split_address(address: str) -> tuple[str, int]:
    """Read the address of a cluster.

    Args:
        address: `HOST:PORT`.

    Returns:
        Host and port.

    Raises:
        InputError: It is none.
    """
    found = ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found.group(2)) < 2**16:
        raise InputError(
            f"MPSEARCH_RAY_ADDRESS={address!r}: write HOST:PORT of the cluster's head, such as "
            "ray-head:6379, and run `ray start --address=HOST:PORT --num-cpus=0` beside the "
            "dispatcher; ray:// addresses are not taken"
        )
    return found.group(1).strip("[]"), int(found.group(2))


def reachable(address: str, timeout: float = REACH) -> str | None:
    """Say why the cluster cannot be reached, or None.

    Args:
        address: `HOST:PORT`.
        timeout: Seconds.

    Returns:
        The reason.
    """
    try:
        with socket.create_connection(split_address(address), timeout=timeout):
            return None
    except OSError as error:
        why = error.strerror or str(error)
        return f"the Ray cluster at {address} cannot be reached: {why}; jobs wait until it can"


def token_mode(environment: Mapping[str, str]) -> bool:
    """Say whether the cluster has to ask for a token, which it does unless that is switched off.

    Args:
        environment: With Ray's own variables.

    Returns:
        Whether `RAY_AUTH_MODE` is `token` or not set.

    Raises:
        InputError: It is something else than `token` and `disabled`.
    """
    mode = environment.get(MODE, "token").lower()
    if mode not in {"token", DISABLED}:
        raise InputError(f"{MODE}={mode!r}: write token, or disabled on a machine for tests")
    return mode == "token"


def _has_token(environment: Mapping[str, str]) -> bool:
    # The places, and their order, where Ray looks itself.
    if environment.get("RAY_AUTH_TOKEN"):
        return True
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except OSError:
        return False
