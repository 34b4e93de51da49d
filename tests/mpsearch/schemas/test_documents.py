from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpsearch.errors import DocumentError
from mpsearch.schemas import Costs, Profile
from mpsearch.schemas.document import write_atomically

finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(arrays(np.float64, (3, 2), elements=finite))
def test_numbers_survive_saving_bit_for_bit(loss: np.ndarray) -> None:
    profile = Profile.from_arrays(loss, stderr=np.abs(loss) / 2)
    again = Profile.parse(profile.model_dump_json(), "text")
    assert np.array_equal(again.loss, profile.loss)
    assert np.array_equal(again.stderr, profile.stderr)
    assert again.loss.dtype == np.float64


def test_cells_that_are_not_offered_are_null_in_json_and_nan_in_memory() -> None:
    allowed = np.array([[True, False]])
    profile = Profile.from_arrays([[1.0, np.nan]], stderr=[[0.0, np.nan]], allowed=allowed)
    text = profile.model_dump_json()
    assert json.loads(text)["loss"] == [[1.0, None]]
    again = Profile.parse(text, "text")
    assert np.isnan(again.loss[0, 1])
    assert again.offered.tolist() == [[True, False]]


def test_arrays_cannot_be_changed_behind_the_back() -> None:
    profile = Profile.from_arrays([[1.0]])
    with pytest.raises(ValueError, match="read-only"):
        profile.loss[0, 0] = 2.0


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"loss": [1.0, 2.0]}, "groups x options"),
        ({"loss": [[1.0, np.nan]]}, "g0.*o1.*nan"),
        ({"loss": [[1.0, np.inf]]}, "inf"),
        ({"loss": [[1.0]], "stderr": [[-1.0]]}, "negative"),
        ({"loss": [[1.0]], "stderr": [[0.0, 0.0]]}, "shape"),
        ({"loss": [[1.0], [2.0]], "groups": ["a", "a"]}, "repeated"),
        ({"loss": [[1.0, 2.0]], "options": ["x", "x"]}, "repeated"),
        ({"loss": [[1.0]], "groups": [""]}, "empty"),
        ({"loss": [[1.0]], "groups": ["a", "b"]}, "shape"),
        ({"loss": [[1.0]], "allowed": [[False]]}, "offered no option"),
        ({"loss": [[1.0]], "allowed": [[1.0]]}, "true and false"),
        ({"loss": np.zeros((0, 2))}, "at least 1"),
    ],
)
def test_broken_tables_are_refused_with_the_place(keywords: dict, words: str) -> None:
    with pytest.raises(DocumentError, match=words):
        Profile.from_arrays(**keywords)


def test_a_truncated_file_says_so_and_names_the_file(tmp_path) -> None:
    path = Profile.from_arrays([[1.0, 2.0]]).save(tmp_path / "profile.json")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DocumentError, match=r"profile\.json is not a valid profile"):
        Profile.load(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_still_valid_and_never_crash(data: st.DataObject) -> None:
    text = bytearray(Profile.from_arrays([[1.0, 2.0], [3.0, 4.0]]).model_dump_json().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(text) - 1))
        text[position] = data.draw(st.integers(0, 255))
    try:
        profile = Profile.parse(bytes(text), "damaged")
    except DocumentError:
        return
    assert np.isfinite(profile.loss[profile.offered]).all()


def test_costs_must_name_a_unit_for_every_resource() -> None:
    with pytest.raises(ValueError, match="units has no entry for 'latency'"):
        Costs(groups=["a"], options=["o"], values={"latency": [[1.0]]}, units={})


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def refuse(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
