"""Uploads: in parts, broken off, overtaken, on one server or several."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpsearch.errors import DocumentError, InputError
from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.parts import PartStore
from mpsearch_api.blobs.port import Blob, BlobStore
from mpsearch_api.faults import MissingBlobError, QuotaError, StateError, UnavailableError
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, appending, assembling
from mpsearch_api.store import uploads as uploads_module
from mpsearch_api.store.catalog import Catalog
from mpsearch_api.store.contract import SetClock
from mpsearch_api.store.uploads import Uploads

CONTENT = bytes(range(256)) * 40
NAME = hashlib.sha256(CONTENT).hexdigest()
NOWHERE = "upl_00000000000000000000000000"


@pytest.fixture
def uploads(clocked_store: Store) -> Uploads:
    return clocked_store.uploads


@pytest.fixture
def catalog(clocked_store: Store) -> Catalog:
    return clocked_store.catalog


@pytest.fixture(params=["folder", "elsewhere"])
def blobs(request: pytest.FixtureRequest, service_settings: Settings) -> BlobStore:
    """Pieces in a folder of this machine, and as objects elsewhere."""
    url = None if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
    return open_blobs(service_settings.model_copy(update={"blob_url": url}))


def test_an_upload_sent_in_parts_becomes_a_blob(
    uploads: Uploads, catalog: Catalog, blobs: BlobStore
) -> None:
    upload = uploads.create("ann", len(CONTENT), NAME.upper())
    assert (upload.offset, upload.complete, upload.sha256) == (0, False, NAME)
    half = len(CONTENT) // 2
    upload = uploads.append("ann", upload.id, 0, [CONTENT[:100], CONTENT[100:half]], blobs.parts)
    assert (upload.offset, upload.complete) == (half, False)
    upload = uploads.append("ann", upload.id, half, [CONTENT[half:]], blobs.parts)
    assert (upload.offset, upload.complete) == (len(CONTENT), True)
    blob = uploads.finish("ann", upload.id, blobs)
    assert blob == Blob(NAME, len(CONTENT))
    assert b"".join(blobs.read(NAME)) == CONTENT
    assert uploads.finish("ann", upload.id, blobs) == blob
    assert catalog.referenced_blobs() == {NAME}
    assert blobs.parts.old(-60) == []


@given(
    cuts=st.lists(st.integers(0, 500), max_size=6),
    content=st.binary(max_size=500),
)
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_however_a_file_is_cut_it_arrives_whole(
    uploads: Uploads, blobs: BlobStore, cuts: list[int], content: bytes
) -> None:
    upload = uploads.create("ann", len(content))
    ends = sorted({min(cut, len(content)) for cut in cuts} | {len(content)})
    for start, end in zip([0, *ends], ends, strict=False):
        upload = uploads.append("ann", upload.id, start, [content[start:end]], blobs.parts)
        assert upload.offset == end
    blob = uploads.finish("ann", upload.id, blobs)
    assert b"".join(blobs.read(blob.sha256)) == content


def test_an_empty_file_can_be_uploaded(uploads: Uploads, blobs: BlobStore) -> None:
    upload = uploads.create("ann", 0)
    assert upload.complete
    assert uploads.finish("ann", upload.id, blobs).size == 0


def test_bytes_at_another_offset_are_refused(uploads: Uploads, blobs: BlobStore) -> None:
    upload = uploads.create("ann", 10)
    uploads.append("ann", upload.id, 0, [b"abcd"], blobs.parts)
    for offset in (0, 3, 5):
        with pytest.raises(StateError, match=r"goes on at 4"):
            uploads.append("ann", upload.id, offset, [b"x"], blobs.parts)
    assert uploads.get("ann", upload.id).offset == 4


def test_more_bytes_than_announced_are_refused_and_those_before_kept(
    uploads: Uploads, blobs: BlobStore
) -> None:
    upload = uploads.create("ann", 5)
    with pytest.raises(StateError, match="announced with 5"):
        uploads.append("ann", upload.id, 0, [b"abcd", b"ef"], blobs.parts)
    assert uploads.get("ann", upload.id).offset == 4


def test_what_came_before_a_broken_connection_is_kept(uploads: Uploads, blobs: BlobStore) -> None:
    def broken():
        yield CONTENT[:1000]
        raise ConnectionResetError

    upload = uploads.create("ann", len(CONTENT))
    with pytest.raises(ConnectionResetError):
        uploads.append("ann", upload.id, 0, broken(), blobs.parts)
    assert uploads.get("ann", upload.id).offset == 1000
    uploads.append("ann", upload.id, 1000, [CONTENT[1000:]], blobs.parts)
    assert uploads.finish("ann", upload.id, blobs).sha256 == NAME


def test_of_two_requests_for_one_place_the_first_to_get_there_wins(
    uploads: Uploads, blobs: BlobStore
) -> None:
    upload = uploads.create("ann", 10)
    slow = uploads.appending("ann", upload.id, 0, blobs.parts)
    slow.write(b"abc")
    assert uploads.append("ann", upload.id, 0, [b"xyz123"], blobs.parts).offset == 6
    with pytest.raises(StateError, match="bytes at 0 meanwhile"):
        slow.close()
    slow.close()
    uploads.append("ann", upload.id, 6, [b"4567"], blobs.parts)
    blob = uploads.finish("ann", upload.id, blobs)
    assert b"".join(blobs.read(blob.sha256)) == b"xyz1234567"
    assert blobs.parts.old(-60) == []


def test_many_that_race_for_one_place_leave_one_piece(uploads: Uploads, blobs: BlobStore) -> None:
    upload = uploads.create("ann", 2000)
    start = threading.Barrier(8)
    won: list[bytes] = []
    lost: list[StateError] = []

    def send(content: bytes) -> None:
        part = uploads.appending("ann", upload.id, 0, blobs.parts)
        part.write(content)
        start.wait()
        try:
            part.close()
        except StateError as error:
            lost.append(error)
        else:
            won.append(content)

    threads = [threading.Thread(target=send, args=(bytes([i]) * 2000,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert len(blobs.parts.old(-60)) == 1
    blob = uploads.finish("ann", upload.id, blobs)
    assert b"".join(blobs.read(blob.sha256)) == won[0]


def test_an_upload_finished_by_another_request_meanwhile_is_finished(
    uploads: Uploads, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((assembling, "_content"), (uploads_module, "pieces_of")):
        upload = uploads.create("ann", len(CONTENT), NAME)
        uploads.append("ann", upload.id, 0, [CONTENT], blobs.parts)
        overtaken = getattr(module, name)
        with monkeypatch.context() as patched:

            def after_another(*given: object) -> object:
                patched.undo()
                assert uploads.finish("ann", upload.id, blobs).sha256 == NAME  # noqa: B023
                return overtaken(*given)  # noqa: B023

            patched.setattr(module, name, after_another)
            assert uploads.finish("ann", upload.id, blobs).sha256 == NAME


def test_a_finished_upload_keeps_its_blob_for_whoever_refers_to_it(
    uploads: Uploads, catalog: Catalog, blobs: BlobStore, clock: SetClock
) -> None:
    upload = uploads.create("ann", len(CONTENT))
    uploads.append("ann", upload.id, 0, [CONTENT], blobs.parts)
    uploads.finish("ann", upload.id, blobs)
    clock.advance(3600)
    uploads.finish("ann", upload.id, blobs)
    assert uploads.expire(1800, blobs.parts) == []
    assert catalog.referenced_blobs() == {NAME}
    clock.advance(3600)
    assert uploads.expire(1800, blobs.parts) == [upload.id]
    with pytest.raises(StateError, match="no upload"):
        uploads.finish("ann", upload.id, blobs)


def test_a_piece_that_changed_is_noticed(
    uploads: Uploads, blobs: BlobStore, service_settings: Settings
) -> None:
    upload = uploads.create("ann", 6)
    uploads.append("ann", upload.id, 0, [b"abc"], blobs.parts)
    uploads.append("ann", upload.id, 3, [b"def"], blobs.parts)
    (first, second) = sorted(
        blobs.parts.old(-60), key=lambda place: b"".join(blobs.parts.read(place))
    )
    overwrite(blobs, first, service_settings, b"abX")
    with pytest.raises(DocumentError, match="damaged at 0"):
        uploads.finish("ann", upload.id, blobs)
    overwrite(blobs, first, service_settings, b"abc")
    blobs.parts.remove([second])
    with pytest.raises(MissingBlobError, match="no longer there"):
        uploads.finish("ann", upload.id, blobs)


def overwrite(blobs: BlobStore, place: str, settings: Settings, content: bytes) -> None:
    path = settings.data_dir / "blobs" / "parts" / place
    if path.exists():
        path.write_bytes(content)
        return
    (name,) = [name for name in fsspec.filesystem("memory").store if name.endswith(place)]
    fsspec.filesystem("memory").pipe_file(name, content)


def test_short_pieces_have_a_limit_and_large_files_larger_ones(
    uploads: Uploads, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "MOST_PIECES", 4)
    upload = uploads.create("ann", 10)
    for offset in range(4):
        uploads.append("ann", upload.id, offset, [b"x"], blobs.parts)
    with pytest.raises(StateError, match="4 pieces"):
        uploads.append("ann", upload.id, 4, [b"x"], blobs.parts)
    assert uploads.get("ann", upload.id).offset == 4
    monkeypatch.setattr(appending, "PIECE_BYTES", 2)
    large = uploads.create("ann", 100)
    with uploads.appending("ann", large.id, 0, blobs.parts) as part:
        for _ in range(100):
            part.write(b"y")
    assert len(blobs.parts.old(-60)) == 4 + 2
    assert uploads.finish("ann", large.id, blobs).size == 100


def test_a_blob_store_that_is_away_costs_the_piece_alone(
    uploads: Uploads, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = uploads.create("ann", len(CONTENT))
    uploads.append("ann", upload.id, 0, [CONTENT[:100]], blobs.parts)

    def away(*_args: object) -> None:
        raise UnavailableError("the blob store did not take what was asked")

    with monkeypatch.context() as patched:
        patched.setattr(type(blobs.parts), "keep", away)
        with pytest.raises(UnavailableError):
            uploads.append("ann", upload.id, 100, [CONTENT[100:]], blobs.parts)
    uploads.append("ann", upload.id, 100, [CONTENT[100:]], blobs.parts)
    assert uploads.finish("ann", upload.id, blobs).sha256 == NAME


def test_an_upload_deleted_while_it_is_written_stays_deleted(
    uploads: Uploads, blobs: BlobStore
) -> None:
    upload = uploads.create("ann", 10)
    part = uploads.appending("ann", upload.id, 0, blobs.parts)
    part.write(b"abc")
    assert uploads.delete("ann", upload.id, blobs.parts)
    with pytest.raises(StateError, match="deleted"):
        part.close()
    assert uploads.get("ann", upload.id) is None


def test_an_unfinished_upload_cannot_be_used(uploads: Uploads, blobs: BlobStore) -> None:
    upload = uploads.create("ann", 10)
    uploads.append("ann", upload.id, 0, [b"abc"], blobs.parts)
    with pytest.raises(StateError, match="3 of 10"):
        uploads.finish("ann", upload.id, blobs)


def test_other_content_than_announced_is_refused(uploads: Uploads, blobs: BlobStore) -> None:
    upload = uploads.create("ann", 3, NAME)
    uploads.append("ann", upload.id, 0, [b"abc"], blobs.parts)
    with pytest.raises(InputError, match=NAME):
        uploads.finish("ann", upload.id, blobs)
    assert uploads.get("ann", upload.id) is None


def test_a_finished_upload_takes_no_more(uploads: Uploads, blobs: BlobStore) -> None:
    upload = uploads.create("ann", 1)
    uploads.append("ann", upload.id, 0, [b"a"], blobs.parts)
    uploads.finish("ann", upload.id, blobs)
    with pytest.raises(StateError, match="finished"):
        uploads.append("ann", upload.id, 1, [b"b"], blobs.parts)


@pytest.mark.parametrize("name", ["", "\0", "../../etc/passwd", NOWHERE, "upl_" + "x" * 10_000])
def test_what_names_no_upload_finds_none(uploads: Uploads, blobs: BlobStore, name: str) -> None:
    assert uploads.get("ann", name) is None
    assert not uploads.delete("ann", name, blobs.parts)
    with pytest.raises(StateError, match="no upload"):
        uploads.append("ann", name, 0, [b"x"], blobs.parts)
    with pytest.raises(StateError, match="no upload"):
        uploads.finish("ann", name, blobs)


def test_another_tenants_upload_is_not_there(uploads: Uploads, blobs: BlobStore) -> None:
    upload = uploads.create("ann", 1)
    assert uploads.get("bob", upload.id) is None
    assert not uploads.delete("bob", upload.id, blobs.parts)
    with pytest.raises(StateError, match="no upload"):
        uploads.append("bob", upload.id, 0, [b"x"], blobs.parts)
    with pytest.raises(StateError, match="no upload"):
        uploads.finish("bob", upload.id, blobs)
    assert uploads.get(None, upload.id) == upload


def test_uploads_that_race_for_the_quota_do_not_pass_it(uploads: Uploads, blobs: BlobStore) -> None:
    taken: list[str] = []

    def create() -> None:
        try:
            taken.append(uploads.create("ann", 30, most_bytes=100).id)
        except QuotaError:
            return

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 3


def test_forgotten_uploads_expire_with_their_bytes(
    uploads: Uploads, blobs: BlobStore, clock: SetClock
) -> None:
    old = uploads.create("ann", 10)
    uploads.append("ann", old.id, 0, [b"old"], blobs.parts)
    clock.advance(3600)
    kept = uploads.create("ann", 10)
    uploads.append("ann", kept.id, 0, [b"abc"], blobs.parts)
    assert len(blobs.parts.old(-60)) == 2
    assert uploads.expire(1800, blobs.parts) == [old.id]
    assert uploads.get("ann", old.id) is None
    assert [b"".join(blobs.parts.read(place)) for place in blobs.parts.old(-60)] == [b"abc"]
    assert uploads.append("ann", kept.id, 3, [b"d"], blobs.parts).offset == 4


def test_pieces_that_nobody_counted_are_swept_once_they_are_old(
    uploads: Uploads, blobs: BlobStore
) -> None:
    upload = uploads.create("ann", 10)
    uploads.append("ann", upload.id, 0, [b"abc"], blobs.parts)
    spool = blobs.parts.spool()
    spool.write(b"stray")
    stray = blobs.parts.keep(upload.id, spool)
    uploads.expire(3600, blobs.parts)
    assert b"".join(blobs.parts.read(stray)) == b"stray"
    uploads.expire(-60, PartsOf(blobs.parts))
    with pytest.raises(MissingBlobError):
        list(blobs.parts.read(stray))


class PartsOf:
    """Pieces, all of them old."""

    def __init__(self, parts: PartStore) -> None:
        self._parts = parts
        self.remove = parts.remove

    def old(self, _seconds: float) -> list[str]:
        return self._parts.old(-60)


def test_an_upload_goes_on_on_another_server_when_the_first_was_killed(
    uploads: Uploads, service_settings: Settings, tmp_path: Path
) -> None:
    shared = f"file://{tmp_path}/shared"
    blobs = open_blobs(service_settings.model_copy(update={"blob_url": shared}))
    upload = uploads.create("ann", len(CONTENT))
    uploads.append("ann", upload.id, 0, [CONTENT[:1000]], blobs.parts)
    script = (
        "import sys, time\n"
        "from mpsearch_api.settings import Settings\n"
        "from mpsearch_api.blobs import open_blobs\n"
        "from mpsearch_api.store import appending, open_store\n"
        "appending.PIECE_BYTES = 2000\n"
        "names = ('data_dir', 'database_url', 'blob_url')\n"
        "settings = Settings(**dict(zip(names, sys.argv[1:])))\n"
        "parts = open_blobs(settings).parts\n"
        "part = open_store(settings).uploads.appending('ann', sys.argv[4], 1000, parts)\n"
        "part.write(bytes(range(256)) * 8)\n"
        "part.write(b'never counted'); part._spool._file.flush()\n"
        "print('half', flush=True)\n"
        "time.sleep(600)\n"
    )
    given = [tmp_path / "other", service_settings.database, shared, upload.id]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *given], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert uploads.get("ann", upload.id).offset == 1000 + 2048
    uploads.append("ann", upload.id, 3048, [CONTENT[3048:]], blobs.parts)
    blob = uploads.finish("ann", upload.id, blobs)
    expected = CONTENT[:1000] + bytes(range(256)) * 8 + CONTENT[3048:]
    assert b"".join(blobs.read(blob.sha256)) == expected
