from __future__ import annotations

import pytest

from mpsearch.progress import Progress, with_time_left


def reported(steps):
    """Reports of (seconds, done, total, message) with the time left added."""
    now, seen = [0.0], []
    report = with_time_left(seen.append, lambda: now[0])
    for seconds, done, total, message in steps:
        now[0] = seconds
        report(Progress("profile", done, total, message))
    return [progress.seconds_left for progress in seen]


def test_time_left_follows_the_pace_so_far():
    assert reported([(0, 1, 11, "a"), (2, 2, 11, "a"), (8, 5, 11, "a"), (20, 11, 11, "a")]) == [
        None,
        pytest.approx(18.0),
        pytest.approx(12.0),
        0.0,
    ]


def test_what_a_resumed_run_found_finished_says_nothing_of_the_pace():
    assert reported([(0, 90, 100, "a"), (5, 91, 100, "a")]) == [None, pytest.approx(45.0)]


def test_other_work_starts_anew():
    found = reported([(0, 1, 10, "a"), (1, 2, 10, "a"), (1, 2, 12, "b"), (4, 3, 12, "b")])
    assert found == [None, pytest.approx(8.0), None, pytest.approx(27.0)]


def test_the_same_work_from_its_beginning_starts_anew():
    found = reported([(0, 1, 4, "a"), (9, 4, 4, "a"), (90, 1, 4, "a"), (92, 2, 4, "a")])
    assert found == [None, 0.0, None, pytest.approx(4.0)]


def test_reports_are_otherwise_as_they_were():
    seen = []
    given = Progress("verify", 1, 2, "baseline")
    with_time_left(seen.append)(given)
    assert seen == [given]
