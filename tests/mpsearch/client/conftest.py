"""A driver without a network: a function answers, and time passes by sleeping alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mpsearch.client.steps import Answer, Call, Emit, Flow, LinkError, Open, Read, Send, Sleep, Work


@dataclass
class Wire:
    """Carries out a flow and keeps what happened.

    Attributes:
        answer: Gives the answer to a call; a list of parts beside it is its stream.
    """

    answer: Callable[[Call], Answer | tuple[Answer, list[bytes | LinkError]]]
    now: float = 1000.0
    calls: list[Call] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    _parts: list[bytes | LinkError] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def run(self, flow: Flow[Any]) -> Any:
        reply: Any = None
        failure: LinkError | None = None
        while True:
            try:
                step = flow.send(reply) if failure is None else flow.throw(failure)
            except StopIteration as end:
                return end.value
            reply = failure = None
            try:
                reply = self._do(step)
            except LinkError as error:
                failure = error

    def _do(self, step: Any) -> Any:
        match step:
            case Sleep(seconds):
                self.slept.append(seconds)
                self.now += seconds
            case Emit(item):
                self.items.append(item)
            case Work(function):
                return function()
            case Send(call) | Open(call):
                self.calls.append(call)
                found = self.answer(call)
                answer, self._parts = found if isinstance(found, tuple) else (found, [])
                return answer
            case Read():
                part = self._parts.pop(0) if self._parts else None
                if isinstance(part, LinkError):
                    raise part
                return part
        return None


@pytest.fixture(scope="session")
def wire() -> type[Wire]:
    return Wire
