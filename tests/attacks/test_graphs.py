from __future__ import annotations

import re

import pytest
import torch
from refusal import check_cheap, refusal_of

import mpsearch as mp
from mpsearch.errors import InputError
from mpsearch.models.dataset import DataSet
from mpsearch.models.registry import as_data, as_model, check_fit
from mpsearch.models.run_limits import RunLimits
from mpsearch.models.specs import LOCAL, SpecPolicy

pytest.importorskip("onnx")
pytest.importorskip("onnx2torch")

import graph_files

TIGHT = SpecPolicy(allow_paths=True, trusted=True, limits=RunLimits(memory=2**26, operations=2e10))
DATA = DataSet("zeros", torch.zeros(2, 3), batch_size=1)
FORESEEN = r"bytes of memory, of|operations, of|cannot be foreseen"


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    """Run one graph under limits, so that nothing is imported while memory is measured."""
    path = tmp_path_factory.mktemp("warm") / "small.onnx"
    graph_files.tiled(path)
    with pytest.raises(InputError):
        check_fit(as_model(str(path)), DATA)


@pytest.mark.parametrize("name", graph_files.ATTACKS)
def test_a_graph_that_would_take_everything_never_runs(name: str, tmp_path) -> None:
    make, suffix = graph_files.ATTACKS[name]
    path = tmp_path / f"evil{suffix}"
    make(path)
    refusal = refusal_of(lambda file: check_fit(as_model(str(file), TIGHT), DATA), path)
    check_cheap(refusal)
    assert re.search(FORESEEN, refusal.words), refusal.words


def test_no_way_into_the_library_runs_it_without_limits(tmp_path) -> None:
    path = tmp_path / "evil.onnx"
    graph_files.constant_of_400_gigabytes(path)
    named = as_model(str(path), LOCAL)
    for way in (
        lambda: mp.profile(str(path), DATA),
        lambda: mp.price(str(path), DATA),
        lambda: mp.search(str(path), DATA, budget={"average_bits": 4}),
        lambda: mp.search(named, DATA, budget={"average_bits": 4}),
        lambda: as_data("synthetic?count=1", model=named),
    ):
        with pytest.raises(InputError, match=FORESEEN):
            way()
