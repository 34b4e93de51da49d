"""Running a stranger's graph once under limits on memory, work and time.

A graph of a few hundred bytes may ask for any amount of memory or arithmetic. Before each operation
runs, its results are made on torch's meta device, which has shapes but no memory, and an operation
that would pass a limit is not run at all.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from mpsearch.errors import ModelError

__all__ = ["DEFAULT_RUN_LIMITS", "LimitedRun", "RunLimits"]


@dataclass(frozen=True)
class RunLimits:
    """What one input may cost when a model of a file runs.

    Attributes:
        memory: Most bytes of intermediate results that are held at the same time.
        operations: Most arithmetic operations of all calls together.
        calls: Most calls of operations.
        seconds: Longest time; looked at between operations.
    """

    memory: int = 16 * 2**30
    operations: float = 2e12
    calls: int = 1_000_000
    seconds: float = 300.0


DEFAULT_RUN_LIMITS = RunLimits()
SMALL_NUMBER = 2**20
"""Integers up to this are let through to operations whose results cannot be foreseen …"""
SMALL_INPUT = 2**26
"""… if no more values than this enter."""


class LimitedRun(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context in which no operation runs that would pass a limit.

    Attributes:
        peak: Most bytes of results that were held at the same time.
        operations: Arithmetic operations so far.
    """

    def __init__(self, limits: RunLimits, what: str) -> None:
        """Prepare.

        Args:
            limits: The limits.
            what: What runs, for messages.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.operations = 0.0
        self._limits = limits
        self._what = what
        self._calls = 0
        self._started = time.monotonic()
        self._held = 0
        self._users: dict[int, list[int]] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Foresee an operation, run it if it keeps the limits, and count what it left."""
        del types
        kwargs = kwargs or {}
        self._calls += 1
        name = _name(func)
        if self._calls > self._limits.calls:
            raise self._refusal(name, f"more than {self._limits.calls:,} operations")
        if time.monotonic() - self._started > self._limits.seconds:
            raise self._refusal(name, f"more than {self._limits.seconds:g} seconds")
        needed, work = _foreseen(func, args, kwargs) or self._unforeseen(name, (args, kwargs))
        if self._held + needed > self._limits.memory:
            raise self._refusal(
                name, f"{self._held + needed:,} bytes of memory, of {self._limits.memory:,} allowed"
            )
        self.operations += work
        if self.operations > self._limits.operations:
            raise self._refusal(
                name, f"{self.operations:.3g} operations, of {self._limits.operations:.3g} allowed"
            )
        output = func(*args, **kwargs)
        self._hold(_tensors(output), _tensors((args, kwargs)))
        return output

    def _refusal(self, name: str, needed: str) -> ModelError:
        return ModelError(
            f"{self._what} asks for {needed}, at its operation {name}; models of files run within "
            "limits (mpsearch.models.run_limits.RunLimits)"
        )

    def _unforeseen(self, name: str, entered: object) -> tuple[int, float]:
        """Let an operation run whose results nothing is known of, if what enters is small."""
        values = sum(each.numel() for each in _tensors(entered))
        numbers = map(abs, _integers(entered))
        if values > SMALL_INPUT or any(number > SMALL_NUMBER for number in numbers):
            raise ModelError(
                f"{self._what} asks for the operation {name}, whose cost cannot be foreseen, with "
                f"{values:,} values or numbers beyond {SMALL_NUMBER:,}"
            )
        return 0, float(values)

    def _hold(self, made: list[Tensor], entered: list[Tensor]) -> None:
        """Count the storages that came, until no tensor uses them any more."""
        before = {_key(each) for each in entered}
        for tensor in made:
            key = _key(tensor)
            if key not in self._users:
                if key in before:
                    continue  # the model's own weights, or its input
                size = tensor.untyped_storage().nbytes()
                self._users[key] = [0, size]
                self._held += size
                self.peak = max(self.peak, self._held)
            self._users[key][0] += 1
            weakref.finalize(tensor, self._let_go, key)

    def _let_go(self, key: int) -> None:
        users = self._users.get(key)
        if users is None:
            return
        users[0] -= 1
        if users[0] == 0:
            self._held -= self._users.pop(key)[1]


