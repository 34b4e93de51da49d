from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.client.errors import AnswerError, NotFoundError, UnreachableError, WaitTimeoutError
from mpsearch.client.retrying import Contact, Retries
from mpsearch.client.steps import Answer, Call, LinkError
from mpsearch.client.watching import Follow, follow

SSE = {"content-type": "text/event-stream; charset=utf-8"}
TIME = "2026-01-01T00:00:00Z"
REQUEST = {"model": "digits-resnet", "data": "digits", "budget": {"weight_memory": "0.2x"}}


def event(number: int, last: int) -> dict:
    if number == last:
        return {"id": number, "time": TIME, "kind": "status", "attempt": 1, "status": "succeeded"}
    return {"id": number, "time": TIME, "kind": "progress", "attempt": 1, "stage": "profile"}


@dataclass
class Service:
    """A job that has its events, and streams them as it is told to.

    Attributes:
        last: Number of events when the job has ended.
        streams: For each stream in turn, how many events it tells before it ends, and how it ends.
        known: Events that exist; one more with every request for the job.
    """

    last: int = 6
    streams: list[tuple[int, str]] = field(default_factory=list)
    known: int = 1
    refused: int | None = None
    calls: list[Call] = field(default_factory=list)

    def answer(self, call: Call):
        self.calls.append(call)
        if call.path.endswith("/events") and "accept" in call.headers:
            return self._stream(int(call.headers["last-event-id"]))
        if call.path.endswith("/events"):
            after = int(call.query["after"])
            return self._json({"items": self._events(after, self.known), "next": None})
        self.known = min(self.known + 1, self.last)
        ended = self.known == self.last
        status = "succeeded" if ended else "running"
        job = {"id": "job_1", "status": status, "attempt": 1, "request": REQUEST, "created": TIME}
        return self._json(job)

    def _stream(self, after: int):
        if self.refused is not None:
            return Answer(self.refused)
        count, end = self.streams.pop(0) if self.streams else (99, "close")
        if end == "refuse":
            raise LinkError("refused")
        self.known = max(self.known, min(self.last, after + count))
        parts: list[bytes | LinkError] = [b": hello\n\n"] if end != "mute" else []
        for found in self._events(after, min(self.last, after + count)):
            text = f"id: {found['id']}\nevent: {found['kind']}\ndata: {json.dumps(found)}\n\n"
            parts += [text[:9].encode(), text[9:].encode()]
        if end == "break":
            parts.append(LinkError("reset"))
        if end == "mute":
            parts = [LinkError("nothing came", silent=True)]
        return Answer(200, SSE), parts

    def _events(self, after: int, to: int) -> list[dict]:
        return [event(number, self.last) for number in range(after + 1, to + 1)]

    def _json(self, found: object) -> Answer:
        return Answer(200, {"content-type": "application/json"}, json.dumps(found).encode())


def followed(
    wire, answer: Callable, *, after: int = 0, seconds: float = math.inf, known: bool = True
):
    line = wire(answer)
    following = Follow(
        "job_1", Retries(), "http://here", after, line.now + seconds, clock=line.clock
    )
    following.contact.made = known
    try:
        job = line.run(follow(following))
    finally:
        line.ids = [item.id for item in line.items]
    return job, line


ENDS = st.sampled_from(["close", "break", "refuse", "mute"])


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 4), ENDS), max_size=8))
def test_every_event_is_told_once_and_in_order_however_streams_end(wire, last, streams) -> None:
    job, line = followed(wire, Service(last, list(streams)).answer)
    assert job.status == "succeeded"
    assert line.ids == list(range(1, last + 1))


def test_a_new_stream_begins_after_the_last_event_seen(wire) -> None:
    service = Service(last=9, streams=[(2, "break"), (3, "close")])
    followed(wire, service.answer)
    streams = [call for call in service.calls if "accept" in call.headers]
    assert [call.headers["last-event-id"] for call in streams] == ["0", "2", "5"]


def test_events_that_are_known_are_not_told_again(wire) -> None:
    assert followed(wire, Service().answer, after=4)[1].ids == [5, 6]


