"""Following a job: its event stream, reconnected; or long polls where no stream comes through."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter, ValidationError

from mpsearch.client.answers import decoded, error_of, parsed, passing, retry_after
from mpsearch.client.errors import AnswerError, WaitTimeoutError
from mpsearch.client.event_stream import EventStream
from mpsearch.client.retrying import Backoff, Contact, Retries, sent
from mpsearch.client.steps import Call, Emit, Flow, LinkError, call_of, opened, pause, read
from mpsearch.schemas.jobs import Event, Job

__all__ = ["Follow", "follow"]

SILENCE = 45.0
"""Seconds without a byte, heartbeats included, after which a stream is taken for dead."""
SILENT_STREAMS = 2
"""Streams in a row that never said a word, after which long polls are used instead."""
POLL = 30.0
"""Seconds that a long poll lasts."""
_SLACK = 15.0
_PAGE = 500
_REST = 0.5
_ENDED = frozenset({"succeeded", "failed", "cancelled"})
_NO_STREAM = frozenset({400, 405, 406, 415, 501})
_EVENTS = TypeAdapter(list[Event])


@dataclass
class Follow:
    """Following one job.

    Attributes:
        job: Quoted id.
        retries: How long to go on while the service cannot be reached.
        server: Address of the service.
        seen: Id of the last event that was handed out.
        deadline: Clock time when to stop; infinity: never.
        contact: Whether the service has ever answered.
        streams: Whether to use the event stream.
        clock: Seconds that never go back.
    """

    job: str
    retries: Retries
    server: str
    seen: int = 0
    deadline: float = math.inf
    contact: Contact = field(default_factory=Contact)
    streams: bool = True
    clock: Callable[[], float] = time.monotonic
    _silent: int = field(default=0, init=False)

    def note(self, *, heard: bool) -> None:
        """Give streams up when none says a word: something on the way holds them back.

        Args:
            heard: Whether the last one did, if only a heartbeat.
        """
        self._silent = 0 if heard else self._silent + 1
        if self._silent >= SILENT_STREAMS:
            self.streams = False

    @property
    def path(self) -> str:
        """Path of the job."""
        return f"/v1/jobs/{self.job}"

    def backoff(self) -> Backoff:
        """Make what counts the failures of one request, which may not outlast the deadline."""
        patience = min(self.retries.waiting, self.left(self.retries.waiting))
        retries = replace(self.retries, patience=patience)
        return Backoff(retries, self.server, self.contact, clock=self.clock)

    def left(self, most: float) -> float:
        """Compute how long the next thing may last.

        Args:
            most: Seconds, at most.

        Returns:
            Seconds until the deadline, or `most`.

        Raises:
            WaitTimeoutError: The deadline has passed.
        """
        rest = self.deadline - self.clock()
        if rest <= 0:
            raise WaitTimeoutError(
                f"job {self.job} has not ended in the time given; it goes on, and "
                f"`mpsearch watch {self.job}` follows it"
            )
        return min(most, rest)


def follow(following: Follow) -> Flow[Job]:
    """Hand out a job's events, each once and in order, until it has ended.

    Args:
        following: Which job, and where to begin; moved on as events come.

    Yields:
        The steps, and an `Emit` for every `Event`.

    Returns:
        The job as it ended.
    """
    while following.streams:
        yield from _stream(following)
        # The stream has ended, broken, or told of the end: the job itself says which.
        job = yield from _job(following)
        if job.ended:
            yield from _later_events(following)
            return job
        yield from pause(following.left(_REST))  # a server that shuts down ends its streams
    return (yield from _poll(following))


def _stream(following: Follow) -> Flow[None]:
    """Hand out the events of one connection."""
    call = Call(
        "GET",
        f"{following.path}/events",
        headers={"accept": "text/event-stream", "last-event-id": str(following.seen)},
        silence=following.left(SILENCE),
    )
    heard = False
    # Asking for the job, which comes next, shows whether the service can be reached at all.
    with suppress(LinkError):
        answer = yield from opened(call)
        if answer.status == 204:  # the job has ended, and nothing is left to tell
            return
        if answer.status in _NO_STREAM or (answer.ok and answer.media_type != "text/event-stream"):
            following.streams = False
            return
        if passing(answer):
            yield from pause(following.left(retry_after(answer) or _REST))
            return
        if not answer.ok:
            raise error_of(answer, call)
        stream = EventStream(str(following.seen))
        while (part := (yield from read())) is not None:
            heard = True
            following.left(SILENCE)
            for event in _events_in(stream, part, call):
                yield from _hand_out(following, event)
                if event.status in _ENDED:
                    return
    following.note(heard=heard)


def _events_in(stream: EventStream, part: bytes, call: Call) -> list[Event]:
    try:
        return [Event.model_validate_json(message.data) for message in stream.feed(part)]
    except ValueError as error:  # pydantic's ValidationError is one
        raise AnswerError(f"{call.path}: the event stream cannot be read: {error}") from error


def _hand_out(following: Follow, event: Event) -> Flow[None]:
    if event.id > following.seen:
        following.seen = event.id
        yield Emit(event)


def _poll(following: Follow) -> Flow[Job]:
    while True:
        seconds = following.left(POLL)
        job = yield from _job(following, seconds)
        yield from _later_events(following)
        if job.ended:
            return job


def _job(following: Follow, wait: float | None = None) -> Flow[Job]:
    call = call_of("GET", following.path, wait=None if wait is None else max(1, round(wait)))
    if wait is not None:
        call = replace(call, silence=wait + _SLACK)
    return parsed(Job, (yield from sent(call, following.backoff())), call)


def _later_events(following: Follow) -> Flow[None]:
    """Hand out what was recorded after the last event seen."""
    while True:
        call = call_of("GET", f"{following.path}/events", after=following.seen, limit=_PAGE)
        answer = yield from sent(call, following.backoff())
        page = decoded(answer, call)
        try:
            events = _EVENTS.validate_python(page["items"] if isinstance(page, dict) else page)
        except (KeyError, ValidationError) as error:
            raise AnswerError(f"{call.path}: the events cannot be read: {error}") from error
        for event in events:
            yield from _hand_out(following, event)
        if len(events) < _PAGE:
            return
