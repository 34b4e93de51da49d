from __future__ import annotations

import random
import re

import pytest
import safetensors_files
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusal import MUTATIONS, check_cheap, never_hangs, refusal_of
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.models.safetensors_header import Limits, read_header
from mpsearch.models.weights_file import load_weights, read_tensors


@pytest.mark.parametrize("name", safetensors_files.ATTACKS)
def test_a_crafted_file_is_refused_cheaply_and_without_a_trace(name: str, tmp_path) -> None:
    make, words = safetensors_files.ATTACKS[name]
    path = tmp_path / "evil.safetensors"
    make(path)
    refusal = refusal_of(lambda file: load_weights(nn.Linear(1, 1), file), path)
    check_cheap(refusal)
    assert re.search(words, refusal.words)
    assert str(path) in refusal.words
    assert not (tmp_path / "canary").exists()


def test_the_canary_sings_when_it_is_unpickled(tmp_path) -> None:
    import pickle

    safetensors_files.pickled(tmp_path / "evil")
    pickle.loads((tmp_path / "evil").read_bytes())
    assert (tmp_path / "canary").exists()


def test_a_device_or_folder_is_no_weights_file(tmp_path) -> None:
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(ModelError, match="no regular file"):
            read_header(path)


def test_a_file_larger_than_allowed_is_refused(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"a": torch.zeros(100)}))
    with pytest.raises(ModelError, match="more than the 64 allowed"):
        read_header(path, Limits(file_bytes=64))


TYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 3), max_size=4), st.sampled_from(TYPES)),
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_the_library_writes_passes_every_check(tmp_path_factory, declared, metadata) -> None:
    tensors = {name: torch.zeros(shape).to(dtype) for name, (shape, dtype) in declared.items()}
    path = tmp_path_factory.mktemp("good") / "w.safetensors"
    path.write_bytes(save(tensors, metadata or None))
    header = read_header(path)
    assert header.metadata == metadata
    assert {n: e.shape for n, e in header.tensors.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    found = read_tensors(path)
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in tensors.items()}


GOOD = save({"weight": torch.ones(2, 3), "bias": torch.ones(2), "step": torch.tensor(3)})


def _mutated(seed: int) -> bytes:
    draw = random.Random(seed)
    content = bytearray(GOOD)
    for _ in range(draw.randint(1, 4)):
        reach = len(content) if draw.random() < 0.3 else min(len(content), 240)
        place = draw.randrange(reach)
        kind = draw.randrange(5)
        if kind == 0:
            content[place] = draw.randrange(256)
        elif kind == 1:
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del content[place : place + draw.randint(1, 8)]
        elif kind == 3:
            content[place:place] = draw.choice([b"9", b"[", b'"', b"{", b"-", b"0" * 30, b"}"])
        else:
            content[place:place] = content[draw.randrange(len(content)) :][: draw.randint(1, 40)]
    return bytes(content)


@pytest.mark.slow
@settings(max_examples=MUTATIONS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_a_mutated_file_is_refused_or_is_one_the_library_reads_the_same(
    tmp_path_factory, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(_mutated(seed))
    try:
        with never_hangs():
            header = read_header(path)
    except ModelError:
        return
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(header.tensors)
        for name, entry in header.tensors.items():
            assert tuple(file.get_slice(name).get_shape()) == entry.shape


def test_mutations_meet_both_refusal_and_acceptance(tmp_path) -> None:
    path = tmp_path / "mutated.safetensors"
    verdicts = set()
    for seed in range(200):
        path.write_bytes(_mutated(seed))
        try:
            read_header(path)
            verdicts.add("read")
        except ModelError as error:
            verdicts.add(str(error).rpartition("used: ")[2][:20])
    assert "read" in verdicts
    assert len(verdicts) > 10
