from __future__ import annotations

import random
import re
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusal import MUTATIONS, check_cheap, never_hangs, refusal_of

from mpsearch.errors import InputError
from mpsearch.models.dataset import DataSet
from mpsearch.models.registry import as_model, check_fit
from mpsearch.models.run_limits import RunLimits
from mpsearch.models.specs import SpecPolicy

pytest.importorskip("onnx")
pytest.importorskip("onnx2torch")

import onnx_files
from onnx import helper


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory):
    """Load the packages before anything is measured."""
    path = tmp_path_factory.mktemp("good") / "good.onnx"
    path.write_bytes(onnx_files.small_model().SerializeToString())
    as_model(str(path))


@pytest.mark.parametrize("name", onnx_files.ATTACKS)
def test_a_crafted_file_is_refused_cheaply_and_without_a_trace(name: str, tmp_path) -> None:
    make, words = onnx_files.ATTACKS[name]
    path = tmp_path / "evil.onnx"
    make(path)
    refusal = refusal_of(lambda file: as_model(str(file)), path)
    check_cheap(refusal)
    assert re.search(words, refusal.words), refusal.words
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("quote", ['"', "'", "\n", "\\"])
def test_the_name_of_a_node_never_becomes_code(quote: str, tmp_path) -> None:
    canary = tmp_path / "canary"
    code = f"open({quote}{canary}{quote}, {quote}w{quote})".replace(".", "/")
    # "training" is there, so that evaluation would reach the code behind it.
    name = f"training{quote}), {code}, getattr(self, {quote}training"
    nodes = [helper.make_node("Relu", ["h"], ["y"], name=name)]
    path = tmp_path / "evil.onnx"
    path.write_bytes(onnx_files.small_model(nodes).SerializeToString())
    module = as_model(str(path)).module
    assert module(torch.ones(1, 3)).tolist() == [[6.0, 9.0]]
    assert all(re.fullmatch(r"[\w.]*", each) for each, _ in module.named_modules())
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["z=open('canary', 'w')", "z\n    import os", "self", "lambda", ""]
)
def test_the_name_of_an_input_never_becomes_code(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx_files.small_model()
    model.graph.input.append(helper.make_tensor_value_info(name, onnx_files.TensorProto.FLOAT, [1]))
    (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
    try:
        module = as_model("evil.onnx").module
    except InputError:
        module = None
    if module is not None:
        assert module(torch.ones(1, 3), torch.ones(1)).tolist() == [[6.0, 9.0]]
    assert not (tmp_path / "canary").exists()


def _mutated(good: bytes, seed: int) -> bytes:
    draw = random.Random(seed)
    content = bytearray(good)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(content))
        kind = draw.randrange(4)
        if kind == 0:
            content[place] = draw.randrange(256)
        elif kind == 1:
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del content[place : place + draw.randint(1, 6)]
        else:
            content[place:place] = content[draw.randrange(len(content)) :][: draw.randint(1, 30)]
        if not content:
            break
    return bytes(content)


GOOD = onnx_files.small_model().SerializeToString()


RUN = DataSet("ones", torch.ones(1, 3), batch_size=1)
POLICY = SpecPolicy(allow_paths=True, limits=RunLimits(2**28, 1e10, 10_000, 4.0))


@pytest.mark.slow
@settings(max_examples=MUTATIONS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.sampled_from([GOOD, onnx_files.small_network()]))
def test_a_mutated_file_is_refused_or_loads_finite_weights_and_runs(
    tmp_path_factory, seed: int, good: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.onnx"
    path.write_bytes(_mutated(good, seed))
    with never_hangs(), suppress(InputError):
        named = as_model(str(path), POLICY)
        assert all(torch.isfinite(t).all() for t in named.module.state_dict().values())
        check_fit(named, RUN)


def test_mutations_meet_both_refusal_and_acceptance(tmp_path) -> None:
    path = tmp_path / "mutated.onnx"
    verdicts = set()
    for seed in range(60):
        path.write_bytes(_mutated(GOOD, seed))
        try:
            as_model(str(path))
            verdicts.add("loaded")
        except InputError as error:
            verdicts.add(str(error).removeprefix(str(path))[:30])
    assert "loaded" in verdicts
    assert len(verdicts) > 4
