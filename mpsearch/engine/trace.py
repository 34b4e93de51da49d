"""What happens in one forward pass: which calls, in what order, reading and writing what.

Time is counted in events: the start and the end of every call and every tensor operation. A call
of a module can be replaced by its recorded output when nothing else depends on its having run:
it wrote to no memory that existed before it, it received nothing but tensors and plain values,
and it left no trace in its module. Operations are observed below autograd, where fused kernels,
functional uses of a weight and views are all visible as accesses to a storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpsearch.engine.patching import flatten, interposable, interposed
from mpsearch.models.inputs import is_own_hook
from mpsearch.models.running import forward

__all__ = ["Trace", "TracedCall", "trace"]

_Lifetime = tuple[int, int]  # address of a storage, and the event in which it was made


@dataclass
class TracedCall:
    """One call of a module.

    Attributes:
        module: Name of the module.
        start: Event in which it started.
        end: Event in which it ended.
        depth: Number of calls around it.
        calls: Number of calls inside it, itself included.
        repeatable: Whether its output can stand for it.
        rewritten: Whether its output was written to after it had returned.
        aliased: Whether its output shares memory with its inputs, with weights, or within itself.
        size: Bytes that keeping its output keeps alive.
        seconds: How long it took.
    """

    module: str
    start: int
    depth: int
    end: int = -1
    calls: int = 1
    repeatable: bool = True
    rewritten: bool = False
    aliased: bool = False
    size: int = 0
    seconds: float = 0.0


@dataclass
class Trace:
    """One forward pass.

    Attributes:
        calls: All calls of modules, in order of their start.
        first_read: Parameter -> event in which an operation first received it.
        first_start: Module -> event in which its first call started.
        obstacles: Why no output of this model can stand for a call; empty where it can.
    """

    calls: list[TracedCall] = field(default_factory=list)
    first_read: dict[str, int] = field(default_factory=dict)
    first_start: dict[str, int] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)


def trace(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Trace]:
    """Run the model once and note what happens.

    Args:
        model: The model, in evaluation mode; run where gradients are off.
        inputs: One batch.

    Returns:
        The output and the trace.
    """
    tracer = _Tracer(model)
    before = _attributes(model)
    with tracer, interposed(interposable(model).items(), tracer.call):
        output = forward(model, inputs)
    found = tracer.finished()
    changed = [name for name, state in _attributes(model).items() if before.get(name) != state]
    if changed:
        found.obstacles.append(f"running the model changes attributes of {', '.join(changed[:3])}")
    return output, found


def _attributes(model: nn.Module) -> dict[str, dict[str, tuple[int, int]]]:
    """What every module's attributes are, and how long the containers among them are."""
    return {
        name or "the model": {
            key: (id(value), len(value) if isinstance(value, (list, dict, set)) else 0)
            for key, value in (vars(module) | module._buffers).items()
            if key != "forward"
        }
        for name, module in model.named_modules()
    }


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = Trace()
        self._clock = 0
        self._open: list[TracedCall] = []
        self._hooked = {name for name, module in model.named_modules() if _foreign_hooks(module)}
        self._born: dict[int, int] = {}
        self._returned_by: dict[_Lifetime, list[TracedCall]] = {}
        self._parameters: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter.numel():
                self._parameters.setdefault(_address(parameter), []).append(name)
        self._buffers = {
            _address(buffer): name for name, buffer in model.named_buffers() if buffer.numel()
        }

    def finished(self) -> Trace:
        """Return what was noted."""
        for call in self._trace.calls:
            # Whoever writes to an output that is also something else's memory writes to both.
            if call.aliased and call.rewritten:
                call.repeatable = False
        return self._trace

    def call(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        """Note a call around running it."""
        self._clock += 1
        call = TracedCall(name, self._clock, len(self._open))
        self._trace.first_start.setdefault(name, self._clock)
        number = len(self._trace.calls)
        if name in self._hooked:  # hooks run around a call that is answered, not inside one
            for around in self._open:
                around.repeatable = False
        self._trace.calls.append(call)
        received: list[Tensor] = []
        call.repeatable = flatten((args, kwargs), received)
        shape = _structure((args, kwargs))
        self._open.append(call)
        started = time.perf_counter()
        output = function(*args, **kwargs)
        call.seconds = time.perf_counter() - started
        self._open.pop()
        self._clock += 1
        call.end = self._clock
        call.calls = len(self._trace.calls) - number
        if _structure((args, kwargs)) != shape:
            call.repeatable = False
        self._note_output(call, output, received)
        return output

    def _note_output(self, call: TracedCall, output: object, received: list[Tensor]) -> None:
        returned: list[Tensor] = []
        if not flatten(output, returned):
            call.repeatable = False
        # A view keeps all of its storage alive.
        call.size = sum({_address(tensor): _held(tensor) for tensor in returned}.values())
        addresses = [_address(tensor) for tensor in returned]
        known = {_address(t) for t in received} | self._parameters.keys() | self._buffers.keys()
        call.aliased = len(set(addresses)) < len(addresses) or bool(known.intersection(addresses))
        for address in addresses:
            self._returned_by.setdefault(self._lifetime(address), []).append(call)

    def _lifetime(self, address: int) -> _Lifetime:
        return address, self._born.get(address, 0)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        del types
        self._clock += 1
        given = kwargs or {}
        received = {_address(tensor) for tensor in _tensors((args, given))}
        for address in received & self._parameters.keys():
            for name in self._parameters[address]:
                self._trace.first_read.setdefault(name, self._clock)
        if func._schema.is_mutable:
            self._note_writes(func, args, given)
        output = func(*args, **given)
        for tensor in _tensors(output):
            if _address(tensor) not in received:
                self._born[_address(tensor)] = self._clock
        return output

    def _note_writes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            for tensor in _tensors(value):
                self._note_write(_address(tensor))

    def _note_write(self, address: int) -> None:
        if address in self._parameters or address in self._buffers:
            names = [*self._parameters.get(address, ()), self._buffers.get(address, "")]
            self._trace.obstacles.append(f"running the model writes to {names[0] or names[-1]}")
        lifetime = self._lifetime(address)
        for call in self._returned_by.get(lifetime, ()):
            call.rewritten = True
        for call in self._open:
            if call.start > lifetime[1]:
                call.repeatable = False


def _address(tensor: Tensor) -> int:
    """Address of the storage; 0 for tensors without any, which are all taken for one."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _held(tensor: Tensor) -> int:
    if tensor.layout != torch.strided:
        return tensor.numel() * tensor.element_size()
    return tensor.untyped_storage().nbytes()


def _foreign_hooks(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not is_own_hook(hook) for hook in hooks)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _structure(value: object) -> object:
    """What tells that a container was changed: which objects it holds, all the way down."""
    if isinstance(value, (tuple, list)):
        return tuple([_structure(part) for part in value])
    if isinstance(value, dict):
        return tuple([(key, _structure(part)) for key, part in value.items()])
    return id(value)
