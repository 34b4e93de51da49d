"""Object stores on this machine, where their packages are installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mpsearch_api.blobs.object_stores import (
    BUCKET,
    gs_environment,
    gs_server,
    s3_environment,
    s3_server,
)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with s3_server() as url:
        yield url


@pytest.fixture(scope="session")
def gs_url() -> Iterator[str]:
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with gs_server() as url:
        yield url


@pytest.fixture
def s3_store(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an S3 server with a bucket; `s3://` goes there."""
    import s3fs

    for name, value in s3_environment(s3_url).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    if not files.exists(BUCKET):
        files.mkdir(BUCKET)
    return s3_url


@pytest.fixture
def gs_store(gs_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a server for Google Cloud Storage with a bucket; `gs://` goes there."""
    import fsspec

    for name, value in gs_environment(gs_url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    return gs_url
