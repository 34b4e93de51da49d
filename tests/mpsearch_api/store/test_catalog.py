"""Uploads, also those that are broken off, and the objects they become."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Artifact
from mpsearch_api.blobs.port import Blob, BlobStore
from mpsearch_api.faults import QuotaError, StateError
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store
from mpsearch_api.store.catalog import Catalog
from mpsearch_api.store.contract import SetClock, a_request
from mpsearch_api.store.partial import PartFile, PartialFiles

CONTENT = bytes(range(256)) * 40
NAME = hashlib.sha256(CONTENT).hexdigest()
NOWHERE = "upl_00000000000000000000000000"


@pytest.fixture
def catalog(clocked_store: Store) -> Catalog:
    return clocked_store.catalog


def a_blob(content: bytes = b"x") -> Blob:
    return Blob(hashlib.sha256(content).hexdigest(), len(content))


def test_an_upload_sent_in_parts_becomes_a_blob(catalog: Catalog, blobs: BlobStore) -> None:
    upload = catalog.create_upload("ann", len(CONTENT), NAME.upper())
    assert (upload.offset, upload.complete, upload.sha256) == (0, False, NAME)
    half = len(CONTENT) // 2
    upload = catalog.append_upload("ann", upload.id, 0, [CONTENT[:100], CONTENT[100:half]])
    assert (upload.offset, upload.complete) == (half, False)
    upload = catalog.append_upload("ann", upload.id, half, [CONTENT[half:]])
    assert (upload.offset, upload.complete) == (len(CONTENT), True)
    blob = catalog.finish_upload("ann", upload.id, blobs)
    assert blob == Blob(NAME, len(CONTENT))
    assert b"".join(blobs.read(NAME)) == CONTENT
    assert catalog.finish_upload("ann", upload.id, blobs) == blob
    assert catalog.referenced_blobs() == {NAME}


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
    catalog: Catalog, blobs: BlobStore, cuts: list[int], content: bytes
) -> None:
    upload = catalog.create_upload("ann", len(content))
    ends = sorted({min(cut, len(content)) for cut in cuts} | {len(content)})
    for start, end in zip([0, *ends], ends, strict=False):
        upload = catalog.append_upload("ann", upload.id, start, [content[start:end]])
        assert upload.offset == end
    blob = catalog.finish_upload("ann", upload.id, blobs)
    assert b"".join(blobs.read(blob.sha256)) == content


def test_an_empty_file_can_be_uploaded(catalog: Catalog, blobs: BlobStore) -> None:
    upload = catalog.create_upload("ann", 0)
    assert upload.complete
    assert catalog.finish_upload("ann", upload.id, blobs).size == 0


def test_bytes_at_another_offset_are_refused(catalog: Catalog) -> None:
    upload = catalog.create_upload("ann", 10)
    catalog.append_upload("ann", upload.id, 0, [b"abcd"])
    for offset in (0, 3, 5):
        with pytest.raises(StateError, match=r"goes on at 4"):
            catalog.append_upload("ann", upload.id, offset, [b"x"])
    assert catalog.get_upload("ann", upload.id).offset == 4


def test_more_bytes_than_announced_are_refused_and_those_before_kept(catalog: Catalog) -> None:
    upload = catalog.create_upload("ann", 5)
    with pytest.raises(StateError, match="announced with 5"):
        catalog.append_upload("ann", upload.id, 0, [b"abcd", b"ef"])
    assert catalog.get_upload("ann", upload.id).offset == 4


def test_what_came_before_a_broken_connection_is_kept(catalog: Catalog, blobs: BlobStore) -> None:
    def broken():
        yield CONTENT[:1000]
        raise ConnectionResetError

    upload = catalog.create_upload("ann", len(CONTENT))
    with pytest.raises(ConnectionResetError):
        catalog.append_upload("ann", upload.id, 0, broken())
    assert catalog.get_upload("ann", upload.id).offset == 1000
    catalog.append_upload("ann", upload.id, 1000, [CONTENT[1000:]])
    assert catalog.finish_upload("ann", upload.id, blobs).sha256 == NAME


def test_two_requests_do_not_write_one_upload_at_once(catalog: Catalog) -> None:
    upload = catalog.create_upload("ann", 10)
    with catalog.appending("ann", upload.id, 0) as part:
        part.write(b"abc")
        with pytest.raises(StateError, match="another request"):
            catalog.appending("ann", upload.id, 0)
    assert catalog.append_upload("ann", upload.id, 3, [b"d"]).offset == 4


def test_bytes_that_another_request_adds_meanwhile_are_not_cut_off(
    catalog: Catalog, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = catalog.create_upload("ann", len(CONTENT), NAME)
    once = iter([True])
    plain_open = PartialFiles.open

    def overtaken(self: PartialFiles, name: str) -> PartFile:
        if next(once, False):
            catalog.append_upload("ann", upload.id, 0, [CONTENT])
        return plain_open(self, name)

    monkeypatch.setattr(PartialFiles, "open", overtaken)
    with pytest.raises(StateError, match=f"goes on at {len(CONTENT)}"):
        catalog.append_upload("ann", upload.id, 0, [b"other bytes"])
    assert catalog.finish_upload("ann", upload.id, blobs).sha256 == NAME


def test_an_upload_finished_by_another_request_meanwhile_is_finished(
    catalog: Catalog, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = catalog.create_upload("ann", len(CONTENT), NAME)
    catalog.append_upload("ann", upload.id, 0, [CONTENT])
    once = iter([True])
    plain_open = PartialFiles.open

    def overtaken(self: PartialFiles, name: str) -> PartFile:
        if next(once, False):
            catalog.finish_upload("ann", upload.id, blobs)
        return plain_open(self, name)

    monkeypatch.setattr(PartialFiles, "open", overtaken)
    assert catalog.finish_upload("ann", upload.id, blobs).sha256 == NAME


def test_a_finished_upload_vouches_for_bytes_that_are_there_alone(
    catalog: Catalog, blobs: BlobStore
) -> None:
    upload = catalog.create_upload("ann", len(CONTENT))
    catalog.append_upload("ann", upload.id, 0, [CONTENT])
    catalog.finish_upload("ann", upload.id, blobs)
    path = blobs.local_path(NAME)
    os.utime(path, (0, 0))
    catalog.finish_upload("ann", upload.id, blobs)
    # As if the upload had expired before its caller refers to the blob.
    assert blobs.delete_orphans((), older_than=60) == []
    path.unlink()
    with pytest.raises(StateError, match="are gone"):
        catalog.finish_upload("ann", upload.id, blobs)


def test_an_upload_deleted_while_it_is_written_stays_deleted(catalog: Catalog) -> None:
    upload = catalog.create_upload("ann", 10)
    part = catalog.appending("ann", upload.id, 0)
    part.write(b"abc")
    assert catalog.delete_upload("ann", upload.id)
    with pytest.raises(StateError, match="deleted"):
        part.close()
    assert catalog.get_upload("ann", upload.id) is None


def test_an_unfinished_upload_cannot_be_used(catalog: Catalog, blobs: BlobStore) -> None:
    upload = catalog.create_upload("ann", 10)
    catalog.append_upload("ann", upload.id, 0, [b"abc"])
    with pytest.raises(StateError, match="3 of 10"):
        catalog.finish_upload("ann", upload.id, blobs)


def test_other_content_than_announced_is_refused(catalog: Catalog, blobs: BlobStore) -> None:
    upload = catalog.create_upload("ann", 3, NAME)
    catalog.append_upload("ann", upload.id, 0, [b"abc"])
    with pytest.raises(InputError, match=NAME):
        catalog.finish_upload("ann", upload.id, blobs)
    assert catalog.get_upload("ann", upload.id) is None


def test_a_finished_upload_takes_no_more(catalog: Catalog, blobs: BlobStore) -> None:
    upload = catalog.create_upload("ann", 1)
    catalog.append_upload("ann", upload.id, 0, [b"a"])
    catalog.finish_upload("ann", upload.id, blobs)
    with pytest.raises(StateError, match="finished"):
        catalog.append_upload("ann", upload.id, 1, [b"b"])


@pytest.mark.parametrize("name", ["", "\0", "../../etc/passwd", NOWHERE, "upl_" + "x" * 10_000])
def test_what_names_no_upload_finds_none(catalog: Catalog, blobs: BlobStore, name: str) -> None:
    assert catalog.get_upload("ann", name) is None
    assert not catalog.delete_upload("ann", name)
    with pytest.raises(StateError, match="no upload"):
        catalog.append_upload("ann", name, 0, [b"x"])
    with pytest.raises(StateError, match="no upload"):
        catalog.finish_upload("ann", name, blobs)


def test_another_tenants_upload_is_not_there(catalog: Catalog, blobs: BlobStore) -> None:
    upload = catalog.create_upload("ann", 1)
    assert catalog.get_upload("bob", upload.id) is None
    assert not catalog.delete_upload("bob", upload.id)
    with pytest.raises(StateError, match="no upload"):
        catalog.append_upload("bob", upload.id, 0, [b"x"])
    with pytest.raises(StateError, match="no upload"):
        catalog.finish_upload("bob", upload.id, blobs)
    assert catalog.get_upload(None, upload.id) == upload


def test_the_quota_counts_uploads_and_stored_objects(catalog: Catalog) -> None:
    upload = catalog.create_upload("ann", 60, most_bytes=100)
    catalog.create_upload("bob", 100, most_bytes=100)
    with pytest.raises(QuotaError, match="41 bytes more than the 60"):
        catalog.create_upload("ann", 41, most_bytes=100)
    catalog.add_stored("ann", "model", "m", "onnx", None, a_blob(b"x" * 40), most_bytes=100)
    assert catalog.bytes_stored("ann") == 100
    with pytest.raises(QuotaError):
        catalog.add_stored("ann", "model", "m", "onnx", None, a_blob(), most_bytes=100)
    catalog.delete_upload("ann", upload.id)
    assert catalog.bytes_stored("ann") == 40


def test_bytes_are_not_counted_as_upload_and_as_object(catalog: Catalog, blobs: BlobStore) -> None:
    for content in (b"a" * 60, b"b" * 40):
        upload = catalog.create_upload("ann", len(content), most_bytes=100)
        catalog.append_upload("ann", upload.id, 0, [content])
        blob = catalog.finish_upload("ann", upload.id, blobs)
        catalog.add_stored("ann", "model", "m", "onnx", None, blob, most_bytes=100)
    assert catalog.bytes_stored("ann") == 100
    with pytest.raises(QuotaError, match="the 100 held"):
        catalog.add_stored("ann", "model", "again", "onnx", None, blob, most_bytes=100)


def test_uploads_that_race_for_the_quota_do_not_pass_it(catalog: Catalog) -> None:
    taken: list[str] = []

    def create() -> None:
        try:
            taken.append(catalog.create_upload("ann", 30, most_bytes=100).id)
        except QuotaError:
            return

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 3


def test_forgotten_uploads_expire_with_their_bytes(
    catalog: Catalog, clock: SetClock, service_settings: Settings
) -> None:
    old = catalog.create_upload("ann", 10)
    clock.advance(3600)
    kept = catalog.create_upload("ann", 10)
    catalog.append_upload("ann", kept.id, 0, [b"abc"])
    stray = service_settings.data_dir / "uploads" / "upl_stray"
    young = service_settings.data_dir / "uploads" / "upl_young"
    for path in (stray, young):
        path.write_bytes(b"x")
    os.utime(stray, (0, 0))
    assert catalog.expire_uploads(1800) == [old.id]
    assert catalog.get_upload("ann", old.id) is None
    left = {path.name for path in (service_settings.data_dir / "uploads").iterdir()}
    assert left == {kept.id, "upl_young"}
    assert catalog.append_upload("ann", kept.id, 3, [b"d"]).offset == 4


def test_bytes_that_are_gone_are_said_to_be(catalog: Catalog, service_settings: Settings) -> None:
    upload = catalog.create_upload("ann", 10)
    catalog.append_upload("ann", upload.id, 0, [b"abcd"])
    path = service_settings.data_dir / "uploads" / upload.id
    path.write_bytes(b"ab")
    with pytest.raises(StateError, match="2 of 4"):
        catalog.append_upload("ann", upload.id, 4, [b"e"])
    path.unlink()
    with pytest.raises(StateError, match="not on this server"):
        catalog.append_upload("ann", upload.id, 4, [b"e"])


def test_an_upload_goes_on_after_its_server_was_killed(
    catalog: Catalog, blobs: BlobStore, service_settings: Settings
) -> None:
    upload = catalog.create_upload("ann", len(CONTENT))
    catalog.append_upload("ann", upload.id, 0, [CONTENT[:1000]])
    script = (
        "import sys, time\n"
        "from mpsearch_api.settings import Settings\n"
        "from mpsearch_api.store import catalog, open_store\n"
        "catalog.SYNC_BYTES = 2000\n"
        "store = open_store(Settings(data_dir=sys.argv[1], database_url=sys.argv[2]))\n"
        "part = store.catalog.appending('ann', sys.argv[3], 1000)\n"
        "part.write(bytes(range(256)) * 8)\n"
        "part.write(b'never counted'); part._file._file.flush()\n"
        "print('half', flush=True)\n"
        "time.sleep(600)\n"
    )
    # 2048 bytes are synced and counted; they happen to be right only when they begin a period.
    command = [sys.executable, "-c", script, service_settings.data_dir, service_settings.database]
    process = subprocess.Popen([*command, upload.id], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (service_settings.data_dir / "uploads" / upload.id).stat().st_size == 1000 + 2048 + 13
    found = catalog.get_upload("ann", upload.id)
    assert found.offset == 1000 + 2048
    catalog.append_upload("ann", upload.id, 3048, [CONTENT[3048:]])
    blob = catalog.finish_upload("ann", upload.id, blobs)
    expected = CONTENT[:1000] + bytes(range(256)) * 8 + CONTENT[3048:]
    assert b"".join(blobs.read(blob.sha256)) == expected


@pytest.mark.parametrize("kind", ["model", "dataset", "hardware"])
def test_a_stored_object_comes_back_to_its_tenant_alone(catalog: Catalog, kind) -> None:
    made = catalog.add_stored("ann", kind, "weights \0 ☃", "onnx", "torchvision:x", a_blob())
    assert made.name == "weights \0 ☃"
    assert (made.kind, made.size, made.architecture) == (kind, 1, "torchvision:x")
    assert catalog.get_stored("ann", made.id) == made
    assert catalog.get_stored(None, made.id) == made
    assert catalog.get_stored("bob", made.id) is None
    assert not catalog.delete_stored("bob", made.id)
    assert catalog.delete_stored("ann", made.id)
    assert not catalog.delete_stored("ann", made.id)
    assert catalog.get_stored("ann", made.id) is None


def test_lists_of_stored_objects_have_pages(catalog: Catalog) -> None:
    made = [catalog.add_stored("ann", "model", str(i), "onnx", None, a_blob()) for i in range(5)]
    catalog.add_stored("ann", "dataset", "d", "npz", None, a_blob())
    catalog.add_stored("bob", "model", "b", "onnx", None, a_blob())
    first = catalog.page_stored("ann", "model", limit=3)
    assert first.items == made[:1:-1]
    catalog.add_stored("ann", "model", "new", "onnx", None, a_blob())
    second = catalog.page_stored("ann", "model", cursor=first.next, limit=3)
    assert second.items == made[1::-1]
    assert second.next is None
    with pytest.raises(InputError, match="another list"):
        catalog.page_stored("ann", "dataset", cursor=first.next)


def test_blobs_are_referred_to_by_objects_profiles_uploads_and_artifacts(
    clocked_store: Store, blobs: BlobStore
) -> None:
    store = clocked_store
    names = [hashlib.sha256(bytes([i])).hexdigest() for i in range(3)]
    store.catalog.add_stored("ann", "model", "m", "onnx", None, Blob(names[0], 1))
    store.profiles.put("ann", "key", names[1])
    store.jobs.submit("ann", a_request())
    claim = store.jobs.claim("w", 10)
    store.jobs.complete(
        claim, [Artifact(name="a", media_type="text/plain", size=1, sha256=names[2])]
    )
    upload = store.catalog.create_upload("ann", 1)
    store.catalog.append_upload("ann", upload.id, 0, [b"z"])
    blob = store.catalog.finish_upload("ann", upload.id, blobs)
    assert store.catalog.referenced_blobs() == {*names, blob.sha256}
    store.jobs.delete("ann", claim.job)
    store.catalog.delete_upload("ann", upload.id)
    assert store.catalog.referenced_blobs() == set(names[:2])
