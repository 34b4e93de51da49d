"""Messages on a stream, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch_api.execution.ray.frames import FrameReader, framed

MESSAGES = st.lists(
    st.tuples(st.dictionaries(st.text(max_size=5), st.integers(), max_size=3), st.binary()),
    max_size=5,
)


@given(messages=MESSAGES, cut=st.integers(1, 40))
def test_messages_arrive_whole_and_in_order_however_they_are_cut(messages, cut) -> None:
    sent = [({"kind": 1, **header, "size": 0}, body) for header, body in messages]
    stream = b"".join(piece for header, body in sent for piece in framed(header, body))
    reader = FrameReader()
    found = [
        message
        for start in range(0, len(stream), cut)
        for message in reader.read(stream[start : start + cut])
    ]
    assert found == [(header | {"size": len(body)}, body) for header, body in sent]
    assert not reader.midway


def test_a_message_under_way_is_known() -> None:
    reader = FrameReader()
    whole = b"".join(framed({"a": 1}, b"body"))
    assert list(reader.read(whole[:-1])) == []
    assert reader.midway
    assert list(reader.read(whole[-1:])) == [({"a": 1, "size": 4}, b"body")]
    assert not reader.midway


def test_what_is_no_message_is_refused_before_it_fills_memory() -> None:
    with pytest.raises(ValueError, match="a header of"):
        list(FrameReader().read(b"\xff\xff\xff\xff"))
