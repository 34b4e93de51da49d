from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from mpsearch.process_wide import SILENT_ERRORS, ProcessWide


class Switch:
    """Saves its state, turns itself on and puts the state back, as torch's contexts do."""

    def __init__(self) -> None:
        self.is_on = False
        self.thrown = 0

    @contextmanager
    def thrown_once(self) -> Iterator[None]:
        before, self.is_on = self.is_on, True
        self.thrown += 1
        yield
        self.is_on = before


def test_who_comes_first_throws_it_and_who_leaves_last_puts_it_back() -> None:
    switch = Switch()
    wide = ProcessWide(switch.thrown_once)
    everyone_is_inside = threading.Barrier(8)
    seen = []

    def stay(number: int) -> None:
        with wide, wide:
            everyone_is_inside.wait(60)
            time.sleep(0.002 * (number * 5 % 8))  # they leave in another order
            seen.append(switch.is_on)

    for times in (1, 2):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(stay, range(8)))
        assert not switch.is_on
        assert switch.thrown == times
    assert seen == [True] * 16


def test_standard_error_is_back_after_two_threads_were_silent() -> None:
    before = sys.stderr
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with SILENT_ERRORS:
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(60)
    with SILENT_ERRORS:
        assert sys.stderr is not before
        leave.set()
        thread.join()
        assert sys.stderr is not before
    assert sys.stderr is before


def test_an_error_inside_puts_it_back_and_passes() -> None:
    switch = Switch()
    wide = ProcessWide(switch.thrown_once)
    with pytest.raises(ValueError, match="inside"), wide, wide:
        raise ValueError("inside")
    assert not switch.is_on


def test_a_switch_that_cannot_be_thrown_is_tried_anew() -> None:
    switch, broken = Switch(), [True]

    def make() -> object:
        if broken:
            raise OSError("stuck")
        return switch.thrown_once()

    wide = ProcessWide(make)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="stuck"):
        wide.__enter__()
    broken.clear()
    with wide:
        assert switch.is_on
    assert not switch.is_on
