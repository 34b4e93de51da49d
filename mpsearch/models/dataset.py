"""A data set in memory: what layers are scored on, and what the answer is verified on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import DataError
from mpsearch.models.fingerprint import tensor_bytes

__all__ = ["Batch", "DataSet"]

Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class DataSet:
    """Inputs with optional targets, in two parts that do not overlap.

    Attributes:
        name: How the data set is called in reports.
        inputs: Calibration inputs `[n, ...]`: layers are scored and ranges calibrated on these. A
            FieldTensor where the model takes several named tensors.
        targets: Their targets `[n, ...]`, or None.
        held_out_inputs: Inputs for verification `[m, ...]`, or None to verify on `inputs`.
        held_out_targets: Their targets, or None.
        batch_size: How many inputs one forward pass takes.
        notes: What whoever reads a profile made from it should know, such as that it is no data.
    """

    name: str
    inputs: Tensor
    targets: Tensor | None = None
    held_out_inputs: Tensor | None = None
    held_out_targets: Tensor | None = None
    batch_size: int = 256
    notes: tuple[str, ...] = ()
    _digest: list[str] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse data that cannot be used.

        Raises:
            DataError: No inputs, non-finite inputs, or another number of targets than of inputs.
        """
        if self.batch_size < 1:
            raise DataError(f"data {self.name!r}: batch size {self.batch_size} must be at least 1")
        _check_part(self.name, self.inputs, self.targets)
        if self.held_out_inputs is not None:
            _check_part(f"{self.name} (held out)", self.held_out_inputs, self.held_out_targets)

    def __len__(self) -> int:
        """Number of calibration inputs."""
        return len(self.inputs)

    def to(self, device: torch.device | str) -> DataSet:
        """Move the tensors to a device.

        Args:
            device: Where to.

        Returns:
            A data set there; this one if it is there already.
        """
        if self.inputs.device == torch.device(device):
            return self
        parts = {
            name: None if tensor is None else tensor.to(device)
            for name, tensor in (
                ("inputs", self.inputs),
                ("targets", self.targets),
                ("held_out_inputs", self.held_out_inputs),
                ("held_out_targets", self.held_out_targets),
            )
        }
        return replace(self, **parts)  # type: ignore[arg-type]

    def sample(self, count: int, seed: int = 0) -> DataSet:
        """Draw some of the calibration inputs, without repetition; the held-out part stays.

        Args:
            count: How many.
            seed: Seed of the draw; the same seed draws the same inputs on every machine.

        Returns:
            A data set of the inputs drawn, in their order; this one if it has no more than that.

        Raises:
            DataError: Fewer than one input is asked for.
        """
        if count < 1:
            raise DataError(f"data {self.name!r}: cannot draw {count} samples; at least 1")
        if count >= len(self):
            return self
        # RandomState's stream is frozen by numpy.
        drawn = np.sort(np.random.RandomState(seed).permutation(len(self))[:count])
        rows = torch.from_numpy(drawn).to(self.inputs.device)
        targets = None if self.targets is None else self.targets[rows]
        return replace(self, inputs=self.inputs[rows], targets=targets, _digest=[])

    @property
    def verifies_on_held_out(self) -> bool:
        """Whether verification sees inputs that no score was computed from."""
        return self.held_out_inputs is not None

    def batches(self, limit: int | None = None) -> Iterator[Batch]:
        """Go through the calibration part in order.

        Args:
            limit: Use only the first so many inputs.

        Yields:
            Inputs and targets of one batch.
        """
        yield from _batches(self.inputs[:limit], self.targets, self.batch_size)

    def verification_batches(self) -> Iterator[Batch]:
        """Go through the part for verification, or the calibration part if there is none.

        Yields:
            Inputs and targets of one batch.
        """
        if self.held_out_inputs is None:
            yield from self.batches()
        else:
            yield from _batches(self.held_out_inputs, self.held_out_targets, self.batch_size)

    @property
    def fingerprint(self) -> str:
        """Hash (sha256, hex) of the calibration part's shapes, types and values."""
        if not self._digest:
            digest = hashlib.sha256()
            for tensor in (self.inputs, self.targets):
                if tensor is not None:
                    names = getattr(tensor, "fields", ())
                    digest.update("".join(map(str, names)).encode())
                    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                    digest.update(tensor_bytes(tensor))
            self._digest.append(digest.hexdigest())
        return self._digest[0]


def _check_part(name: str, inputs: Tensor, targets: Tensor | None) -> None:
    if inputs.ndim == 0 or len(inputs) == 0:
        raise DataError(f"data {name!r} is empty: give at least one input")
    if inputs.is_floating_point() and not torch.isfinite(inputs).all():
        bad = int((~torch.isfinite(inputs)).sum())
        raise DataError(f"data {name!r} has {bad} values that are NaN or infinite")
    if targets is not None and len(targets) != len(inputs):
        raise DataError(f"data {name!r} has {len(inputs)} inputs but {len(targets)} targets")


def _batches(inputs: Tensor, targets: Tensor | None, size: int) -> Iterator[Batch]:
    for start in range(0, len(inputs), size):
        stop = min(start + size, len(inputs))
        yield inputs[start:stop], None if targets is None else targets[start:stop]
