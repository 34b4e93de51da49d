"""Connecting this process to a cluster, after making sure that not everyone can."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError, RpcError

from mpsearch_api.execution.ray.checking import MODE, reachable

__all__ = ["connect"]

PROBE = 60.0
WRONG = 3
"""What the probe exits with when its token was refused."""


def connect(address: str, *, authenticated: bool) -> None:
    """Connect this process to a cluster.

    Args:
        address: `HOST:PORT`.
        authenticated: Whether the cluster must ask for a token.

    Raises:
        ConnectionError: It cannot be reached, refuses our token, or asks for none.
    """
    reason = reachable(address)
    if reason is not None:
        raise ConnectionError(reason)
    _check_token(address)
    if authenticated and not _refuses_others(address):
        raise ConnectionError(
            f"the Ray cluster at {address} asks for no token, so that anyone who reaches it can "
            "run code on it; start its nodes with RAY_AUTH_MODE=token. To use it all the same on "
            f"a machine for tests, set {MODE}=disabled for the dispatcher"
        )
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, RayError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[0] if lines else type(error).__name__
        raise ConnectionError(
            f"connecting to the Ray cluster at {address} failed: {said}"
        ) from error


def _check_token(address: str) -> None:
    try:
        _ask(address)
    except AuthenticationError as error:
        raise ConnectionError(
            f"the Ray cluster at {address} refuses this dispatcher's token; RAY_AUTH_TOKEN_PATH "
            "or RAY_AUTH_TOKEN must hold the token that the cluster was started with"
        ) from error
    except RpcError as error:
        raise ConnectionError(f"what answers at {address} is no Ray cluster: {error}") from error


def _refuses_others(address: str) -> bool:
    """Try a token drawn at random, in another process, since Ray reads tokens once."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")
    }
    environment |= {MODE: "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        probe = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", __name__, address],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PROBE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(f"the Ray cluster at {address} does not answer") from error
    return probe.returncode == WRONG


def _ask(address: str) -> None:
    """Ask the cluster for something that it tells only those whose token it knows.

    Ray has no public call for it; `ray health-check` does this too.
    """
    # The client asks for the cluster's id when it is made.
    GcsClient(address=address)


def _probe(address: str) -> int:
    try:
        _ask(address)
    except AuthenticationError:
        return WRONG
    return 0


if __name__ == "__main__":
    sys.exit(_probe(sys.argv[1]))
