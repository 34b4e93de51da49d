"""Object stores that answer over HTTP on this machine: S3 by moto, Google Cloud Storage emulated.

Their clients and they themselves are installed in an environment of their own, see
tests/export_environments.sh; `test_object_stores.py` runs the tests there.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# gcsfs would ask by gRPC what kind of bucket it is, which no emulator answers; it reads this when
# it is imported.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

BUCKET = "bucket"
START_SECONDS = 60.0


@contextmanager
def s3_server(**variables: str) -> Iterator[str]:
    """Run an S3 server; gives its address."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, f"http://127.0.0.1:{port}", variables) as url:
        yield url


@contextmanager
def gs_server() -> Iterator[str]:
    """Run a server for Google Cloud Storage, with a bucket; gives its address."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "gcp-storage-emulator"), "start", "-q"]
    command += ["-H", "127.0.0.1", "--port", str(port), "--default-bucket", BUCKET, "-M"]
    with _running(command, f"http://127.0.0.1:{port}", {}) as url:
        yield url


def s3_environment(url: str) -> dict[str, str]:
    """Say where S3 is, as its clients read it."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def gs_environment(url: str) -> dict[str, str]:
    """Say where Google Cloud Storage is, as its client reads it."""
    return {"STORAGE_EMULATOR_HOST": url}


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: list[str], url: str, variables: dict[str, str]) -> Iterator[str]:
    quiet = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    process = subprocess.Popen(command, env=os.environ | variables, **quiet)
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
            except urllib.error.HTTPError:
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                assert time.monotonic() < until
                time.sleep(0.1)
            else:
                break
        yield url
    finally:
        process.kill()
        process.wait()
