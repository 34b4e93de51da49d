"""Blob stores: local files and a file system of fsspec's."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from mpsearch.errors import DependencyError, DocumentError, InputError
from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.local import LocalBlobs
from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.blobs.remote import RemoteBlobs
from mpsearch_api.faults import MissingBlobError, TooLargeError, UnavailableError
from mpsearch_api.settings import Settings
from tests.mpsearch_api.blobs.object_stores import BUCKET

CONTENT = b"weights " * 1000
NAME = hashlib.sha256(CONTENT).hexdigest()


# Elsewhere `test_object_stores.py` runs these tests in an environment that has them.
ELSEWHERE = ["s3", "gs"] if importlib.util.find_spec("s3fs") is not None else []


@pytest.fixture(params=["local", "file", "memory", *ELSEWHERE])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    name = uuid.uuid4().hex
    urls = {
        "local": None,
        "file": f"file://{tmp_path}/with%20space",
        "memory": f"memory://{name}/blobs",
        "s3": f"s3://{BUCKET}/{name}/blobs",
        "gs": f"gs://{BUCKET}/{name}/blobs",
    }
    if request.param in {"s3", "gs"}:
        request.getfixturevalue(f"{request.param}_store")
    return Settings(data_dir=tmp_path / "data", blob_url=urls[request.param])


@pytest.fixture
def blobs(settings: Settings) -> BlobStore:
    return open_blobs(settings)


def all_files(folder: Path) -> list[Path]:
    passed = {"lock"}
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in passed and path.parent.name != "used"
    ]


def make_old(settings: Settings, blobs: BlobStore) -> None:
    """Let an hour pass for everything stored."""
    if isinstance(blobs, RemoteBlobs):
        _make_objects_old(blobs._remote)
    for path in all_files(settings.data_dir.parent):
        os.utime(path, (time.time() - 3600, time.time() - 3600))


def _make_objects_old(remote) -> None:
    """No store takes a time from us: what is there now is said to be older than it is."""
    time.sleep(1.1)  # S3 tells seconds
    known = {path: remote._files.modified(path) for path in remote.names("content")}
    plain_age = remote.age

    def age(path: str) -> float:
        older = known.get(path) == remote._files.modified(path)
        return plain_age(path) + (3600 if older else 0)

    remote.age = age


def test_a_blob_bears_the_hash_of_its_content(blobs: BlobStore) -> None:
    blob = blobs.put(iter([CONTENT[:100], b"", CONTENT[100:]]))
    assert (blob.sha256, blob.size) == (NAME, len(CONTENT))
    assert b"".join(blobs.read(NAME)) == CONTENT
    assert blobs.local_path(NAME).read_bytes() == CONTENT


def test_an_empty_blob_is_a_blob(blobs: BlobStore) -> None:
    blob = blobs.put([])
    assert (blob.sha256, blob.size) == (hashlib.sha256(b"").hexdigest(), 0)
    assert list(blobs.read(blob.sha256)) == []


@settings_of(deadline=None)
@given(parts=st.lists(st.binary(max_size=300), max_size=8))
def test_any_content_comes_back(tmp_path_factory: pytest.TempPathFactory, parts) -> None:
    blobs = open_blobs(Settings(data_dir=tmp_path_factory.getbasetemp() / "any"))
    blob = blobs.put(parts)
    assert blob.sha256 == hashlib.sha256(b"".join(parts)).hexdigest()
    assert b"".join(blobs.read(blob.sha256)) == b"".join(parts)


def test_a_file_is_stored_and_stays(blobs: BlobStore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert blobs.put_file(path).sha256 == NAME
    assert path.read_bytes() == CONTENT


def test_storing_again_gives_the_same_blob(blobs: BlobStore) -> None:
    assert blobs.put([CONTENT]) == blobs.put([CONTENT])


def test_too_much_is_refused_and_leaves_nothing(blobs: BlobStore, settings: Settings) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 1000

    with pytest.raises(TooLargeError, match="5000"):
        blobs.put(endless(), most=5000)
    assert all_files(settings.data_dir.parent) == []
    assert blobs.put([b"x" * 5000], most=5000).size == 5000


def test_other_content_than_expected_is_refused_and_leaves_nothing(
    blobs: BlobStore, settings: Settings
) -> None:
    assert blobs.put([CONTENT], sha256=NAME).sha256 == NAME
    before = all_files(settings.data_dir.parent)
    with pytest.raises(InputError, match=NAME):
        blobs.put([b"other"], sha256=NAME)
    assert all_files(settings.data_dir.parent) == before


def test_a_body_that_breaks_off_leaves_nothing(blobs: BlobStore, settings: Settings) -> None:
    def broken() -> Iterator[bytes]:
        yield CONTENT
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        blobs.put(broken())
    assert all_files(settings.data_dir.parent) == []


def test_what_is_not_there_is_missing(blobs: BlobStore) -> None:
    with pytest.raises(MissingBlobError, match=NAME):
        list(blobs.read(NAME))
    with pytest.raises(MissingBlobError, match=NAME):
        blobs.local_path(NAME)


@pytest.mark.parametrize(
    "name", ["", "..", "../../etc/passwd", "/etc/passwd", NAME.upper(), NAME[:-1], NAME + "\n"]
)
def test_only_hashes_become_paths(blobs: BlobStore, name: str) -> None:
    with pytest.raises(MissingBlobError):
        list(blobs.read(name))
    with pytest.raises(MissingBlobError):
        blobs.local_path(name)


def test_damaged_content_is_noticed(blobs: BlobStore, settings: Settings) -> None:
    path = blobs.local_path(blobs.put([CONTENT]).sha256)
    path.chmod(0o600)
    path.write_bytes(CONTENT[:-1] + b"X")
    with pytest.raises(DocumentError, match="damaged"):
        list(blobs.read(NAME))
    with pytest.raises(DocumentError, match="damaged"):
        blobs.local_path(NAME)


def test_damaged_remote_content_is_noticed(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    first = open_blobs(Settings(data_dir=tmp_path / "one", blob_url=url))
    first.put([CONTENT])
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/content/{NAME[:2]}/{NAME}", b"other")
    other = open_blobs(Settings(data_dir=tmp_path / "two", blob_url=url))
    with pytest.raises(DocumentError, match="damaged"):
        other.local_path(NAME)
    first.put([CONTENT])
    assert other.local_path(NAME).read_bytes() == CONTENT


def test_another_server_fetches_what_one_stored(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}/deep/er"
    open_blobs(Settings(data_dir=tmp_path / "one", blob_url=url)).put([CONTENT])
    other = open_blobs(Settings(data_dir=tmp_path / "two", blob_url=url))
    assert b"".join(other.read(NAME)) == CONTENT


def test_orphans_are_deleted_and_what_is_used_or_young_is_kept(
    blobs: BlobStore, settings: Settings
) -> None:
    used = blobs.put([b"used"]).sha256
    orphan = blobs.put([b"orphan"]).sha256
    assert blobs.delete_orphans({used}, older_than=60) == []
    make_old(settings, blobs)
    young = blobs.put([b"young"]).sha256
    assert blobs.delete_orphans({used}, older_than=60) == [orphan]
    assert b"".join(blobs.read(used)) == b"used"
    assert b"".join(blobs.read(young)) == b"young"
    with pytest.raises(MissingBlobError):
        blobs.local_path(orphan)


def test_content_stored_again_is_young_again(blobs: BlobStore, settings: Settings) -> None:
    blobs.put([CONTENT])
    make_old(settings, blobs)
    blobs.put([CONTENT])
    assert blobs.delete_orphans((), older_than=60) == []


def test_damaged_content_is_whole_again_once_it_is_stored_again(
    blobs: BlobStore, settings: Settings
) -> None:
    path = blobs.local_path(blobs.put([CONTENT]).sha256)
    path.chmod(0o600)
    path.write_bytes(b"short")
    blobs.put([CONTENT])
    assert b"".join(blobs.read(NAME)) == CONTENT
    assert blobs.local_path(NAME).read_bytes() == CONTENT


def test_content_stored_just_before_its_deletion_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    blobs = open_blobs(settings)
    blobs.put([CONTENT])
    make_old(settings, blobs)
    discard = LocalBlobs._discard

    def store_then_discard(self: LocalBlobs, path: Path, limit: float) -> bool:
        self.put([CONTENT])
        return discard(self, path, limit)

    monkeypatch.setattr(LocalBlobs, "_discard", store_then_discard)
    assert blobs.delete_orphans((), older_than=60) == []
    assert b"".join(blobs.read(NAME)) == CONTENT


def test_leftovers_of_killed_writers_are_swept(settings: Settings) -> None:
    script = (
        "import sys, pathlib, time\n"
        "from mpsearch_api.settings import Settings\n"
        "from mpsearch_api.blobs import open_blobs\n"
        "def chunks():\n"
        "    yield b'x' * 3_000_000\n"
        "    print('half', flush=True)\n"
        "    time.sleep(600)\n"
        "open_blobs(Settings(data_dir=sys.argv[1])).put(chunks())\n"
    )
    command = [sys.executable, "-c", script, str(settings.data_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    blobs = open_blobs(Settings(data_dir=settings.data_dir))
    assert list(settings.data_dir.rglob("content/*/*")) == []
    assert all_files(settings.data_dir) != []
    make_old(settings, blobs)
    assert blobs.delete_orphans((), older_than=60) == []
    assert all_files(settings.data_dir) == []


def test_a_disk_that_is_full_is_said_to_be_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = open_blobs(Settings(data_dir=tmp_path, blob_url=f"memory://{uuid.uuid4().hex}"))

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", refuse)
    with pytest.raises(UnavailableError, match="No space left"):
        blobs.put([CONTENT])


def test_a_scheme_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gopher"):
        open_blobs(Settings(data_dir=tmp_path, blob_url="gopher://x/y"))


def test_a_scheme_whose_package_is_missing_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DependencyError, match="s3fs"):
        open_blobs(Settings(data_dir=tmp_path, blob_url="s3://bucket/x"))
