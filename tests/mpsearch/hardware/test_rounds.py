"""Rounds of running graphs: what counts, when it is enough, and going on after an interruption."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from mpsearch.errors import InputError
from mpsearch.hardware import rounds as module
from mpsearch.hardware.onnx_graph import RuntimeGraph, runtime_graph
from mpsearch.hardware.round_times import RoundsTaken
from mpsearch.hardware.rounds import FEWEST, Rounds, outline, rounds_file, run_rounds
from mpsearch.progress import Progress, ignore_progress

pytest.importorskip("onnxruntime")

MACHINE = {"processor": "this one"}


@pytest.fixture(scope="module")
def graph() -> RuntimeGraph:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    return runtime_graph(model, torch.randn(1, 3, 8, 8))


def _run(graph: RuntimeGraph, asked: Rounds, **further: object) -> RoundsTaken:
    data = {"float": graph.proto.SerializeToString()}
    settings = {"on_progress": ignore_progress} | further
    return run_rounds(data, graph.example, asked, MACHINE, **settings)  # type: ignore[arg-type]


def test_all_rounds_are_run_while_times_do_not_settle(graph: RuntimeGraph) -> None:
    seen: list[Progress] = []
    asked = Rounds(rounds=7, together=3, warm_up=1, settled=0.0)
    taken = _run(graph, asked, on_progress=seen.append)
    assert taken.rounds == 7
    [seconds] = taken.graphs.values()
    assert set(seconds.work) == {op.number for op in graph.operations}
    assert {len(values) for values in (seconds.whole, *seconds.work.values())} == {7}
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total == 7


def test_two_sets_are_enough_once_times_have_settled(graph: RuntimeGraph) -> None:
    assert _run(graph, Rounds(rounds=60, together=3, settled=10.0)).rounds == 6


def test_without_time_the_fewest_rounds_are_run(graph: RuntimeGraph) -> None:
    asked = Rounds(rounds=60, together=4, settled=0.0, most_seconds=0.0)
    assert _run(graph, asked).rounds == FEWEST


def test_an_interrupted_run_goes_on_with_the_rounds_it_has(
    graph: RuntimeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Rounds(rounds=9, together=3, warm_up=1, settled=0.0)
    keep = rounds_file(tmp_path / "t.json")
    calls = itertools.count()

    def interrupted(progress: Progress) -> None:
        if progress.done >= 5 and next(calls) == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(graph, asked, keep=keep, on_progress=interrupted)
    kept = RoundsTaken.load(keep)
    assert kept.rounds == 3
    opened = []
    real = module.ProfiledSession
    monkeypatch.setattr(module, "ProfiledSession", lambda *a: opened.append(a) or real(*a))
    taken = _run(graph, asked, keep=keep, resume=True)
    assert taken.rounds == 9
    assert len(opened) == 2  # two more sets of the one graph
    assert taken.graphs["float"].part(slice(3)) == kept.graphs["float"]
    # Without --resume everything is measured anew.
    assert _run(graph, asked, keep=keep).graphs["float"].part(slice(3)) != kept.graphs["float"]


def test_rounds_of_another_model_or_machine_are_refused(
    graph: RuntimeGraph, tmp_path: Path
) -> None:
    keep = tmp_path / "t.rounds"
    few = Rounds(rounds=2, together=1)
    _run(graph, few, keep=keep)
    data = {"float": graph.proto.SerializeToString()}
    with pytest.raises(InputError, match="another model"):
        run_rounds(
            data,
            graph.example,
            few,
            {"processor": "another"},
            keep=keep,
            resume=True,
            on_progress=ignore_progress,
        )
    keep.write_text("{")
    with pytest.raises(InputError, match="delete it to start anew"):
        _run(graph, few, keep=keep, resume=True)


def test_an_outline_knows_operations_and_sizes_and_not_the_weights() -> None:
    def of(channels: int, seed: int, stride: int = 1) -> str:
        torch.manual_seed(seed)
        model = nn.Conv2d(3, channels, 3, stride=stride)
        found = runtime_graph(model, torch.randn(1, 3, 8, 8))
        return outline({"float": found.proto.SerializeToString()}, MACHINE, found.example.shape)

    assert of(4, seed=0) == of(4, seed=1)
    assert len({of(4, 0), of(5, 0), of(4, 0, stride=2)}) == 3
