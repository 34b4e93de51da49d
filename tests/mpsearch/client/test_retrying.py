from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.client.answers import retry_after
from mpsearch.client.errors import (
    ServerFaultError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
)
from mpsearch.client.operations import Operations
from mpsearch.client.retrying import Backoff, Retries, sent
from mpsearch.client.steps import Answer, LinkError, call_of

CALL = call_of("GET", "/v1/jobs")
OK = Answer(200)


def scripted(*found):
    """Answer with these in turn, the last one for ever."""
    script = itertools.chain(found, itertools.repeat(found[-1]))

    def answer(_):
        each = next(script)
        if isinstance(each, Exception):
            raise each
        return each

    return answer


def run(wire, script, retries=None, draw=lambda: 1.0):
    backoff = Backoff(retries or Retries(), "http://here", clock=wire.clock, draw=draw)
    wire.answer = script
    return wire.run(sent(CALL, backoff))


@pytest.mark.parametrize("trouble", [LinkError("refused"), *map(Answer, (429, 502, 503, 504))])
def test_trouble_that_passes_is_tried_again(wire, trouble) -> None:
    line = wire(None)
    assert run(line, scripted(trouble, trouble, OK)) == OK
    assert len(line.calls) == 3


@pytest.mark.parametrize("status", [200, 304, 400, 401, 404, 409, 422, 500, 501])
def test_every_other_answer_is_taken_at_once(wire, status) -> None:
    line = wire(None)
    assert run(line, scripted(Answer(status))).status == status
    assert not line.slept


def test_delays_double_up_to_the_longest(wire) -> None:
    line = wire(None)
    with pytest.raises(UnreachableError):
        run(line, scripted(LinkError("refused")), Retries(patience=9.0, first=0.5, longest=2.0))
    assert line.slept[:5] == [0.5, 1.0, 2.0, 2.0, 2.0]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_jitter_keeps_between_half_of_a_delay_and_all_of_it(failures: int, share: float) -> None:
    retries = Retries()
    whole = min(retries.longest, retries.first * 2 ** min(failures - 1, 50))
    assert whole / 2 <= retries.delay(failures, share) <= whole


@given(st.floats(0, 100), st.floats(0, 1, exclude_max=True))
def test_patience_bounds_the_time_and_the_last_try_comes_at_its_end(wire, patience, share):
    line = wire(scripted(LinkError("refused")))
    with pytest.raises(UnreachableError):
        run(line, line.answer, Retries(patience=patience), draw=lambda: share)
    assert sum(line.slept) == pytest.approx(patience, abs=1e-9)


def test_a_service_that_never_answered_is_given_up_sooner(wire) -> None:
    line = wire(scripted(LinkError("refused"), OK))
    operations = Operations("http://here", Retries(patience=100.0, contact=3.0))
    backoff = Backoff(operations.retries, "", operations.contact, clock=line.clock)
    line.answer = scripted(LinkError("refused"))
    with pytest.raises(UnreachableError):
        line.run(sent(CALL, backoff))
    assert sum(line.slept) == pytest.approx(3.0)
    line.answer = scripted(OK)
    line.run(sent(CALL, operations.backoff()))
    assert operations.contact.made
    line.slept.clear()
    line.answer = scripted(LinkError("refused"))
    with pytest.raises(UnreachableError):
        line.run(sent(CALL, backoff.fresh()))
    assert sum(line.slept) == pytest.approx(100.0)


def test_no_patience_means_one_try(wire) -> None:
    line = wire(None)
    with pytest.raises(
        UnreachableError, match=r"gives no answer \(refused; tried once\)"
    ) as caught:
        run(line, scripted(LinkError("refused")), Retries(patience=0))
    assert len(line.calls) == 1
    assert "http://here" in str(caught.value)
    assert caught.value.exit_code == 4


def test_retry_after_is_a_least_delay(wire) -> None:
    line = wire(None)
    busy = Answer(429, {"retry-after": "7"})
    assert run(line, scripted(busy, OK)) == OK
    assert line.slept == [7.0]


def test_a_wait_longer_than_patience_is_told_instead_of_slept(wire) -> None:
    line = wire(None)
    busy = Answer(429, {"retry-after": "3600"})
    with pytest.raises(TooManyRequestsError) as caught:
        run(line, scripted(busy))
    assert caught.value.retry_after == 3600
    assert not line.slept


def test_a_service_that_cannot_serve_for_too_long_says_why(wire) -> None:
    problem = b'{"title": "Unavailable", "status": 503, "detail": "the database does not answer"}'
    down = Answer(503, {"content-type": "application/problem+json"}, problem)
    with pytest.raises(UnreachableError, match="the database does not answer") as caught:
        run(wire(None), scripted(down))
    assert caught.value.status == 503


def test_a_reset_gives_patience_anew(wire) -> None:
    line = wire(scripted(LinkError("refused"), OK))
    backoff = Backoff(Retries(patience=1.0), "", clock=line.clock, draw=lambda: 1.0)
    for _ in range(20):
        line.answer = scripted(LinkError("refused"), OK)
        line.run(sent(CALL, backoff))
        line.now += 100.0
    assert backoff.failures == 0


def test_retry_after_reads_seconds_and_dates_and_nothing_else() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    later = format_datetime(now + timedelta(seconds=90), usegmt=True)

    def seconds(text: str) -> float | None:
        return retry_after(Answer(429, {"retry-after": text}), now.timestamp())

    assert seconds("12") == 12.0
    assert seconds(later) == 90.0
    assert seconds(format_datetime(now - timedelta(days=1), usegmt=True)) == 0.0
    assert [seconds(text) for text in ("", "soon", "-5", "1e3", "²")] == [None] * 5


def test_errors_of_the_server_and_of_the_key_are_not_retried(wire) -> None:
    from mpsearch.client.answers import checked

    for status, kind in ((500, ServerFaultError), (401, UnauthorizedError)):
        with pytest.raises(kind):
            checked(run(wire(None), scripted(Answer(status))), CALL)
