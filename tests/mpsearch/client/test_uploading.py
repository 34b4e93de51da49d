from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.client import uploading
from mpsearch.client.errors import ConflictError, NotFoundError, UnreachableError, UploadError
from mpsearch.client.operations import Operations
from mpsearch.client.retrying import Backoff, Retries
from mpsearch.client.sources import BytesSource
from mpsearch.client.steps import Answer, Call, LinkError
from mpsearch.client.storing import stored_file
from mpsearch.client.uploading import Parcel, uploaded

PROBLEM = {"content-type": "application/problem+json"}


@dataclass
class Depot:
    """Takes uploads as the service does, and loses connections when told to.

    Attributes:
        troubles: One for each request in turn: "" carries it out; "before" loses the request,
            "after" its answer, "half" the second half of its body; "503" refuses; "forget"
            loses all uploads first.
    """

    troubles: list[str] = field(default_factory=list)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    announced: dict[str, dict] = field(default_factory=dict)
    stored: list[dict] = field(default_factory=list)
    corrupt: bool = False

    def answer(self, call: Call) -> Answer:
        trouble = self.troubles.pop(0) if self.troubles else ""
        if trouble == "before":
            raise LinkError("lost")
        if trouble == "503":
            return Answer(503)
        if trouble == "forget":
            self.uploads.clear()
        found = self._carried_out(call, half=trouble == "half")
        if trouble in {"after", "half"}:
            raise LinkError("lost")
        return found

    def _carried_out(self, call: Call, *, half: bool) -> Answer:
        name = call.path.rpartition("/")[2]
        if call.method == "GET" and name == "models":
            return Answer(200, {}, json.dumps({"items": self.stored, "next": None}).encode())
        if call.method == "POST" and name == "uploads":
            name = f"upl_{len(self.announced)}"
            self.uploads[name] = bytearray()
            self.announced[name] = json.loads(call.content)
            return self._state(name, 201)
        if call.method == "POST" and name == "models":
            return self._store(json.loads(call.content))
        if name not in self.uploads:
            return Answer(404, PROBLEM, b'{"title": "Not found", "status": 404}')
        if call.method == "PATCH":
            return self._append(name, call, half=half)
        return self._state(name, 200)

    def _append(self, name: str, call: Call, *, half: bool) -> Answer:
        have = self.uploads[name]
        if int(call.headers["upload-offset"]) != len(have):
            problem = b'{"title": "Offset", "status": 409}'
            return Answer(409, PROBLEM | {"upload-offset": str(len(have))}, problem)
        body = call.content[: len(call.content) // 2] if half else call.content
        have += body[::-1] if self.corrupt else body
        return Answer(204, {"upload-offset": str(len(have))})

    def _state(self, name: str, status: int) -> Answer:
        have, said = self.uploads[name], self.announced[name]
        complete = len(have) == said["size"]
        state = {
            "id": name,
            "size": said["size"],
            "offset": len(have),
            "sha256": hashlib.sha256(have).hexdigest() if complete else said["sha256"],
            "complete": complete,
            "created": "2026-01-01T00:00:00Z",
        }
        return Answer(status, {}, json.dumps(state).encode())

    def _store(self, body: dict) -> Answer:
        content = self.uploads[body["upload"]]
        record = {
            "id": f"mdl_{len(self.stored)}",
            "kind": "model",
            "name": body["name"],
            "format": "onnx",
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "created": "2026-01-01T00:00:00Z",
        }
        self.stored.insert(0, record)
        return Answer(201, {}, json.dumps(record).encode())


def sent(wire, depot: Depot, content: bytes, on_upload=None, retries=None):
    line = wire(depot.answer)
    backoff = Backoff(retries or Retries(), "", clock=line.clock, draw=lambda: 0.5)

    def flow():
        parcel = yield from Parcel.of(BytesSource("net.onnx", content))
        return (yield from uploaded(parcel, backoff, on_upload))

    return line.run(flow()), line


@pytest.fixture(autouse=True, scope="module")
def small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploading, "PART", 7)
        yield


