"""Times of repeated runs: which count, and when halves agree."""

from __future__ import annotations

import numpy as np
import pytest

from mpsearch.hardware.round_times import RoundsTaken, Seconds


def _taken(graphs: dict[str, Seconds]) -> RoundsTaken:
    runs = len(next(iter(graphs.values())).whole)
    return RoundsTaken(outline="x", graphs=graphs, pace=[1.0] * runs)


def test_waiting_for_a_core_does_not_count() -> None:
    """Two kernels of 3 and 1 ms, nine in ten of whose runs are interrupted for 4 ms or more."""
    generator = np.random.default_rng(0)
    waits = 4e-3 * (1 + generator.random((2, 40))) * (generator.random((2, 40)) < 0.9)
    seconds = Seconds(
        whole=[4.4e-3] * 40,
        work={0: list(3e-3 + waits[0])},
        between={0: list(1e-3 + waits[1])},
    )
    work, between = seconds.undisturbed()
    # What profiling adds is taken out: kernels add up to the graph's own time.
    assert work[0] == pytest.approx(3.3e-3)
    assert between[0] == pytest.approx(1.1e-3)


def test_halves_that_agree_are_settled_and_a_drift_is_not() -> None:
    steady = Seconds(whole=[2.0] * 4, work={0: [1.0] * 4, 1: [1.0] * 4})
    assert _taken({"g": steady}).unsettled == 0
    # The second kernel takes three times as long later: of 2 and 4 s, 2 s differ.
    drifting = Seconds(whole=[2.0, 2.0, 4.0, 4.0], work={0: [1.0] * 4, 1: [1.0, 1.0, 3.0, 3.0]})
    assert _taken({"g": drifting}).unsettled == pytest.approx(2 / 3)
    assert _taken({"g": steady.part(slice(1))}).unsettled == 1


def test_sets_are_appended_run_by_run() -> None:
    seconds = Seconds(whole=[1.0, 2.0, 3.0], work={0: [4.0, 5.0, 6.0]}, between={-1: [7.0, 8.0, 9]})
    again = seconds.part(slice(1)).followed_by(seconds.part(slice(1, None)))
    assert again == seconds
    assert Seconds().followed_by(seconds) == seconds
