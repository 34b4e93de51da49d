"""Inputs of several named tensors, such as token ids with their mask, held as one tensor.

Everything between a data set and a model's call handles inputs as one tensor with the batch on
axis 0: it draws rows, cuts batches, hashes and moves them. Named inputs are therefore kept as one
matrix of a row per input, which knows its fields, and are taken apart at the call alone
(`mpsearch.models.running.forward`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpsearch.errors import DataError

__all__ = ["Field", "FieldTensor", "pack_fields", "unpack_fields"]

EXACT_IN_FLOAT32 = 2**24
EXACT_IN_FLOAT64 = 2**53
_KEEPS_ROWS = {
    "__getitem__",
    "cat",
    "clone",
    "contiguous",
    "cpu",
    "cuda",
    "detach",
    "expand",
    "index_select",
    "to",
}
"""Operations after which a column is still what it was, if as many are left."""


@dataclass(frozen=True)
class Field:
    """One named tensor.

    Attributes:
        name: The argument of the model's call that it is.
        shape: Shape without the batch axis.
        dtype: Type that the model gets it in.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        """Say it in words."""
        sizes = ", ".join(["n", *map(str, self.shape)])
        return f"{self.name} [{sizes}] {str(self.dtype).removeprefix('torch.')}"


class FieldTensor(Tensor):
    """Rows of several tensors side by side, `[n, values]`, float32 or float64.

    Whatever keeps whole rows (drawing, cutting, joining, moving) keeps the fields; every other
    operation gives a plain tensor.

    Attributes:
        fields: What the columns are.
    """

    fields: tuple[Field, ...] = ()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation, and let its result know the fields if it still has their columns."""
        result: Any = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if not isinstance(result, cls):
            return result
        first = args[0][0] if args and isinstance(args[0], (tuple, list)) else args[0]
        fields = first.fields if isinstance(first, cls) else ()
        width = sum(math.prod(field.shape) for field in fields)
        if func.__name__ in _KEEPS_ROWS and fields and result.shape[1:] == (width,):
            result.fields = fields
            return result
        return result.as_subclass(Tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> FieldTensor:
        """Copy the values; the fields are not changed ever."""
        copied = self.detach().clone()
        assert isinstance(copied, FieldTensor)
        memo[id(self)] = copied
        return copied


def pack_fields(tensors: Mapping[str, Tensor]) -> FieldTensor:
    """Put named tensors into one.

    Args:
        tensors: Argument of the model's call -> tensor `[n, ...]`, real.

    Returns:
        One row per input; float32 if that holds every value exactly, else float64.

    Raises:
        DataError: No tensors, another number of rows, or values that float64 does not hold.
    """
    rows = {name: len(each) if each.ndim else -1 for name, each in tensors.items()}
    if not rows or len(set(rows.values())) > 1 or -1 in rows.values():
        raise DataError(f"named inputs need one row per input each; they have {rows}")
    needed = torch.float32
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise DataError(f"input {name!r} is complex")
        if tensor.dtype == torch.float64:
            needed = torch.float64
        elif not tensor.is_floating_point() and tensor.dtype != torch.bool and tensor.numel():
            largest = max(abs(int(tensor.max())), abs(int(tensor.min())))
            if largest > EXACT_IN_FLOAT64:
                raise DataError(f"input {name!r} has the value {largest}; at most 2^53")
            if largest > EXACT_IN_FLOAT32:
                needed = torch.float64
    columns = [
        tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors.values()
    ]
    packed = torch.cat([each.to(needed) for each in columns], dim=1).as_subclass(FieldTensor)
    packed.fields = tuple(
        Field(name, tuple(each.shape[1:]), each.dtype) for name, each in tensors.items()
    )
    return packed


def unpack_fields(packed: FieldTensor) -> dict[str, Tensor]:
    """Take named tensors apart again.

    Args:
        packed: From `pack_fields`, or rows of it.

    Returns:
        Argument of the model's call -> plain tensor, as it was.
    """
    plain = packed.as_subclass(Tensor)
    sizes = [math.prod(field.shape) for field in packed.fields]
    parts = torch.split(plain, sizes, dim=1)
    return {
        field.name: part.reshape(len(plain), *field.shape).to(field.dtype)
        for field, part in zip(packed.fields, parts, strict=True)
    }