@pytest.mark.parametrize("status", [405, 406, 501])
def test_a_service_without_streams_is_polled(wire, status: int) -> None:
    service = Service(refused=status)
    _, line = followed(wire, service.answer)
    assert line.ids == [1, 2, 3, 4, 5, 6]
    polls = [call for call in service.calls if "wait" in call.query]
    assert polls
    assert all(call.silence > float(call.query["wait"]) for call in polls)


def test_a_stream_that_is_held_back_on_the_way_is_given_up_for_polls(wire) -> None:
    service = Service(last=9, streams=[(0, "mute")] * 9)
    _, line = followed(wire, service.answer)
    assert line.ids == list(range(1, 10))
    assert sum("accept" in call.headers for call in service.calls) == 2


def test_an_ended_job_that_has_nothing_to_tell_is_returned(wire) -> None:
    service = Service(known=6, refused=204)
    job, line = followed(wire, service.answer, after=6)
    assert job.ended
    assert not line.ids


def test_a_service_that_is_down_for_a_while_is_waited_for(wire) -> None:
    down = [40]

    def answer(call: Call):
        if down[0]:
            down[0] -= 1
            raise LinkError("refused")
        return service.answer(call)

    service = Service()
    job, line = followed(wire, answer)
    assert job.ended
    assert line.ids == [1, 2, 3, 4, 5, 6]


def test_a_service_that_stays_down_is_given_up(wire) -> None:
    def answer(_: Call):
        raise LinkError("refused")

    line = wire(answer)
    following = Follow("job_1", Retries(), "", 0, clock=line.clock, contact=Contact(made=True))
    with pytest.raises(UnreachableError):
        line.run(follow(following))
    assert sum(line.slept) == pytest.approx(Retries().waiting)


def test_where_nothing_ever_answered_nobody_waits_for_long(wire) -> None:
    def answer(_: Call):
        raise LinkError("refused")

    line = wire(answer)
    following = Follow("job_1", Retries(), "", 0, clock=line.clock)
    with pytest.raises(UnreachableError):
        line.run(follow(following))
    assert sum(line.slept) == pytest.approx(Retries().contact)


def test_a_full_service_is_asked_again_when_it_wants(wire) -> None:
    def answer(call: Call):
        if "accept" in call.headers and not service.streams:
            service.streams.append((99, "close"))
            return Answer(429, {"retry-after": "11"})
        return service.answer(call)

    service = Service()
    _, line = followed(wire, answer)
    assert 11.0 in line.slept
    assert line.ids == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("refused", [None, 406])
def test_waiting_ends_at_its_limit_and_says_that_the_job_goes_on(wire, refused) -> None:
    service = Service(last=10**6, refused=refused, streams=[(0, "close")] * 10**4)
    line = wire(service.answer)

    def answer(call: Call):
        line.now += float(call.query.get("wait", 0))
        return service.answer(call)

    line.answer = answer
    following = Follow("job_1", Retries(), "", 0, line.now + 65.0, clock=line.clock)
    with pytest.raises(WaitTimeoutError, match="it goes on"):
        line.run(follow(following))
    assert line.now == pytest.approx(1065.0, abs=1.5)


def test_heartbeats_do_not_keep_a_limit_from_ending_the_wait(wire) -> None:
    line = wire(None)

    class Beats(list):
        def pop(self, _):
            line.now += 10.0
            return b": beat\n\n"

    line.answer = lambda _: (Answer(200, SSE), Beats([1]))
    following = Follow("job_1", Retries(), "", 0, line.now + 65.0, clock=line.clock)
    with pytest.raises(WaitTimeoutError) as caught:
        line.run(follow(following))
    assert caught.value.exit_code == 4
    assert isinstance(caught.value, TimeoutError)


def test_a_job_that_is_not_there_is_an_error(wire) -> None:
    problem = b'{"title": "Not found", "status": 404, "detail": "no job job_1"}'
    with pytest.raises(NotFoundError, match="no job job_1"):
        followed(wire, lambda _: Answer(404, {"content-type": "application/json"}, problem))


@pytest.mark.parametrize("data", [b"{}", b"nonsense", b'{"id": 0}'])
def test_an_event_that_cannot_be_read_is_an_error(wire, data: bytes) -> None:
    stream = (Answer(200, SSE), [b"data: " + data + b"\n\n"])
    with pytest.raises(AnswerError, match="cannot be read"):
        followed(wire, lambda _: stream)