TROUBLES = st.lists(st.sampled_from(["", "", "before", "after", "half", "503"]), max_size=12)


@given(st.binary(min_size=1, max_size=60), TROUBLES)
def test_whatever_is_lost_on_the_way_the_bytes_arrive_whole(wire, content, troubles) -> None:
    depot = Depot(troubles)
    done, _ = sent(wire, depot, content, retries=Retries(patience=1000))
    assert bytes(depot.uploads[done.id]) == content
    assert done.sha256 == hashlib.sha256(content).hexdigest()


def test_only_what_is_missing_is_sent_again(wire) -> None:
    depot = Depot(["", "", "half", "", "", ""])
    _, line = sent(wire, depot, b"0123456789abcdefghij")
    sizes = [len(call.content) for call in line.calls if call.method == "PATCH"]
    assert sizes == [7, 7, 7, 3]  # of the second, 3 arrived: the third begins at 10


def test_progress_is_what_the_service_has(wire) -> None:
    seen = []
    sent(wire, Depot(), b"x" * 16, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 16), (7, 16), (14, 16), (16, 16)]


def test_an_upload_that_the_service_forgot_is_begun_anew(wire) -> None:
    depot = Depot(["", "", "forget"])
    done, _ = sent(wire, depot, b"x" * 20)
    assert bytes(depot.uploads[done.id]) == b"x" * 20
    assert done.id == "upl_1"


def test_a_service_that_always_forgets_is_given_up(wire) -> None:
    depot = Depot(["", "forget"] * 3)
    with pytest.raises(NotFoundError):
        sent(wire, depot, b"x" * 20)
    assert len(depot.announced) == 3


def test_parts_that_never_get_through_end_in_an_error_although_questions_do(wire) -> None:
    # A proxy that drops large bodies: asking for the state works every time.
    depot = Depot(["", *["before", ""] * 1000])
    with pytest.raises(UnreachableError):
        sent(wire, depot, b"x" * 20)


def test_bytes_that_changed_on_the_way_are_noticed(wire) -> None:
    depot = Depot(corrupt=True)
    with pytest.raises(UploadError, match="ended with"):
        sent(wire, depot, b"0123456789")


def test_a_conflict_that_is_not_about_the_offset_is_told(wire) -> None:
    def answer(call: Call) -> Answer:
        if call.method != "PATCH":
            return depot.answer(call)
        problem = b'{"title": "x", "status": 409, "detail": "already used"}'
        return Answer(409, PROBLEM | {"upload-offset": "0"}, problem)

    depot = Depot()
    line = wire(answer)
    backoff = Backoff(Retries(), "", clock=line.clock)
    with pytest.raises(ConflictError, match="already used"):
        line.run(uploaded(Parcel(BytesSource("a.onnx", b"abc"), "0" * 64), backoff))


def stored(wire, depot: Depot, content: bytes = b"abc", **keywords):
    line = wire(depot.answer)
    flow = stored_file(Operations(""), "model", BytesSource("net.onnx", content), **keywords)
    return line.run(flow)


def test_a_lost_answer_does_not_store_a_model_twice(wire) -> None:
    depot = Depot(["", "", "", "after"])
    assert stored(wire, depot).id == "mdl_0"
    assert len(depot.stored) == 1


def test_a_lost_request_is_sent_again(wire) -> None:
    depot = Depot(["", "", "", "before"])
    assert stored(wire, depot).id == "mdl_0"


def test_what_is_stored_already_is_not_sent_again(wire) -> None:
    depot = Depot()
    first = stored(wire, depot, reuse=True)
    assert stored(wire, depot, reuse=True) == first
    assert stored(wire, depot, b"other", reuse=True) != first
    assert len(depot.announced) == 2