def _tensors(value: object) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, Tensor)]


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _foreseen(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, float] | None:  # noqa: ANN401
    """Foresee what an operation makes and does.

    Returns:
        Bytes of new results, and arithmetic operations; None where that depends on more than
        shapes.
    """
    by_data = _BY_DATA.get(_name(func))
    if by_data is not None:
        values = by_data(*args, **kwargs)
        return 8 * int(values), float(values)
    entered, named = tree_map(_as_meta, (args, dict(kwargs)))
    if any(each.name == "device" for each in func._schema.arguments):
        named["device"] = torch.device("meta")
    try:
        output = func(*entered, **named)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError):
        return None
    known = {_key(each) for each in _tensors((entered, named))}
    new = {_key(each): each.untyped_storage().nbytes() for each in _tensors(output)}
    size = sum(size for key, size in new.items() if key not in known)
    if new.keys() <= known and not func._schema.is_mutable:
        return 0, 0.0  # a view
    return size, _work(func, entered, named, output)


def _name(func: Any) -> str:  # noqa: ANN401
    name: str = func._schema.name
    return name.removeprefix("aten::")


def _as_meta(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _work(func: Any, args: Any, kwargs: dict[str, Any], output: Any) -> float:  # noqa: ANN401
    """Estimate arithmetic operations: exact for products, generous for what is worse than linear.

    Returns:
        The number.
    """
    name = _name(func)
    counted = flop_registry.get(func._overloadpacket)
    if counted is not None:
        return float(counted(*args, **kwargs, out_val=output))
    entered = [each for each in _tensors((args, kwargs)) if each.numel()]
    made = _tensors(output)
    values = float(sum(each.numel() for each in (*entered, *made)))
    if "scaled_dot_product" in name or "attention" in name:
        return 4.0 * int(args[0].numel()) * int(args[1].shape[-2])
    if "pool" in name and "adaptive" not in name:
        window = math.prod(args[1]) if len(args) > 1 and isinstance(args[1], list) else 1
        return values * max(1, window)
    if not func._schema.name.startswith("aten::"):  # such as the samples of torchvision's roi_align
        return values * max([1, *map(abs, _integers((args, kwargs)))]) ** 2
    if any(part in name for part in _WORSE_THAN_LINEAR):
        return values * max([1, *(size for each in entered for size in each.shape)])
    return values


_WORSE_THAN_LINEAR = (
    "cdist",
    "cholesky",
    "eig",
    "inverse",
    "linalg",
    "lu_",
    "matrix",
    "ormqr",
    "qr",
    "rnn",
    "solve",
    "svd",
)


def _integers(value: object) -> list[int]:
    return [each for each in tree_leaves(value) if type(each) is int]


def _bins(values: Tensor, weights: Tensor | None = None, minlength: int = 0) -> int:
    del weights
    return max(int(values.max()) + 1 if values.numel() else 0, minlength)


def _repeats(repeats: Tensor, *, output_size: int | None = None) -> float:
    del output_size
    return float(repeats.double().sum())


def _masked(values: Tensor, mask: Tensor) -> int:
    together: tuple[int, ...] = torch.broadcast_shapes(values.shape, mask.shape)  # type: ignore[no-untyped-call]
    return math.prod(together)


# The most values that can come out where that depends on values and not on shapes alone.
_BY_DATA: dict[str, Callable[..., float]] = {
    "_local_scalar_dense": lambda _: 1,
    "bincount": _bins,
    "histc": lambda values, bins=100, *_, **__: max(bins, values.numel()),
    "masked_select": _masked,
    "nonzero": lambda values: values.numel() * max(1, values.ndim),
    "repeat_interleave": _repeats,
}
