"""Real searches as jobs: the same answers as the library's, profiles used again, inputs refused."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.models.registry import as_data, as_model
from mpsearch.schemas import Frontier
from mpsearch.schemas.jobs import JobRequest
from mpsearch_api.execution.child import MADE
from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.local import LocalExecutor, Program
from mpsearch_api.execution.port import Assignment, Ended
from mpsearch_api.execution.runner import prepare, run_job
from mpsearch_api.store.port import Claim, Update

MENU = ["w2a8", "w4a8", "w8a8"]
GIB = 2**30


@pytest.fixture(scope="module")
def searches() -> Iterator[LocalExecutor]:
    executor = LocalExecutor(
        lambda each: Limits(each.memory, 300.0, cpus=each.claim.request.execution.cpus, niceness=0),
        Program(when_idle=()),
    )
    until = time.monotonic() + 300
    while executor.ready() is not None:
        assert time.monotonic() < until, executor.ready()
        time.sleep(0.1)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


Found = tuple[Ended, list[Update]]


@pytest.fixture
def search(searches: LocalExecutor, cache: Path, tmp_path: Path) -> Iterator[Callable[..., Found]]:
    runs = []

    def run(*, files=None, cache_dir=None, memory=2 * GIB, trusted=False, **fields) -> Found:
        request = {"model": "digits-resnet", "data": "digits", "options": MENU, "samples": 128}
        request |= {"verify": False} | fields
        if "goal" not in request:
            request.setdefault("budget", {"weight_memory": "0.12x"})
        asked = JobRequest(**request)
        folder = tmp_path / f"run{len(runs)}"
        folder.mkdir()
        assignment = Assignment(
            claim=Claim(f"job{len(runs)}", "t", 1, "w", asked),
            model=asked.model,
            data=asked.data,
            files=files or {},
            hardware=asked.hardware,
            folder=folder,
            cache=cache_dir or cache,
            memory=memory,
            trusted=trusted,
        )
        runs.append(searches.start(assignment))
        told: list[Update] = []
        until = time.monotonic() + 300
        while (ended := runs[-1].ended()) is None:
            assert time.monotonic() < until
            told += runs[-1].updates()
            time.sleep(0.01)
        return ended, told + runs[-1].updates()

    yield run
    for each in runs:
        each.kill()


def _file(ended: Ended, name: str) -> Path:
    assert ended.failure is None, ended.failure
    (found,) = [each for each in ended.produced if each.name == name]
    return found.path


def _cached(told: list[Update]) -> set[str]:
    return {each.stage for each in told if each.cached}


@pytest.mark.slow
def test_a_job_gives_the_library_s_own_answer(search) -> None:
    ended, told = search(verify=True)
    found = mp.Allocation.load(_file(ended, "allocation.json"))
    data = as_data("digits", samples=128, seed=0)
    wanted = mp.search("digits-resnet", data, MENU, {"weight_memory": "0.12x"})
    assert found.layers == wanted.layers
    assert found.status == wanted.status == "optimal"
    assert found.predicted_loss == pytest.approx(wanted.predicted_loss, abs=1e-6)
    assert found.verification.allocation.metric == wanted.verification.allocation.metric
    assert [each.name for each in ended.produced] == [
        *("allocation.json", "profile.json", "costs.json", "frontier.json", "report.html"),
        *("frontier.png", "bits.png", "layers.csv", "log.txt"),
    ]
    stages = list(dict.fromkeys(each.stage for each in told))
    assert stages == ["load", "price", "profile", "solve", "verify", "report"]
    figures = {name: value for each in told for name, value in each.data.items()}
    assert figures["groups"] == len(found.groups)
    assert figures["gap"] == found.gap
    assert figures["frontier_points"] == len(Frontier.load(_file(ended, "frontier.json")).points)
    assert figures["metric"] == found.verification.allocation.metric


def test_a_search_tells_what_it_does_from_within_any_process(tmp_path, monkeypatch) -> None:
    """The same function without processes around it; its second run scores nothing."""
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    prepare()
    request = JobRequest(
        model="digits-resnet",
        data="digits",
        options=["w4a8", "w8a8"],
        estimator="sqnr",
        hardware="nvidia-t4",
        samples=32,
        verify=False,
        budget={"weight_memory": "0.3x"},
    )
    claim = Claim("job", "t", 1, "w", request)
    stages = []
    for number in range(2):
        folder = tmp_path / str(number)
        (folder / MADE).mkdir(parents=True)
        told: list[Update] = []
        made = run_job(
            Assignment(
                claim=claim,
                model=request.model,
                data=request.data,
                files={},
                hardware="nvidia-t4",
                folder=folder,
                cache=tmp_path / "cache",
                memory=GIB,
            ),
            told.append,
        )
        assert {each.name for each in made} == {path.name for path in (folder / MADE).iterdir()}
        stages.append(_cached(told))
    assert stages == [set(), {"price", "profile"}]


@pytest.mark.slow
def test_a_second_budget_uses_the_profile_again(search, tmp_path) -> None:
    own = tmp_path / "cache"
    first, told = search(cache_dir=own)
    assert _cached(told) == set()
    second, told = search(cache_dir=own, budget={"weight_memory": "0.2x"})
    assert _cached(told) == {"price", "profile"}
    profile = _file(first, "profile.json")
    assert _file(second, "profile.json").read_bytes() == profile.read_bytes()
    wanted = mp.allocate(profile, _file(first, "costs.json"), {"weight_memory": "0.2x"})
    assert mp.Allocation.load(_file(second, "allocation.json")).layers == wanted.layers
    # Another tenant has another folder, and so starts anew.
    assert _cached(search(cache_dir=tmp_path / "other")[1]) == set()
    # What is broken is made again.
    for path in (own / "documents").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    third, told = search(cache_dir=own)
    assert _cached(told) == set()
    assert third.failure is None


@pytest.mark.slow
def test_a_memory_limit_reaches_the_scores_and_a_known_profile_serves_any_limit(
    search, tmp_path
) -> None:
    asked = {"cache_dir": tmp_path / "cache", "estimator": "fisher_output"}
    tight, told = search(**asked, memory_limit="1 kB")
    assert _cached(told) == set()
    assert any("the memory limit of" in text for text in _warnings(tight))
    assert _cached(search(**asked)[1]) == {"price", "profile"}


def _warnings(ended: Ended) -> list[str]:
    return mp.Profile.load(_file(ended, "profile.json")).warnings


@pytest.mark.slow
def test_uploaded_weights_are_loaded_by_name(search, tmp_path) -> None:
    from safetensors.torch import save_file

    state = as_model("digits-resnet").module.state_dict()
    state["fc.weight"] = state["fc.weight"] * 0.5
    save_file(state, tmp_path / "blob")
    ended, _ = search(
        model="digits-resnet@upload:mdl_1.safetensors",
        files={"mdl_1.safetensors": tmp_path / "blob"},
    )
    profile = mp.Profile.load(_file(ended, "profile.json"))
    bundled = mp.Profile.load(_file(search()[0], "profile.json"))
    assert profile.model.fingerprint != bundled.model.fingerprint
    assert profile.float_loss != bundled.float_loss
    assert profile.model.name == "digits-resnet@upload:mdl_1.safetensors"


@pytest.mark.slow
def test_the_smallest_within_a_drop_is_found(search) -> None:
    ended, _ = search(goal="min:weight_memory", max_drop=0.02, budget={})
    found = mp.Allocation.load(_file(ended, "allocation.json"))
    assert found.goal == "min:weight_memory"
    assert found.max_drop == 0.02


@pytest.mark.slow
def test_proposals_beside_the_predicted_best_are_measured(search) -> None:
    asked = {"options": ["w2", "w3", "w4", "w8"], "budget": {"average_bits": 3}}
    ended, _ = search(**asked, estimator="variance", refine=8)
    found = mp.Allocation.load(_file(ended, "allocation.json")).refinement
    assert found.loss_before - found.loss_after > found.standard_error
    ended, _ = search(**asked, estimator="variance")  # the profile is known, refining is not asked
    assert mp.Allocation.load(_file(ended, "allocation.json")).refinement is None


@pytest.mark.slow
def test_fixed_skipped_and_grouped_layers_hold(search) -> None:
    ended, _ = search(fix={"fc": "w8a8"}, skip=["conv1"], budget={"weight_memory": "0.2x"})
    found = mp.Allocation.load(_file(ended, "allocation.json"))
    assert found.layers["fc"] == "w8a8"
    assert "conv1" not in found.layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"model": "no-such-model"}, "bad_input", "unknown model"),
        ({"model": "digits-resnet@/etc/x.safetensors"}, "bad_input", "not allowed"),
        ({"model": "os:getcwd"}, "bad_input", "not allowed"),
        ({"model": "/etc/x.onnx"}, "bad_input", "not allowed"),
        ({"data": "/etc/x.npz"}, "bad_input", "not allowed"),
        ({"data": "os:getcwd"}, "bad_input", "not allowed"),
        ({"hardware": "/etc/hostname"}, "bad_input", "unknown hardware"),
        ({"options": ["w4a8", "w4a8"]}, "bad_input", "the same"),
        ({"options": ["x1y2"]}, "bad_input", "x1y2"),
        ({"estimator": "no-such"}, "bad_input", "unknown estimator"),
        ({"settings": {"seed": 3}}, "bad_input", "no setting 'seed'"),
        ({"settings": {"colour": 3}}, "bad_input", "colour"),
        ({"skip": ["no.such.layer"]}, "bad_input", "matches no layer"),
        ({"budget": {"weight_memory": "-1"}}, "bad_input", "greater than zero"),
        ({"budget": {"charm": "1"}}, "bad_input", "charm"),
        ({"solver": {"method": "magic"}}, "bad_input", "magic"),
        ({"budget": {"weight_memory": "100 B"}}, "infeasible", "least achievable"),
        ({"goal": "max:fun", "max_drop": 0.1}, "bad_input", "min:RESOURCE"),
        ({"loss": "fun"}, "bad_input", "unknown loss"),
        ({"memory": 64 * 2**20}, "memory", "64 MiB"),
    ],
)
def test_what_cannot_be_done_is_said(search, fields, kind, said) -> None:
    failure = search(**fields)[0].failure
    assert failure is not None
    assert (failure.kind, said in failure.message) == (kind, True), failure
    if kind == "infeasible":
        assert failure.minimum["weight_memory"] > 100


class _Outside(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attributes) -> None:
        if tag in {"script", "link", "iframe", "object", "embed", "base", "form"}:
            self.found.append((tag, ""))
        for name, value in attributes:
            fetches = name in {"src", "href", "srcset", "action", "data"}
            if name.startswith("on") or (fetches and not value.startswith("data:image/png")):
                self.found.append((tag, f"{name}={value}"))


@pytest.mark.slow
def test_report_and_table_say_what_the_allocation_says(search) -> None:
    ended, _ = search(budget={"weight_memory": "0.2x"}, verify=True)
    found = mp.Allocation.load(_file(ended, "allocation.json"))
    page = _file(ended, "report.html").read_text()
    outside = _Outside()
    outside.feed(page)
    assert outside.found == []
    assert not re.search(r"url\(|@import", page)
    for layer in found.layers:
        assert f"<td>{layer}</td>" in page
    assert page.count("data:image/png;base64,") == 2
    rows = list(csv.DictReader(io.StringIO(_file(ended, "layers.csv").read_text())))
    assert {row["layer"]: row["option"] for row in rows} == found.layers
    memory = sum(float(row["group_weight_memory_B"]) for row in rows)
    assert memory == pytest.approx(found.costs["weight_memory"])
    png = _file(ended, "frontier.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    profile = json.loads(_file(ended, "profile.json").read_text())
    assert np.array(profile["loss"]).shape == (len(found.groups), len(MENU))
