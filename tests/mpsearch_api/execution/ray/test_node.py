"""Folders and files of an attempt on a node that shares nothing with the dispatcher, or all."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mpsearch.errors import DependencyError
from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.local import LocalBlobs
from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.local import Program
from mpsearch_api.execution.ray.node import placed
from mpsearch_api.execution.ray.orders import Order
from mpsearch_api.faults import MissingBlobError
from mpsearch_api.settings import Settings

MODEL, TABLE = b"weights", b"{}"


@pytest.fixture
def order(ray_assignment, tmp_path: Path) -> Order:
    blobs = LocalBlobs(tmp_path / "blobs")
    blob = blobs.put([MODEL])
    table = blobs.put([TABLE])
    assignment = ray_assignment(
        "quick",
        contents={"mdl_1.onnx": blob.sha256, "hardware.json": table.sha256},
        hardware=Path("/elsewhere/hardware.json"),
    )
    return Order(assignment, Limits(1, 1.0), Program(), f"file://{tmp_path / 'blobs'}", 4)


def test_files_are_found_by_content_and_hardware_keeps_its_suffix(order, tmp_path) -> None:
    root = tmp_path / "node"
    with placed(order, root) as assignment:
        assert set(assignment.files) == {"mdl_1.onnx"}
        assert assignment.files["mdl_1.onnx"].read_bytes() == MODEL
        assert assignment.hardware.name == "hardware.json"
        assert assignment.hardware.read_bytes() == TABLE
        assert assignment.folder.is_relative_to(root)
        folder = assignment.folder
    assert not folder.exists()
    assert not list((root / "run").iterdir())


def test_files_come_from_storage_that_is_not_this_machine_s(order, tmp_path) -> None:
    # fsspec's own name of a local folder, which takes the way of s3:// and gs://.
    url = f"local://{tmp_path / 'bucket'}"
    blob = open_blobs(Settings(data_dir=tmp_path / "sender", blob_url=url)).put([MODEL])
    asked = replace(order.assignment, contents={"mdl_1.onnx": blob.sha256}, hardware="edge-npu")
    with placed(replace(order, assignment=asked, blobs=url), tmp_path / "node") as assignment:
        assert assignment.files["mdl_1.onnx"].read_bytes() == MODEL
        assert assignment.hardware == "edge-npu"


def test_a_node_that_cannot_see_the_uploads_says_what_to_do(order, tmp_path) -> None:
    blind = replace(order, blobs=f"file://{tmp_path / 'nothing'}")
    with pytest.raises(DependencyError, match="MPSEARCH_BLOB_URL"), placed(blind, tmp_path / "n"):
        pass
    assert not (tmp_path / "nothing").exists()


def test_a_file_that_is_gone_is_named(order, tmp_path) -> None:
    sha = hashlib.sha256(b"never stored").hexdigest()
    gone = replace(order, assignment=replace(order.assignment, contents={"mdl_1.onnx": sha}))
    with pytest.raises(MissingBlobError, match=sha), placed(gone, tmp_path / "node"):
        pass


def test_a_node_that_shares_the_data_folder_uses_the_tenant_s_cache_there(order, tmp_path) -> None:
    order.assignment.cache.mkdir()
    with placed(order, tmp_path / "node") as assignment:
        assert assignment.cache == order.assignment.cache
    order.assignment.folder.rmdir()
    with placed(order, tmp_path / "node") as assignment:
        assert assignment.cache.is_relative_to(tmp_path / "node" / "cache")
        assert assignment.cache.is_dir()


def test_what_a_killed_attempt_left_is_removed_by_the_next(order, tmp_path) -> None:
    root = tmp_path / "node"
    child = os.fork()
    if child == 0:
        attempt = placed(order, root)
        attempt.__enter__()
        os._exit(0)  # as if killed: nothing is tidied up
    os.waitpid(child, 0)
    (left,) = (root / "run").iterdir()
    with placed(order, root):
        assert not left.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_another_user_made_is_not_used(order, tmp_path) -> None:
    root = tmp_path / "node"
    root.mkdir()
    os.chown(root, 12345, -1)
    with pytest.raises(DependencyError, match="another user"), placed(order, root):
        pass
