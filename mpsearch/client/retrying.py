"""Trying again: exponential backoff with jitter, for as long as the caller is patient."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from mpsearch.client.answers import error_of, passing, retry_after
from mpsearch.client.errors import ServiceError, TooManyRequestsError, UnreachableError
from mpsearch.client.steps import Answer, Call, Flow, LinkError, pause, sent_once

__all__ = ["Backoff", "Contact", "Retries", "sent"]


@dataclass(frozen=True)
class Retries:
    """How long and how often to try again after connection errors, 429, 502, 503 and 504.

    Delays grow as `first * 2**n` up to `longest`, each drawn uniformly between half of that and all
    of it, so that clients of a server that restarts do not return at once. `Retry-After` is a least
    delay.

    Attributes:
        patience: Seconds after the first failure in a row when the last try is made; 0: no retry.
        first: Seconds, the first delay.
        longest: Seconds, the longest delay that is not asked for by the service.
        waiting: Seconds of patience while a job is followed: a server may be restarted meanwhile.
        contact: Seconds of patience until the service has answered this client once: an address
            where nothing listens is told of soon.
    """

    patience: float = 30.0
    first: float = 0.25
    longest: float = 10.0
    waiting: float = 300.0
    contact: float = 10.0

    def delay(self, failures: int, share: float) -> float:
        """Compute a delay.

        Args:
            failures: Failures in a row, at least 1.
            share: A draw from [0, 1).

        Returns:
            Seconds.
        """
        # 2**60 seconds is past any limit, and keeps the power from overflowing.
        most = min(self.longest, self.first * 2.0 ** min(failures - 1, 60))
        return most * (0.5 + 0.5 * share)


@dataclass
class Contact:
    """Whether the service has ever answered."""

    made: bool = False


class Backoff:
    """Counts the failures of one task and sleeps after each, until patience ends."""

    def __init__(
        self,
        retries: Retries,
        server: str,
        contact: Contact | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,  # noqa: S311
    ) -> None:
        """Start without failures.

        Args:
            retries: How long to go on.
            server: Address, for the message.
            contact: Whether the service has ever answered; None: it has.
            clock: Seconds that never go back.
            draw: Gives numbers from [0, 1).
        """
        self.retries = retries
        self.server = server
        self.contact = contact or Contact(made=True)
        self.failures = 0
        self.links_lost = 0
        self._clock = clock
        self._draw = draw
        self._since = 0.0

    def reset(self) -> None:
        """Forget failures, because something worked."""
        self.failures = 0

    def fresh(self) -> Backoff:
        """Make one for a part of the task, whose success says nothing about the whole."""
        return Backoff(self.retries, self.server, self.contact, clock=self._clock, draw=self._draw)

    def after(self, trouble: Answer | LinkError, call: Call) -> Flow[None]:
        """Sleep after a failure.

        Args:
            trouble: An answer with a passing status, or a broken link.
            call: What failed.

        Yields:
            The sleep.

        Raises:
            ServiceError: Patience has ended; the error that the trouble means.
        """
        if self.failures == 0:
            self._since = self._clock()
        self.failures += 1
        self.links_lost += isinstance(trouble, LinkError)
        delay = self.retries.delay(self.failures, self._draw())
        asked = retry_after(trouble) or 0.0 if isinstance(trouble, Answer) else 0.0
        self.contact.made |= isinstance(trouble, Answer)
        patience = self.retries.patience
        if not self.contact.made:
            patience = min(patience, self.retries.contact)
        # A last try is made when patience ends, and none after it.
        left = self._since + patience - self._clock()
        if left <= 0 or asked > left:
            raise self._given_up(trouble, call)
        yield from pause(min(max(delay, asked), left))

    def _given_up(self, trouble: Answer | LinkError, call: Call) -> ServiceError:
        tried = f"tried {self.failures} times" if self.failures > 1 else "tried once"
        if isinstance(trouble, LinkError):
            return UnreachableError(
                f"the service at {self.server} gives no answer ({trouble}; {tried}); is it "
                "running there? Start one with: mpsearch serve"
            )
        error = error_of(trouble, call)
        if isinstance(error, UnreachableError):
            return UnreachableError(
                f"the service at {self.server} cannot serve now ({tried}): {error}",
                status=error.status,
                problem=error.problem,
            )
        if isinstance(error, TooManyRequestsError) and error.retry_after is not None:
            error.add_note(f"try again in {error.retry_after:.0f} s")
        return error


def sent(call: Call, backoff: Backoff) -> Flow[Answer]:
    """Make a request that may be made twice, again and again until it is answered.

    Args:
        call: The request; either idempotent or with an Idempotency-Key.
        backoff: Failures are counted here.

    Yields:
        The steps.

    Returns:
        The answer, of any status but the passing ones.
    """
    while True:
        try:
            answer = yield from sent_once(call)
        except LinkError as error:
            yield from backoff.after(error, call)
            continue
        if not passing(answer):
            backoff.contact.made = True
            backoff.reset()
            return answer
        yield from backoff.after(answer, call)
