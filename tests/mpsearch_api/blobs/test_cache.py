"""The cache of remote blobs: bounded, and never emptied of what is in use."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from mpsearch_api.blobs import cache, open_blobs
from mpsearch_api.blobs.remote import RemoteBlobs
from mpsearch_api.settings import Settings

SIZE = 1000
MOST = 3 * SIZE + 500


@pytest.fixture
def blobs(tmp_path: Path) -> RemoteBlobs:
    return opened(tmp_path)


def opened(folder: Path, most: int = MOST) -> RemoteBlobs:
    url = f"memory://{uuid.uuid4().hex}"
    return open_blobs(Settings(data_dir=folder, blob_url=url, blob_cache_bytes=most))


def content(number: int) -> bytes:
    return number.to_bytes(2, "big") * (SIZE // 2)


def name(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def kept(folder: Path) -> set[str]:
    return {path.name for path in (folder / "blob-cache" / "content").glob("*/*")}


def let_pass(folder: Path, seconds: float) -> None:
    """Let every use so far be longer ago."""
    for path in (folder / "blob-cache").rglob("*"):
        if path.is_file():
            state = path.stat()
            os.utime(path, (state.st_atime, state.st_mtime - seconds))


def store(blobs: RemoteBlobs, folder: Path, numbers: range) -> None:
    """Store blobs a day apart."""
    for number in numbers:
        assert blobs.put([content(number)]).sha256 == name(number)
        let_pass(folder, 86_400)


def test_what_was_not_used_for_longest_goes_first(blobs: RemoteBlobs, tmp_path: Path) -> None:
    store(blobs, tmp_path, range(5))
    assert kept(tmp_path) == {name(2), name(3), name(4)}
    assert blobs.local_path(name(2)).read_bytes() == content(2)
    let_pass(tmp_path, 3600)
    store(blobs, tmp_path, range(5, 6))
    assert kept(tmp_path) == {name(2), name(4), name(5)}
    # What was evicted is fetched again.
    assert blobs.local_path(name(0)).read_bytes() == content(0)


def test_what_was_asked_for_lately_stays(blobs: RemoteBlobs, tmp_path: Path) -> None:
    for number in range(6):
        blobs.put([content(number)])
    assert kept(tmp_path) == {name(number) for number in range(6)}
    let_pass(tmp_path, cache.IN_USE_SECONDS + 1)
    blobs.delete_orphans({name(number) for number in range(6)}, older_than=1e9)
    assert len(kept(tmp_path)) == 3


def test_what_a_folder_pins_stays_as_long_as_the_folder(blobs: RemoteBlobs, tmp_path: Path) -> None:
    folder = tmp_path / "attempt"
    folder.mkdir()
    blobs.put([content(0)])
    pinned = blobs.pinned(name(0), folder)
    assert blobs.pinned(name(0), folder) == pinned
    let_pass(tmp_path, 86_400 * 365)
    store(blobs, tmp_path, range(1, 6))
    assert name(0) in kept(tmp_path)
    assert pinned.read_bytes() == content(0)
    pinned.unlink()
    store(blobs, tmp_path, range(6, 7))
    assert name(0) not in kept(tmp_path)


def test_a_folder_on_another_disk_gets_a_copy(
    blobs: RemoteBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    blobs.put([content(0)])
    (tmp_path / "attempt").mkdir()
    pinned = blobs.pinned(name(0), tmp_path / "attempt")
    let_pass(tmp_path, 86_400)
    store(blobs, tmp_path, range(1, 6))
    assert name(0) not in kept(tmp_path)
    assert pinned.read_bytes() == content(0)


def test_what_is_being_read_is_read_to_its_end(blobs: RemoteBlobs, tmp_path: Path) -> None:
    blobs.put([content(0)])
    reading = blobs.read(name(0))
    first = next(reading)
    let_pass(tmp_path, 86_400)
    store(blobs, tmp_path, range(1, 6))
    assert name(0) not in kept(tmp_path)
    assert first + b"".join(reading) == content(0)


def test_marks_of_what_is_gone_go_too(blobs: RemoteBlobs, tmp_path: Path) -> None:
    store(blobs, tmp_path, range(6))
    with pytest.raises(Exception, match="no blob"):
        blobs.local_path("0" * 64)
    used = tmp_path / "blob-cache" / "used"
    assert "0" * 64 in {path.name for path in used.iterdir()}
    let_pass(tmp_path, 86_400)
    store(blobs, tmp_path, range(6, 7))
    assert {path.name for path in used.iterdir()} == kept(tmp_path)


def test_a_process_of_the_same_machine_keeps_what_the_other_uses(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    settings = Settings(data_dir=tmp_path, blob_url=url, blob_cache_bytes=MOST)
    first, second = open_blobs(settings), open_blobs(settings)
    store(first, tmp_path, range(3))
    path = second.local_path(name(0))
    store_at = time.time()
    os.utime(tmp_path / "blob-cache" / "used" / name(0), (store_at, store_at))
    first.put([content(7)])
    first.put([content(8)])
    assert path.read_bytes() == content(0)
    assert name(0) in kept(tmp_path)


@settings_of(deadline=None, max_examples=25)
@given(
    uses=st.lists(st.integers(0, 9), max_size=30),
    most=st.integers(0, 6 * SIZE),
)
def test_whatever_is_asked_for_the_cache_is_small_and_the_answers_are_right(
    tmp_path_factory: pytest.TempPathFactory, uses: list[int], most: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    blobs = opened(folder, most)
    for number in range(10):
        blobs.put([content(number)])
        let_pass(folder, 3600)
    for number in uses:
        assert blobs.local_path(name(number)).read_bytes() == content(number)
        let_pass(folder, 3600)
    blobs.delete_orphans({name(number) for number in range(10)}, older_than=1e9)
    assert SIZE * len(kept(folder)) <= most
    fsspec.filesystem("memory").store.clear()
