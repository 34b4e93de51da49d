from __future__ import annotations

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.client.event_stream import MOST, EventStream


def read(parts: list[bytes]) -> list[tuple[str, str, str]]:
    stream = EventStream()
    found = [message for part in parts for message in stream.feed(part)]
    return [(message.event, message.data, message.last_id) for message in found]


def test_messages_have_name_data_and_id() -> None:
    text = b"id: 7\nevent: progress\ndata: {\ndata: }\n\n: heartbeat\n\ndata:x\n\n"
    assert read([text]) == [("progress", "{\n}", "7"), ("message", "x", "7")]


def test_an_unfinished_message_is_not_told() -> None:
    assert read([b"data: a\n\ndata: b\n"]) == [("message", "a", "")]


LINES = st.sampled_from(
    ["data: a", "data:ü☃", "data", "event: status", "event", "id: 3", "id", "id: 1\0", ": beat", "",
     "retry: 5", "other: x", "data:  two spaces"]
)  # fmt: skip


@given(st.lists(LINES, max_size=20), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_any_stream_cut_anywhere_reads_as_httpx2_reads_it_whole(lines, end, data) -> None:
    text = (end.join(lines) + end * 2).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    # A final lone CR may be half of a CR LF; the next part tells.
    parts.append(b": end\n")
    response = httpx2.Response(
        200,
        headers={"content-type": "text/event-stream"},
        content=text + b": end\n",
        request=httpx2.Request("GET", "http://here"),
    )
    # httpx2 also hands out messages without data, which the specification says to drop.
    oracle = [(m.event, m.data, m.id) for m in httpx2.EventSource(response) if m.data]
    assert [message for message in read(parts) if message[1]] == oracle


def test_a_stream_that_never_ends_a_message_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        read([b"data: " + b"x" * 1000] * (MOST // 1000 + 2))
