"""What is said when an object store is not there, refuses, or gives something else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mpsearch.errors import DocumentError
from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.remote import RemoteBlobs
from mpsearch_api.faults import MissingBlobError, UnavailableError
from mpsearch_api.http.readiness import Writable
from mpsearch_api.settings import Settings
from tests.mpsearch_api.blobs.object_stores import BUCKET, free_port, s3_server

pytest.importorskip("moto", reason="run by test_object_stores.py, where S3 and GCS are installed")

CONTENT = os.urandom(100_000)
NAME = hashlib.sha256(CONTENT).hexdigest()
KINDS = ["s3", "gs"]


def opened(folder: Path, kind: str, bucket: str = BUCKET, **given: object) -> RemoteBlobs:
    blobs = open_blobs(Settings(data_dir=folder, blob_url=f"{kind}://{bucket}/errors", **given))
    assert isinstance(blobs, RemoteBlobs)
    return blobs


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    request.getfixturevalue(f"{request.param}_store")
    return str(request.param)


def test_a_bucket_that_is_not_there_is_named(kind: str, tmp_path: Path) -> None:
    blobs = opened(tmp_path, kind, "nobucket")
    with pytest.raises(UnavailableError, match="no bucket or folder 'nobucket'"):
        blobs.put([CONTENT])
    with pytest.raises(UnavailableError, match="no bucket or folder 'nobucket'"):
        blobs.local_path("0" * 64)
    with pytest.raises(MissingBlobError):
        opened(tmp_path, kind).local_path("0" * 64)


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_an_object_that_is_cut_off_or_changed_is_refused(
    kind: str, tmp_path: Path, damage: bytes
) -> None:
    first = opened(tmp_path / "a", kind)
    first.put([CONTENT])
    remote = first._remote
    remote._files.pipe_file(remote.path(f"content/{NAME[:2]}/{NAME}"), damage)
    other = opened(tmp_path / "b", kind)
    with pytest.raises(DocumentError, match=f"blob {NAME} is damaged"):
        other.local_path(NAME)
    assert not list((tmp_path / "b").rglob(f"content/*/{NAME}"))
    first.put([CONTENT])
    assert other.local_path(NAME).read_bytes() == CONTENT


@pytest.mark.slow
def test_a_large_object_is_sent_and_fetched_in_blocks(kind: str, tmp_path: Path) -> None:
    block = os.urandom(1 << 20)
    blob = opened(tmp_path / "a", kind).put(block for _ in range(70))
    other = opened(tmp_path / "b", kind)
    assert other.local_path(blob.sha256).stat().st_size == 70 << 20


@pytest.mark.usefixtures("s3_store")
def test_credentials_that_are_refused_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        blobs = opened(tmp_path, "s3")
        with pytest.raises(UnavailableError, match="credentials"):
            blobs.put([CONTENT])
        with pytest.raises(UnavailableError, match="credentials"):
            blobs.local_path("0" * 64)


@pytest.mark.usefixtures("s3_store")
def test_without_credentials_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match=r"[Cc]redentials"):
        opened(tmp_path, "s3").put([CONTENT])


@pytest.mark.slow
@pytest.mark.usefixtures("s3_store")
def test_a_store_that_is_away_is_unavailable_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_url: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    away = opened(tmp_path, "s3")
    with pytest.raises(UnavailableError, match="Could not connect"):
        away.put([CONTENT])
    with pytest.raises(UnavailableError, match="Could not connect"):
        away.local_path("0" * 64)
    with pytest.raises(UnavailableError, match="Could not connect"):
        away.delete_orphans((), older_than=60)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    type(away._remote._files).clear_instance_cache()
    assert opened(tmp_path, "s3").put([CONTENT]).sha256 == NAME


@pytest.mark.slow
@pytest.mark.usefixtures("s3_store")
def test_readiness_names_the_blob_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.testclient import TestClient

    from mpsearch_api.http import create_app
    from mpsearch_api.http.catalogue import Catalogue, Description

    known = Description(
        architectures=("digits-resnet",), torchvision=(), data=("digits",), losses=(), settings={}
    )
    settings = Settings(data_dir=tmp_path, blob_url=f"s3://{BUCKET}/ready", solve_processes=1)
    app = create_app(settings, catalogue=Catalogue(known))
    with TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        assert set(client.get("/readyz").json()["faults"]) == {"dispatcher"}
        app.state.service.blobs = opened(tmp_path / "b", "s3", "nobucket")
        app.state.service.writable = Writable()
        found = client.get("/readyz").json()["faults"]
        assert "nobucket" in found["blobs"]
        refused = client.post(
            "/v1/datasets?name=a.txt",
            content=b"text",
            headers={"Content-Type": "application/octet-stream"},
        )
        assert refused.status_code == 503
        assert "nobucket" in refused.json()["detail"]
