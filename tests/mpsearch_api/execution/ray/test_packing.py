"""Calls as bytes: what comes back, and what travels once."""

from __future__ import annotations

import operator
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.errors import InfeasibleError, InputError, UnknownNameError
from mpsearch_api.execution.ray.packing import LARGE, Parcels, run_packed, unpacked


def call(parcels: Parcels, function, *args, **kwargs):
    """Pack a call and run it with what was sent for it."""
    packed = parcels.pack(function, args, kwargs)
    return unpacked(run_packed(packed.body, packed.new))


class Odd(Exception):
    """Cannot be pickled: its constructor wants two arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class OddInput(InputError):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail(kind, *args):
    raise kind(*args)


@given(st.lists(st.one_of(st.integers(), st.binary(max_size=300), st.text()), max_size=5))
def test_a_call_gives_what_the_function_gives(values) -> None:
    assert call(Parcels(), lambda_free, *values, more=values) == (tuple(values), values)


def lambda_free(*values, more):
    return values, more


@pytest.mark.parametrize("kind", [ZeroDivisionError, InputError, KeyError])
def test_an_error_comes_back_as_its_own_class_with_its_place(kind) -> None:
    with pytest.raises(kind, match="why") as caught:
        call(Parcels(), fail, kind, "why")
    assert "in fail" in "".join(caught.value.__notes__)


def test_an_error_with_state_keeps_it() -> None:
    with pytest.raises(InfeasibleError, match="too small") as caught:
        call(Parcels(), fail, InfeasibleError, "too small", {"weight_memory": 10.0})
    assert caught.value.minimum == {"weight_memory": 10.0}


def test_an_unknown_name_stays_bad_input() -> None:
    with pytest.raises(InputError, match="digits-resnt"):
        call(Parcels(), fail, UnknownNameError, "model", "digits-resnt", ["digits-resnet"])


@pytest.mark.parametrize(("kind", "near"), [(Odd, Exception), (OddInput, InputError)])
def test_an_error_that_cannot_be_pickled_comes_back_as_the_nearest_class(kind, near) -> None:
    with pytest.raises(near, match="left and right"):
        call(Parcels(), fail, kind, "left", "right")


def test_a_result_that_cannot_be_pickled_is_an_error() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        call(Parcels(), make_closure)


def make_closure():
    return lambda: None


def test_what_cannot_be_pickled_is_refused_before_it_is_sent() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        Parcels().pack(lambda: None, (), {})


def test_large_bytes_are_sent_once_for_many_calls_wherever_they_are() -> None:
    parcels = Parcels()
    content = bytes(LARGE)
    first = parcels.pack(len, (content,), {})
    second = parcels.pack(operator.itemgetter("x"), ({"x": [content]},), {})
    assert list(first.new.values()) == [content]
    assert second.new == {}
    assert second.keys == first.keys
    assert len(first.body) < 1000
    assert unpacked(run_packed(second.body, first.new)) == [content]


def test_equal_bytes_are_sent_once_though_they_are_other_objects() -> None:
    parcels = Parcels()
    first = parcels.pack(len, (bytes(LARGE),), {})
    assert parcels.pack(len, (bytes(bytearray(LARGE)),), {}).new == {}
    assert len(first.new) == 1


def test_small_bytes_travel_with_the_call() -> None:
    packed = Parcels().pack(len, (bytes(LARGE - 1),), {})
    assert packed.keys == ()
    assert unpacked(run_packed(packed.body, {})) == LARGE - 1


def test_parcels_are_forgotten_when_no_call_needs_them_and_newer_ones_are_used() -> None:
    parcels = Parcels()
    old, new = bytes(LARGE), b"x" * LARGE
    first = parcels.pack(len, (old,), {})
    again = parcels.pack(len, (old,), {})
    assert parcels.release(first.keys) == []
    assert parcels.release(again.keys) == []  # the newest: the next call may need it
    other = parcels.pack(len, (new,), {})
    assert parcels.release(()) == list(first.keys)
    assert parcels.release(other.keys) == []
    assert parcels.pack(len, (old,), {}).new == {first.keys[0]: old}  # sent again
