"""Who gets in, what they see, and what a browser of theirs can be tricked into."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.errors import InputError
from mpsearch_api.faults import UnavailableError
from mpsearch_api.http import create_app
from mpsearch_api.http.borders import host_name, is_loopback
from mpsearch_api.http.rates import RateLimit
from mpsearch_api.settings import Settings
from tests.mpsearch_api.http.running import JOB, MakeSite, Site

PROBLEM = "application/problem+json"


def operations(site: Site) -> list[tuple[str, str]]:
    """List every operation under /v1, from the document that the application publishes."""
    paths = site.client.get("/openapi.json").json()["paths"]
    return [(m.upper(), p) for p, found in paths.items() for m in found if p.startswith("/v1")]


def body_for(method: str, path: str) -> dict:
    """Give a body that an operation takes."""
    if path.endswith("/solve") and "{" in path:
        return {"json": {"budget": {"weight_memory": "1x"}}}
    if method == "PATCH":
        headers = {"Content-Type": "application/octet-stream", "Upload-Offset": "0"}
        return {"content": b"x", "headers": headers}
    return {}


def test_no_operation_answers_without_a_key_once_one_exists(site: Site) -> None:
    site.key("admin")
    found = operations(site)
    assert len(found) > 30
    for method, path in found:
        concrete = re.sub(r"\{[^}]*\}", "x", path)
        for headers in ({}, {"Authorization": "Bearer mps_nope"}, {"Authorization": "Basic eDp5"}):
            answer = site.client.request(method, concrete, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert answer.headers["content-type"] == PROBLEM


def test_another_tenants_objects_are_not_found_on_any_route(make_site: MakeSite) -> None:
    with make_site(open_mode=False) as site:
        owner, other = site.key("write"), site.key("write")
        tenant = site.store.keys.list()[0].tenant
        octets = {"Content-Type": "application/octet-stream"}
        upload = site.client.post("/v1/uploads", json={"size": 1}, headers=owner).json()["id"]
        data = site.client.post(
            "/v1/datasets?name=a.txt", content=b"text", headers=owner | octets
        ).json()["id"]
        blob = site.blobs.put([b"x"])
        stored = {
            kind: site.store.catalog.add_stored(tenant, kind, "n", "json", None, blob).id
            for kind in ("model", "hardware")
        }
        job = site.finished(tenant)
        own = {
            "job_id": job,
            "upload_id": upload,
            "dataset_id": data,
            "model_id": stored["model"],
            "name": stored["hardware"],
        }
        tried = 0
        for method, path in operations(site):
            if "{" not in path:
                continue
            concrete = path.replace("/artifacts/{name}", "/artifacts/log.txt")
            concrete = re.sub(r"\{([^}]*)\}", lambda found: own[found[1]], concrete)
            given = body_for(method, path)
            headers = given.pop("headers", {})
            answer = site.client.request(method, concrete, headers=other | headers, **given)
            assert answer.status_code == 404, (method, concrete, answer.text)
            # The words are those for an object that never was, so nothing tells them apart.
            identity = next(value for value in own.values() if value in concrete)
            nobody = identity[:-1] + ("0" if identity[-1] != "0" else "1")
            absent = site.client.request(
                method, concrete.replace(identity, nobody), headers=other | headers, **given
            )
            assert absent.json()["detail"].replace(nobody, identity) == answer.json()["detail"]
            tried += 1
        assert tried >= 20
        for path in ("jobs", "models", "datasets", "hardware?origin=uploaded"):
            assert site.client.get(f"/v1/{path}", headers=other).json()["items"] == []
            assert len(site.client.get(f"/v1/{path}", headers=owner).json()["items"]) == 1
        assert site.client.get(f"/v1/jobs/{job}/result", headers=owner).status_code == 200


def test_another_tenants_objects_cannot_be_named_in_jobs_or_uploads(make_site: MakeSite) -> None:
    with make_site(open_mode=False) as site:
        owner, other = site.key("write"), site.key("write")
        octets = {"Content-Type": "application/octet-stream"}
        data = site.client.post(
            "/v1/datasets?name=a.txt", content=b"text", headers=owner | octets
        ).json()["id"]
        upload = site.client.post("/v1/uploads", json={"size": 0}, headers=owner).json()["id"]
        job = JOB | {"data": data}
        assert site.client.post("/v1/jobs", json=job, headers=other).status_code == 422
        assert site.client.post("/v1/jobs", json=job, headers=owner).status_code == 202
        body = {"upload": upload, "name": "a.txt"}
        assert site.client.post("/v1/datasets", json=body, headers=other).status_code == 404


def test_an_administrator_sees_all_tenants_jobs(make_site: MakeSite) -> None:
    with make_site(open_mode=False) as site:
        job = site.queued("someone")
        admin = site.key("admin")
        assert site.client.get(f"/v1/jobs/{job}", headers=admin).status_code == 200
        assert len(site.client.get("/v1/jobs", headers=admin).json()["items"]) == 1


def test_scopes_limit_what_a_key_may_do(make_site: MakeSite) -> None:
    with make_site(open_mode=False) as site:
        reader = site.key("read")
        assert site.client.get("/v1/jobs", headers=reader).status_code == 200
        refused = site.client.post("/v1/jobs", json=JOB, headers=reader)
        assert refused.status_code == 403
        assert "write" in refused.json()["detail"]


def test_programs_are_taken_from_trusted_keys_only(make_site: MakeSite) -> None:
    with make_site(open_mode=False) as site:
        plain, trusted = site.key("write"), site.key("write", "trusted", tenant="t")
        octets = {"Content-Type": "application/octet-stream"}
        archive = b"PK\x03\x04" + bytes(64)
        path = "/v1/models?name=net.pt2"
        assert site.client.post(path, content=archive, headers=plain | octets).status_code == 403
        kept = site.client.post(path, content=archive, headers=trusted | octets)
        assert kept.status_code == 201
        job = JOB | {"model": kept.json()["id"]}
        assert site.client.post("/v1/jobs", json=job, headers=trusted).status_code == 202
        same_tenant = site.key("write", tenant="t")
        assert site.client.post("/v1/jobs", json=job, headers=same_tenant).status_code == 403


def test_a_revoked_or_expired_key_is_refused_from_the_next_request_on(site: Site) -> None:
    end = datetime.now(UTC) + timedelta(seconds=30)
    record, token = site.store.keys.create("short", ["read"], end)
    headers = {"Authorization": f"Bearer {token}"}
    assert site.client.get("/v1/jobs", headers=headers).status_code == 200
    site.store.keys.revoke(record.id)
    assert site.client.get("/v1/jobs", headers=headers).status_code == 401


def test_open_mode_ends_with_the_first_key(make_site: MakeSite, monkeypatch) -> None:
    monkeypatch.setattr("mpsearch_api.http.gate.OPEN_SECONDS", 0.0)
    with make_site() as site:
        assert site.client.get("/v1/jobs").status_code == 200
        site.key("read")
        assert site.client.get("/v1/jobs").status_code == 401


def test_open_mode_lets_nobody_in_from_elsewhere(make_site: MakeSite) -> None:
    with make_site() as site:
        gate = site.client
        gate._transport.client = ("192.0.2.7", 50_000)
        assert gate.get("/v1/jobs").status_code == 401
        assert gate.get("/metrics").status_code == 401
        assert gate.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "header", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"]
)
def test_a_proxy_on_this_machine_opens_nothing_to_others(site: Site, header: str) -> None:
    assert site.client.get("/v1/jobs").status_code == 200
    forwarded = {header: "for=127.0.0.1"}
    assert site.client.get("/v1/jobs", headers=forwarded).status_code == 401
    assert site.client.get("/metrics", headers=forwarded).status_code == 401
    key = site.key("admin")
    assert site.client.get("/v1/jobs", headers=forwarded | key).status_code == 200
    assert site.client.get("/metrics", headers=forwarded | key).status_code == 200


def test_strangers_are_not_told_where_the_database_is(site: Site, monkeypatch) -> None:
    def down(*_: object) -> None:
        raise UnavailableError("connection to server at 10.0.0.5 failed for user mp")

    monkeypatch.setattr(type(site.store.database), "write", down)
    monkeypatch.setattr(type(site.store.keys), "check", down)
    site.client._transport.client = ("192.0.2.7", 50_000)
    ready = site.client.get("/readyz")
    assert (ready.status_code, ready.json()["faults"]["database"]) == (503, "not ready")
    answer = site.client.get("/v1/jobs", headers={"Authorization": "Bearer mps_x"})
    assert answer.status_code == 503
    assert "10.0.0.5" not in answer.text + ready.text
    assert "10.0.0.5" in site.log.getvalue()


def test_asking_for_readiness_again_and_again_writes_once(site: Site, monkeypatch) -> None:
    monkeypatch.setattr("mpsearch_api.http.readiness.WRITTEN_SECONDS", 3600.0)
    written: list[int] = []
    put = type(site.blobs).put
    monkeypatch.setattr(
        type(site.blobs), "put", lambda *a, **k: (written.append(1), put(*a, **k))[1]
    )
    for _ in range(5):
        site.client.get("/readyz")
    assert len(written) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_open_mode_beyond_loopback_is_refused_at_start(tmp_path, host: str) -> None:
    with pytest.raises(InputError, match="open mode"):
        create_app(Settings(data_dir=tmp_path, open_mode=True), host=host)


def test_beyond_loopback_keys_are_needed_even_before_one_exists(make_site: MakeSite) -> None:
    with make_site(host="0.0.0.0") as site:
        assert site.client.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "x"])
def test_a_rebound_name_is_refused_in_open_mode(site: Site, name: str) -> None:
    for path in ("/v1/jobs", "/healthz", "/docs", "/openapi.json"):
        answer = site.client.get(path, headers={"Host": name})
        assert answer.status_code == 421, path
        assert answer.headers["content-type"] == PROBLEM


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_are_answered(site: Site, name: str) -> None:
    assert site.client.get("/v1/jobs", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize("name", ["", "a b", "user@localhost", "localhost:99999999", "[::1"])
def test_a_broken_host_header_is_refused(site: Site, name: str) -> None:
    assert site.client.get("/v1/jobs", headers={"Host": name}).status_code in {400, 421}


def test_an_allowed_name_is_answered(make_site: MakeSite) -> None:
    with make_site(allowed_hosts=["search.example"]) as site:
        headers = {"Host": "search.example"}
        assert site.client.get("/v1/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:81"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_cannot_submit(site: Site, headers: dict) -> None:
    answer = site.client.post("/v1/jobs", json=JOB, headers=headers)
    assert answer.status_code == 403
    assert site.client.get("/v1/jobs").json()["items"] == []


def test_the_own_page_can_submit(site: Site) -> None:
    headers = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert site.client.post("/v1/jobs", json=JOB, headers=headers).status_code == 202


def test_a_form_of_another_site_is_no_json(site: Site) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = site.client.post("/v1/jobs", content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 415


def test_other_sites_may_read_nothing_unless_allowed(make_site: MakeSite) -> None:
    origin = {"Origin": "https://app.example"}
    preflight = origin | {"Access-Control-Request-Method": "GET"}
    with make_site() as site:
        for answer in (
            site.client.get("/v1/jobs", headers=origin),
            site.client.options("/v1/jobs", headers=preflight),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]
    with make_site(cors_origins=["https://app.example"]) as site:
        answer = site.client.get("/v1/jobs", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert site.client.options("/v1/jobs", headers=preflight).status_code == 200
        assert site.client.post("/v1/jobs", json=JOB, headers=origin).status_code == 202


def test_every_answer_has_the_security_headers(site: Site) -> None:
    job = site.finished()
    for path in ("/v1/jobs", "/nothing", "/healthz", "/docs", f"/v1/jobs/{job}/report"):
        headers = site.client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Request-ID"]
        assert "server" not in headers


def test_a_key_is_refused_beyond_its_rate_and_others_are_not(make_site: MakeSite) -> None:
    with make_site(open_mode=False, requests_per_minute=30) as site:
        busy, calm = site.key("read"), site.key("read")
        answers = [site.client.get("/v1/solvers", headers=busy) for _ in range(12)]
        codes = [answer.status_code for answer in answers]
        assert codes.count(200) >= 5
        assert codes[-1] == 429
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert site.client.get("/v1/solvers", headers=calm).status_code == 200


def test_failures_of_others_do_not_lock_a_valid_key_out(make_site: MakeSite) -> None:
    with make_site(open_mode=False, requests_per_minute=30) as site:
        key = site.key("read")
        codes = [site.client.get("/v1/jobs").status_code for _ in range(12)]
        assert codes[-1] == 429
        assert site.client.get("/v1/jobs", headers=key).status_code == 200


@given(
    per_minute=st.floats(1, 1e6),
    gaps=st.lists(st.floats(0, 30), min_size=1, max_size=60),
)
def test_no_window_lets_more_through_than_burst_and_rate_allow(
    per_minute: float, gaps: list[float]
) -> None:
    now = 0.0
    limit = RateLimit(per_minute, clock=lambda: now)
    passed: list[float] = []
    for gap in gaps:
        now += gap
        if limit.take("k") == 0:
            passed.append(now)
    rate = per_minute / 60
    burst = max(1.0, rate * 10)
    for start, first in enumerate(passed):
        for end, last in enumerate(passed[start:], start + 1):
            assert end - start <= burst + rate * (last - first) + 1e-6


def test_waiting_as_long_as_told_is_enough() -> None:
    now = 0.0
    limit = RateLimit(60, clock=lambda: now)
    while not (wait := limit.take("k")):
        pass
    now += wait + 1e-9
    assert limit.take("k") == 0


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@given(st.text(max_size=40))
def test_reading_a_host_header_never_fails(text: str) -> None:
    name = host_name(text)
    assert name is None or "/" not in name
