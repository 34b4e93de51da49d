"""Named inputs, packed into one tensor and taken apart at the model's call."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.errors import DataError
from mpsearch.models.fields import FieldTensor, pack_fields, unpack_fields
from mpsearch.models.registry import as_data
from mpsearch.models.running import forward

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8]
TYPES += [torch.int8, torch.int16, torch.int32, torch.int64]


def _values(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * 1e3).to(dtype)
    high = 2 if dtype == torch.bool else min(torch.iinfo(dtype).max, 2**53)
    return torch.randint(high, shape, generator=generator).to(dtype)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5),
    declared=st.dictionaries(
        st.sampled_from(["input_ids", "mask", "pixels", "x"]),
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(1, 3), max_size=3)),
        min_size=1,
    ),
    seed=st.integers(0, 2**31),
)
def test_what_is_packed_comes_back_bit_for_bit_row_by_row(rows, declared, seed) -> None:
    tensors = {n: _values(t, (rows, *shape), seed) for n, (t, shape) in declared.items()}
    packed = pack_fields(tensors)
    picked = torch.randperm(rows)
    for part, chosen in (
        (packed, slice(None)),
        (packed[:1], slice(0, 1)),
        (packed[picked], picked),
        (torch.cat([packed[:1], packed[1:]]), slice(None)),
        (packed[:1].expand(2, *packed.shape[1:]).clone()[:1], slice(0, 1)),
        (copy.deepcopy(packed), slice(None)),
        (pickle.loads(pickle.dumps(packed)), slice(None)),
        (packed.to("cpu").detach(), slice(None)),
    ):
        found = unpack_fields(part)
        assert list(found) == list(tensors)
        for name, tensor in tensors.items():
            assert type(found[name]) is Tensor
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor[chosen])


def test_operations_that_mix_columns_give_plain_tensors() -> None:
    packed = pack_fields({"a": torch.ones(3, 2), "b": torch.ones(3)})
    for made in (packed.flatten(), packed.sum(), packed > 0, packed.T, packed[:, :1], -packed):
        assert type(made) is Tensor


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "one row per input"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, "'a': 2, 'b': 3"),
        ({"a": torch.tensor(1.0)}, "one row per input"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "complex"),
        ({"a": torch.tensor([2**60])}, r"at most 2\^53"),
    ],
)
def test_what_cannot_be_packed_is_refused(tensors, words) -> None:
    with pytest.raises(DataError, match=words):
        pack_fields(tensors)


class Masked(nn.Module):
    """Classifies tokens by the mean of their embeddings where a mask is set."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * weights).sum(1) / weights.sum(1))


def _batches(labels: bool = True) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(3):
        ids = torch.randint(20, (4, 6), generator=generator)
        mask = (torch.arange(6) < torch.randint(1, 7, (4, 1), generator=generator)).long()
        made.append({"input_ids": ids, "attention_mask": mask})
        if labels:
            made[-1]["labels"] = torch.randint(3, (4,), generator=generator)
    return made


def test_a_loader_of_mappings_is_data_with_its_labels_as_targets() -> None:
    data = as_data(_batches())
    assert isinstance(data.inputs, FieldTensor)
    assert (len(data), data.batch_size) == (12, 4)
    assert torch.equal(data.targets[4:8], _batches()[1]["labels"])
    model = Masked()
    wanted = model(_batches()[1]["input_ids"], _batches()[1]["attention_mask"])
    assert torch.equal(forward(model, data.inputs[4:8]), wanted)
    pairs = [(each, each.pop("labels")) for each in _batches()]
    assert as_data(pairs).fingerprint == data.fingerprint
    assert as_data(_batches(labels=False)[0]).targets is None


def test_renamed_inputs_are_other_data() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    assert as_data({"a": ids}).fingerprint != as_data({"b": ids}).fingerprint


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([{"x": torch.ones(2, 3)}, {"x": torch.ones(2, 4)}], "pad them to one length"),
        ([{"x": torch.ones(2, 3)}, {"y": torch.ones(2, 3)}], "different forms"),
        ([torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 3)], "pad them to one length"),
        ([{"x": torch.ones(2), "text": ["a", "b"]}], "'text' as list"),
        ([{"x": torch.ones(2), "label": torch.ones(2), "labels": torch.ones(2)}], "more than one"),
        ([{"labels": torch.ones(2)}], "one row per input"),
        ([(torch.ones(2), "a")], "a batch must be"),
        (3, "a batch must be"),
    ],
)
def test_batches_that_are_no_data_are_refused(batches, words) -> None:
    with pytest.raises(DataError, match=words):
        as_data(batches)


def test_a_model_that_lacks_an_input_says_which_ones_it_got() -> None:
    with pytest.raises(DataError, match=r"input_ids \[n, 6\] int64; attention_mask"):
        forward(nn.Linear(2, 2), as_data(_batches()).inputs)


@pytest.mark.parametrize("estimator", ["measured_loss", "hessian_trace", "fisher_output"])
def test_named_inputs_give_the_result_of_a_model_that_takes_one_tensor(estimator: str) -> None:
    """Token ids whose mask is all ones, against a model that needs no mask."""

    class Plain(Masked):
        def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(input_ids, torch.ones_like(input_ids))

    torch.manual_seed(2)
    named, plain = Masked(), Plain()
    plain.load_state_dict(named.state_dict())
    ids = torch.cat([each["input_ids"] for each in _batches()])
    labels = torch.cat([each["labels"] for each in _batches()])
    arguments = {"options": ["w2a8", "w4a8"], "budget": {"average_bits": "4"}, "seed": 0}
    wanted = mp.search(plain, (ids, labels), estimator=estimator, **arguments)
    fields = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    found = mp.search(named, fields, estimator=estimator, **arguments)
    assert found.layers == wanted.layers
    assert found.objective == wanted.objective
    assert found.verification.allocation == wanted.verification.allocation
    assert found.verification.baselines == wanted.verification.baselines


def test_files_name_the_arguments_of_the_model(tmp_path) -> None:
    batch = _batches()[0]
    held = _batches()[1]
    np.savez(
        tmp_path / "d.npz",
        **{f"inputs.{n}": batch[n].numpy() for n in ("input_ids", "attention_mask")},
        **{f"held_out_inputs.{n}": held[n].numpy() for n in ("input_ids", "attention_mask")},
        targets=batch["labels"].numpy(),
        held_out_targets=held["labels"].numpy(),
    )
    data = as_data(str(tmp_path / "d.npz"))
    assert torch.equal(unpack_fields(data.held_out_inputs)["input_ids"], held["input_ids"])
    assert forward(Masked(), data.inputs).shape == (4, 3)
