"""Problem documents everywhere; HEAD, OPTIONS, sizes, media types and broken JSON."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpsearch.schemas.problems import Problem
from mpsearch_api.http.bodies import MOST_REQUEST
from mpsearch_api.solving.json_text import MAX_DEPTH, parse_json
from tests.mpsearch_api.http.running import JOB, MakeSite, Site

PROBLEM = "application/problem+json"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "given", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("GET", "/v1/nothing", {}, 404),
        ("GET", "/v1/jobs/", {}, 404),
        ("PUT", "/v1/jobs", {}, 405),
        ("DELETE", "/healthz", {}, 405),
        ("POST", "/v1/jobs", {"content": b"{", "headers": JSON}, 400),
        ("POST", "/v1/jobs", {"content": b"[" * 10_000, "headers": JSON}, 400),
        ("POST", "/v1/jobs", {"content": b'{"seed": NaN}', "headers": JSON}, 400),
        ("POST", "/v1/jobs", {"content": b'{"seed": -Infinity}', "headers": JSON}, 400),
        ("POST", "/v1/jobs", {"content": b"9" * 10_000, "headers": JSON}, 400),
        ("POST", "/v1/jobs", {"content": b'{"a": 1, "a": 2}', "headers": JSON}, 400),
        ("POST", "/v1/jobs", {"content": b'{"model": "\\u0000"}', "headers": JSON}, 400),
        ("POST", "/v1/jobs", {"content": b'{"model": "\\ud800"}', "headers": JSON}, 400),
        ("POST", "/v1/jobs", {"content": b"\xff", "headers": JSON}, 400),
        ("POST", "/v1/jobs", {"content": b"", "headers": JSON}, 422),
        ("POST", "/v1/jobs", {"content": b"{}"}, 415),
        ("POST", "/v1/jobs", {"json": {}}, 422),
        ("POST", "/v1/jobs", {"json": [JOB]}, 422),
        ("POST", "/v1/uploads", {"json": {"size": 10**30}}, 422),
        ("GET", "/v1/jobs?limit=0", {}, 422),
        ("GET", "/v1/jobs/%00", {}, 404),
        ("GET", "/v1/jobs/job_%ff", {}, 404),
        ("GET", "/v1/jobs?cursor=%00", {}, 422),
    ],
)
def test_every_refusal_is_a_problem_document(
    site: Site, method: str, path: str, given: dict, status: int
) -> None:
    answer = site.client.request(method, path, **given)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status
    assert problem.title
    assert problem.detail
    assert problem.request_id == answer.headers["X-Request-ID"]


def test_a_fault_of_the_service_is_a_problem_without_its_secrets(site: Site, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("password=hush")

    monkeypatch.setattr(type(site.store.jobs), "get", broken)
    answer = site.client.get("/v1/jobs/job_" + "0" * 26)
    assert answer.status_code == 500
    assert answer.headers["content-type"] == PROBLEM
    assert "hush" not in answer.text
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def test_a_request_id_of_the_caller_is_kept_if_it_is_harmless(site: Site) -> None:
    kept = site.client.get("/healthz", headers={"X-Request-ID": "build-7.a_b"})
    assert kept.headers["X-Request-ID"] == "build-7.a_b"
    replaced = site.client.get("/healthz", headers={"X-Request-ID": "a b\tc"})
    assert replaced.headers["X-Request-ID"] != "a b\tc"


def test_head_is_get_without_the_body(site: Site) -> None:
    job = site.finished()
    for path in ("/v1/jobs", f"/v1/jobs/{job}", f"/v1/jobs/{job}/result", "/healthz", "/docs"):
        head, get = site.client.head(path), site.client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers.get("content-length") == get.headers.get("content-length")
        assert head.headers.get("ETag") == get.headers.get("ETag")
    assert site.client.head("/v1/jobs/nothing").status_code == 404


def test_options_and_405_name_all_methods_of_a_path(site: Site) -> None:
    expected = {
        "/v1/jobs": "GET, HEAD, OPTIONS, POST",
        "/v1/uploads/upl_x": "DELETE, GET, HEAD, OPTIONS, PATCH",
        "/v1/solve": "OPTIONS, POST",
        "/healthz": "GET, HEAD, OPTIONS",
    }
    for path, methods in expected.items():
        asked = site.client.options(path)
        assert (asked.status_code, asked.headers["Allow"]) == (204, methods)
        assert site.client.request("TRACE", path).headers["Allow"] == methods
    assert site.client.options("/v1/nothing").status_code == 404


def test_bodies_beyond_the_limit_are_refused_announced_or_not(make_site: MakeSite) -> None:
    with make_site(body_bytes=2000) as site:
        large = json.dumps(JOB | {"label": "x" * 3000}).encode()
        announced = site.client.post("/v1/jobs", content=large, headers=JSON)
        chunked = site.client.post(
            "/v1/jobs", content=(large[i : i + 100] for i in range(0, 3000, 100)), headers=JSON
        )
        assert (announced.status_code, chunked.status_code) == (413, 413)
        assert announced.headers["content-type"] == chunked.headers["content-type"] == PROBLEM


def test_large_answers_are_compressed_for_who_takes_it(site: Site) -> None:
    plain = site.client.get("/v1/formats", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    with site.client.stream("GET", "/v1/formats", headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert gzip.decompress(b"".join(answer.iter_raw())) == plain.content
        assert "accept-encoding" in answer.headers["vary"].lower()


def test_the_document_describes_every_answer(site: Site) -> None:
    document = site.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    identities = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            identities.append(operation["operationId"])
            assert operation["summary"], (method, path)
            assert operation["tags"], (method, path)
            for status, answer in operation["responses"].items():
                assert answer["description"]
                if int(status) >= 400 and path.startswith("/v1"):
                    assert list(answer["content"]) == [PROBLEM], (method, path, status)
            if path.startswith("/v1"):
                assert {"401", "403", "422", "429", "500"} <= set(operation["responses"])
                assert operation["security"] == [{"key": []}]
            if "{" in path:
                assert "404" in operation["responses"], (method, path)
    assert len(identities) == len(set(identities))
    assert "HTTPValidationError" not in json.dumps(document["paths"])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(value=json_values, ascii_only=st.booleans())
def test_strict_reading_agrees_with_the_standard_library_on_plain_json(
    value: object, ascii_only: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text.encode()) == json.loads(text)


@given(st.binary(max_size=60))
def test_strict_reading_of_any_bytes_gives_a_value_or_a_value_error(body: bytes) -> None:
    try:
        parse_json(body)
    except ValueError:
        return
    json.loads(body)


@pytest.mark.parametrize("bracket", ["[]", '{"a":}'])
def test_nesting_is_counted_outside_strings_only(bracket: str) -> None:
    opening, closing = bracket[:-1], bracket[-1]
    fits = opening * MAX_DEPTH + "1" + closing * MAX_DEPTH
    parse_json(fits.encode())
    with pytest.raises(ValueError, match="nested"):
        parse_json((opening + fits + closing).encode())
    parse_json(json.dumps({"text": "[{" * 500 + '"\\['}).encode())


@pytest.mark.parametrize("start", [b"", b'{"a": "', b'["\\n", "'])
def test_a_long_string_without_an_end_is_refused_at_once(start: bytes) -> None:
    # Hours, if every quote in it were tried as the beginning of a string.
    with pytest.raises(ValueError, match=r"line 1|not JSON"):
        parse_json(start + b'\\"' * 200_000 + b"9" * 500)


def test_a_job_is_no_larger_than_what_is_worth_listing(site: Site) -> None:
    most = MOST_REQUEST
    patterns = {f"layer{number}.{'x' * 400}": "w4a8" for number in range(1400)}
    assert len(json.dumps(JOB | {"fix": patterns})) > most
    answer = site.client.post("/v1/jobs", json=JOB | {"fix": patterns})
    assert answer.status_code == 413
    few = dict(list(patterns.items())[:600])
    assert site.client.post("/v1/jobs", json=JOB | {"fix": few}).status_code == 202


def test_long_numbers_in_strings_are_text() -> None:
    assert parse_json(b'{"a": "' + b"1" * 5000 + b'"}') == {"a": "1" * 5000}


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
def test_no_path_fails_the_service(site: Site, path: str) -> None:
    answer = site.client.get("/v1/" + path.replace("#", "").replace("?", ""))
    assert answer.status_code < 500


@given(
    whole=st.integers(1, 320),
    fraction=st.integers(0, 20),
    exponent=st.one_of(st.none(), st.integers(-400, 400)),
    plus=st.booleans(),
)
def test_no_number_is_read_as_infinite(
    whole: int, fraction: int, exponent: int | None, plus: bool
) -> None:
    text = "9" * whole + ("." + "9" * fraction if fraction else "")
    if exponent is not None:
        text += f"e{exponent:+d}" if plus else f"e{exponent}"
    expected = float(text)
    if expected == float("inf") and ("." in text or "e" in text):
        with pytest.raises(ValueError, match="float64"):
            parse_json(f"[{text}]".encode())
    else:
        assert parse_json(f"[{text}]".encode()) == json.loads(f"[{text}]")


@given(
    brackets=st.lists(st.sampled_from("[{"), min_size=1, max_size=2 * MAX_DEPTH),
    text=st.sampled_from(["1", '"a"', '"[{"', '"\\""', '"\\\\"']),
)
def test_depth_is_limited_whatever_is_nested(brackets: list[str], text: str) -> None:
    opening = "".join("[" if each == "[" else '{"k":' for each in brackets)
    closing = "".join("]" if each == "[" else "}" for each in reversed(brackets))
    body = (opening + text + closing).encode()
    if len(brackets) > MAX_DEPTH:
        with pytest.raises(ValueError, match="nested"):
            parse_json(body)
    else:
        assert parse_json(body) == json.loads(body)
