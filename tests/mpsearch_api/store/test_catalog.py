"""Stored objects, their quotas, and the bytes that anything refers to."""

from __future__ import annotations

import hashlib

import pytest

from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Artifact
from mpsearch_api.blobs.port import Blob, BlobStore
from mpsearch_api.faults import QuotaError
from mpsearch_api.store import Store
from mpsearch_api.store.catalog import Catalog
from mpsearch_api.store.contract import a_request
from mpsearch_api.store.uploads import Uploads


@pytest.fixture
def catalog(clocked_store: Store) -> Catalog:
    return clocked_store.catalog


@pytest.fixture
def uploads(clocked_store: Store) -> Uploads:
    return clocked_store.uploads


def a_blob(content: bytes = b"x") -> Blob:
    return Blob(hashlib.sha256(content).hexdigest(), len(content))


def test_the_quota_counts_uploads_and_stored_objects(
    catalog: Catalog, uploads: Uploads, blobs: BlobStore
) -> None:
    upload = uploads.create("ann", 60, most_bytes=100)
    uploads.create("bob", 100, most_bytes=100)
    with pytest.raises(QuotaError, match="41 bytes more than the 60"):
        uploads.create("ann", 41, most_bytes=100)
    catalog.add_stored("ann", "model", "m", "onnx", None, a_blob(b"x" * 40), most_bytes=100)
    assert catalog.bytes_stored("ann") == 100
    with pytest.raises(QuotaError):
        catalog.add_stored("ann", "model", "m", "onnx", None, a_blob(), most_bytes=100)
    uploads.delete("ann", upload.id, blobs.parts)
    assert catalog.bytes_stored("ann") == 40


def test_bytes_are_not_counted_as_upload_and_as_object(
    catalog: Catalog, uploads: Uploads, blobs: BlobStore
) -> None:
    for content in (b"a" * 60, b"b" * 40):
        upload = uploads.create("ann", len(content), most_bytes=100)
        uploads.append("ann", upload.id, 0, [content], blobs.parts)
        blob = uploads.finish("ann", upload.id, blobs)
        catalog.add_stored("ann", "model", "m", "onnx", None, blob, most_bytes=100)
    assert catalog.bytes_stored("ann") == 100
    with pytest.raises(QuotaError, match="the 100 held"):
        catalog.add_stored("ann", "model", "again", "onnx", None, blob, most_bytes=100)


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


def test_blobs_are_referred_to_by_objects_uploads_and_artifacts(
    clocked_store: Store, blobs: BlobStore
) -> None:
    store = clocked_store
    names = [hashlib.sha256(bytes([i])).hexdigest() for i in range(2)]
    store.catalog.add_stored("ann", "model", "m", "onnx", None, Blob(names[0], 1))
    store.jobs.submit("ann", a_request())
    claim = store.jobs.claim("w", 10)
    store.jobs.complete(
        claim, [Artifact(name="a", media_type="text/plain", size=1, sha256=names[1])]
    )
    upload = store.uploads.create("ann", 1)
    store.uploads.append("ann", upload.id, 0, [b"z"], blobs.parts)
    blob = store.uploads.finish("ann", upload.id, blobs)
    assert store.catalog.referenced_blobs() == {*names, blob.sha256}
    store.jobs.delete("ann", claim.job)
    store.uploads.delete("ann", upload.id, blobs.parts)
    assert store.catalog.referenced_blobs() == {names[0]}
