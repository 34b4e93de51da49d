from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mpsearch.process_wide import ProcessWide


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


@pytest.mark.parametrize("leaving", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_last_who_leaves_puts_it_back(leaving: tuple[int, ...]) -> None:
    switch = Switch()
    wide = ProcessWide(switch.thrown_once)
    for _ in range(2):
        for _ in leaving:
            wide.__enter__()
        for _ in leaving:
            assert switch.is_on
            wide.__exit__(None, None, None)
        assert not switch.is_on
    assert switch.thrown == 2


def test_contexts_that_overlap_would_leave_it_thrown() -> None:
    switch = Switch()
    first, second = switch.thrown_once(), switch.thrown_once()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert switch.is_on


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
