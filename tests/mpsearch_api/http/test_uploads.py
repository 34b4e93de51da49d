"""Files on their way in: in parts, all at once, too large, broken off, not what was announced."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpsearch_api.http.service import TRANSFERS_OF_ONE
from mpsearch_api.store.appending import Appending
from tests.mpsearch_api.http.running import MakeSite, Site

OCTETS = {"Content-Type": "application/octet-stream"}
HEADER = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + b"\0"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def announce(site: Site, content: bytes, **more: object) -> str:
    answer = site.client.post("/v1/uploads", json={"size": len(content)} | more)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"/v1/uploads/{answer.json()['id']}"
    return answer.json()["id"]


def send(site: Site, upload: str, offset: int, content: bytes):
    headers = OCTETS | {"Upload-Offset": str(offset)}
    return site.client.patch(f"/v1/uploads/{upload}", content=content, headers=headers)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 2000), max_size=5))
def test_parts_make_the_whole_wherever_it_is_cut(
    site: Site, content: bytes, cuts: list[int]
) -> None:
    upload = announce(site, content, sha256=sha256(content))
    places = sorted({min(cut, len(content)) for cut in cuts} | {0, len(content)})
    for start, end in itertools.pairwise(places):
        answer = send(site, upload, start, content[start:end])
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, str(end))
    state = site.client.get(f"/v1/uploads/{upload}").json()
    assert state["complete"]
    assert state["sha256"] == sha256(content)
    assert b"".join(site.blobs.read(sha256(content))) == content


def test_a_part_at_the_wrong_place_is_told_the_right_one(site: Site) -> None:
    upload = announce(site, bytes(100))
    send(site, upload, 0, bytes(40))
    for offset in (0, 39, 41, 100):
        answer = send(site, upload, offset, bytes(10))
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "40")
    assert site.client.head(f"/v1/uploads/{upload}").headers["Upload-Offset"] == "40"


def test_a_part_that_another_overtook_is_told_where_to_go_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = announce(site, bytes(100))
    send(site, upload, 0, bytes(40))
    plain_close = Appending.close

    def overtaken(self: Appending) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Appending, "close", plain_close)
            site.store.uploads.append("local", upload, 40, [bytes(5)], site.blobs.parts)
        plain_close(self)

    with monkeypatch.context() as patched:
        patched.setattr(Appending, "close", overtaken)
        answer = send(site, upload, 40, bytes(10))
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "45")
    assert "another request" in answer.json()["detail"]
    assert send(site, upload, 45, bytes(55)).status_code == 204


def test_refused_bodies_leave_no_bytes_behind(site: Site) -> None:
    for name, content, header in (
        ("a.onnx", b"\x80\x04pickle" * 1000, {}),
        ("a.onnx", b"graph" * 1000, {"X-Content-SHA256": "0" * 64}),
    ):
        answer = site.client.post(
            f"/v1/models?name={name}", content=content, headers=OCTETS | header
        )
        assert answer.status_code == 422, answer.text
    blobs = site.service.settings.data_dir / "blobs"
    assert not [path for path in blobs.rglob("*") if path.is_file() and path.stat().st_size]


def test_one_tenant_does_not_take_all_the_places_for_bodies(site: Site) -> None:
    path = "/v1/datasets?name=a.txt"
    with ExitStack() as held:
        for _ in range(TRANSFERS_OF_ONE):
            held.enter_context(site.service.receiving("local"))
        refused = site.client.post(path, content=b"text", headers=OCTETS)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        with site.service.receiving("other"):
            pass
    assert site.client.post(path, content=b"text", headers=OCTETS).status_code == 201


def test_more_than_was_announced_is_refused_and_the_rest_kept(site: Site) -> None:
    upload = announce(site, bytes(10))
    assert send(site, upload, 0, bytes(11)).status_code == 409
    assert not site.client.get(f"/v1/uploads/{upload}").json()["complete"]


def test_other_content_than_announced_is_refused(site: Site) -> None:
    upload = announce(site, b"right", sha256=sha256(b"right"))
    answer = send(site, upload, 0, b"wrong")
    assert answer.status_code == 422
    assert sha256(b"wrong") in answer.json()["detail"]
    assert site.client.get(f"/v1/uploads/{upload}").status_code == 404


def test_an_unfinished_upload_becomes_nothing(site: Site) -> None:
    upload = announce(site, bytes(10))
    send(site, upload, 0, bytes(9))
    answer = site.client.post("/v1/datasets", json={"upload": upload, "name": "a.txt"})
    assert answer.status_code == 409


def test_a_complete_upload_becomes_a_model(site: Site) -> None:
    upload = announce(site, WEIGHTS)
    send(site, upload, 0, WEIGHTS)
    body = {
        "upload": upload,
        "name": "mine.safetensors",
        "architecture": "torchvision:resnet18",
    }
    made = site.client.post("/v1/models", json=body)
    assert made.status_code == 201, made.text
    stored = made.json()
    assert stored["sha256"] == sha256(WEIGHTS)
    assert stored["format"] == "safetensors"
    assert site.client.get(made.headers["Location"]).json() == stored
    listed = site.client.get("/v1/models").json()["items"]
    assert listed == [stored]
    job = {"model": stored["id"], "data": "synthetic", "budget": {"weight_memory": "0.2x"}}
    assert site.client.post("/v1/jobs", json=job).status_code == 202
    assert site.client.delete(made.headers["Location"]).status_code == 204
    assert site.client.post("/v1/jobs", json=job).status_code == 422


def test_a_file_may_be_the_body_with_its_digest_checked(site: Site) -> None:
    digest = base64.b64encode(hashlib.sha256(WEIGHTS).digest()).decode()
    path = "/v1/models?name=a.safetensors&architecture=digits-resnet"
    for header in (
        {"X-Content-SHA256": sha256(WEIGHTS)},
        {"Repr-Digest": f"sha-256=:{digest}:"},
        {"Content-Digest": f"sha-512=:AAAA:, sha-256=:{digest}:"},
        {},
    ):
        made = site.client.post(path, content=WEIGHTS, headers=OCTETS | header)
        assert made.status_code == 201, made.text
    wrong = base64.b64encode(bytes(32)).decode()
    for header, status in (
        ({"X-Content-SHA256": "0" * 64}, 422),
        ({"Repr-Digest": f"sha-256=:{wrong}:"}, 422),
        ({"X-Content-SHA256": "zz"}, 400),
        ({"Repr-Digest": "sha-256=:AAAA:"}, 400),
    ):
        refused = site.client.post(path, content=WEIGHTS, headers=OCTETS | header)
        assert refused.status_code == status, refused.text


@pytest.mark.parametrize(
    ("kind", "name", "content", "words"),
    [
        ("models", "net.pt", b"PK\x03\x04", "run code"),
        ("models", "net.pkl", b"\x80\x04", "run code"),
        ("models", "net.bin", b"\x80\x04", "run code"),
        ("models", "net.onnx", b"\x80\x04pickle", "pickle"),
        ("models", "net.safetensors", b"\x80\x04pickle", "no safetensors"),
        ("models", "net.safetensors", b"", "empty"),
        ("models", "net", WEIGHTS, "suffix"),
        ("models", "net.npz", WEIGHTS, "npz"),
        ("datasets", "a.npy", b"\x93NUMPY", "run code"),
        ("datasets", "a.npz", b"\x93NUMPY", "no npz"),
        ("datasets", "a.exe", b"MZ", "exe"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(
    site: Site, kind: str, name: str, content: bytes, words: str
) -> None:
    answer = site.client.post(f"/v1/{kind}?name={name}", content=content, headers=OCTETS)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
    assert site.client.get(f"/v1/{kind}").json()["items"] == []


def test_an_unknown_architecture_is_refused(site: Site) -> None:
    path = "/v1/models?name=a.safetensors&architecture=resnet_18"
    assert site.client.post(path, content=WEIGHTS, headers=OCTETS).status_code == 422


def test_names_are_labels_and_never_paths(site: Site, tmp_path) -> None:
    name = "../../../escaped.txt"
    made = site.client.post("/v1/datasets", params={"name": name}, content=b"text", headers=OCTETS)
    assert made.json()["name"] == name
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]
    control = site.client.post(
        "/v1/datasets", params={"name": "a\nb.txt"}, content=b"text", headers=OCTETS
    )
    assert control.status_code == 422


def test_quotas_hold_for_parts_and_whole_bodies(make_site: MakeSite) -> None:
    with make_site(upload_bytes=1000, stored_bytes=1500) as site:
        assert site.client.post("/v1/uploads", json={"size": 1001}).status_code == 413
        announce(site, bytes(1000))
        assert site.client.post("/v1/uploads", json={"size": 1000}).status_code == 429
        path = "/v1/datasets?name=a.txt"
        assert site.client.post(path, content=bytes(501), headers=OCTETS).status_code == 413
        chunked = (bytes(100) for _ in range(6))
        assert site.client.post(path, content=chunked, headers=OCTETS).status_code == 413
        assert site.client.post(path, content=b"x" * 400, headers=OCTETS).status_code == 201


async def streamed(site: Site, path: str, block: bytes, count: int) -> int:
    """Send a body block by block; the test client itself would gather it first."""
    left = count
    status = 0

    async def receive() -> dict:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": block, "more_body": left > 0}

    async def send(message: dict) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"name=b.txt",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/octet-stream")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    await site.client.app(scope, receive, send)
    return status


def test_a_large_body_never_lies_in_memory_whole(make_site: MakeSite, tmp_path: Path) -> None:
    block = os.urandom(1 << 20)
    with make_site() as site:
        site.client.post("/v1/datasets?name=a.txt", content=b"warm", headers=OCTETS)
        tracemalloc.start()
        status = site.client.portal.call(streamed, site, "/v1/datasets", block, 96)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert status == 201
        assert peak < 32 << 20
    listed = [path.stat().st_size for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert 96 << 20 in listed


def test_deleting_an_upload_gives_its_quota_back(make_site: MakeSite) -> None:
    with make_site(stored_bytes=1000) as site:
        upload = announce(site, bytes(1000))
        assert site.client.post("/v1/uploads", json={"size": 1}).status_code == 429
        assert site.client.delete(f"/v1/uploads/{upload}").status_code == 204
        assert site.client.post("/v1/uploads", json={"size": 1}).status_code == 201


def test_parts_must_be_plain_bytes(site: Site) -> None:
    upload = announce(site, bytes(10))
    headers = {"Content-Type": "application/json", "Upload-Offset": "0"}
    answer = site.client.patch(f"/v1/uploads/{upload}", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert send(site, upload, 0, b"").status_code == 204
    assert site.client.patch(f"/v1/uploads/{upload}", headers=OCTETS).status_code == 422


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("application/json", b"{}", "units"),
        ("application/json", b'{"a": NaN}', "NaN"),
        ("text/csv", b"layer,option\n", "no rows"),
        ("application/yaml", b"a: &x [1]\nb: *x\n", "aliases"),
        ("application/yaml", b"a: [", "YAML"),
        ("application/yaml", b"\xff\xfe\xff", "YAML"),
        ("text/csv", b"\xff\xfe\xff", "read"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(
    solving_site: Site, kind: str, content: bytes, words: str
) -> None:
    answer = solving_site.client.post(
        "/v1/hardware", content=content, headers={"Content-Type": kind}
    )
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
    assert "/tmp" not in answer.text


def test_a_table_of_another_kind_is_refused(site: Site) -> None:
    answer = site.client.post(
        "/v1/hardware", content=b"x", headers={"Content-Type": "application/xml"}
    )
    assert answer.status_code == 415


def test_shipped_devices_are_listed_first_and_cannot_be_deleted(site: Site) -> None:
    listed = site.client.get("/v1/hardware").json()["items"]
    assert "nvidia-t4" in [entry["name"] for entry in listed]
    assert {entry["origin"] for entry in listed} == {"shipped"}
    assert site.client.get("/v1/hardware/nvidia-t4").json()["resources"]
    assert site.client.delete("/v1/hardware/nvidia-t4").status_code == 404
