"""Reading `text/event-stream`: bytes in, messages out (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["EventStream", "Message"]

MOST = 2**20
"""Characters of one message; a longer one is no event of ours."""


@dataclass(frozen=True)
class Message:
    """One message of a stream.

    Attributes:
        event: Its name; `message` when it has none.
        data: Its data lines, joined by newlines.
        last_id: Id of this message, or of the last one that had an id.
    """

    event: str
    data: str
    last_id: str


@dataclass
class EventStream:
    """Takes the stream apart as it comes in, wherever its parts are cut.

    Attributes:
        last_id: Id to go on from after an interruption.
    """

    last_id: str = ""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8-sig")("replace")
    )
    _rest: str = ""
    _event: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, part: bytes) -> Iterator[Message]:
        """Read on.

        Args:
            part: The next bytes.

        Yields:
            Messages that are complete with this part.

        Raises:
            ValueError: A message is longer than any of ours.
        """
        text = self._rest + self._decoder.decode(part)
        # A final CR may be half of a CR LF; it waits for what follows.
        held = "\r" if text.endswith("\r") else ""
        text = text.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n")
        *lines, self._rest = text.split("\n")
        self._rest += held
        for line in lines:
            message = self._line(line)
            if message is not None:
                yield message
        if len(self._rest) + sum(map(len, self._data)) > MOST:
            raise ValueError(f"an event of more than {MOST:,} characters")

    def _line(self, line: str) -> Message | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self.last_id = value
        return None

    def _dispatch(self) -> Message | None:
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        return Message(event, "\n".join(data), self.last_id) if data else None
