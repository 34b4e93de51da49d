"""Running a model: evaluation mode that is undone, and the tensor that a loss is made of."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from mpsearch.errors import DataError, ModelError
from mpsearch.models.fields import FieldTensor, unpack_fields
from mpsearch.models.named import NamedModel
from mpsearch.models.run_limits import LimitedRun
from mpsearch.process_wide import SILENT_ERRORS, ProcessWide

__all__ = ["evaluation_mode", "first_output", "forward"]


class evaluation_mode:  # noqa: N801 - reads as a keyword: `with evaluation_mode(model):`
    """Context that puts every module in evaluation mode and restores each one's own mode."""

    def __init__(self, model: nn.Module) -> None:
        """Remember the model.

        Args:
            model: Its modules' training flags are restored on leaving.
        """
        self._training = {module: module.training for module in model.modules()}
        self._model = model

    def __enter__(self) -> nn.Module:
        """Switch to evaluation mode."""
        return self._model.eval()

    def __exit__(self, *_: object) -> None:
        """Restore each module's mode."""
        for module, training in self._training.items():
            module.training = training


def forward(model: nn.Module, inputs: Tensor, *, owned: bool = False) -> Tensor:
    """Run the model and find the tensor that a loss is computed from.

    Args:
        model: The model; where torch.compile was used it is run as it was written, so that hooks
            which came after the compilation are called.
        inputs: One batch; a FieldTensor is passed as the arguments that it names. The model gets
            a copy, which it may write to.
        owned: The inputs are a copy already that nobody else needs.

    Returns:
        The output itself, its `logits`, or the first tensor of a tuple or mapping.

    Raises:
        ModelError: The output holds no tensor.
        DataError: The model refuses inputs of this shape.
    """
    try:
        with _disable_current_modes():  # what observes the model sees one input, not two
            given = inputs if owned else inputs.clone()
        with _uncompiled():
            output: Any = (
                model(**unpack_fields(given)) if isinstance(given, FieldTensor) else model(given)
            )
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        shown = f"of shape {tuple(inputs.shape)} ({inputs.dtype})"
        if isinstance(inputs, FieldTensor):
            shown = "; ".join(map(str, inputs.fields))
        raise DataError(
            f"{type(model).__name__} does not accept inputs {shown}: {first_line}"
        ) from error
    found = getattr(output, "logits", output)
    if isinstance(found, Mapping):
        found = next((value for value in found.values() if isinstance(value, Tensor)), found)
    elif isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise ModelError(f"the model returns {type(output).__name__}; a tensor is needed")
    return found


_UNCOMPILED = ProcessWide(lambda: torch.compiler.set_stance("force_eager"))


def _uncompiled() -> AbstractContextManager[object]:
    """Context without torch.compile: code compiled before a hook was put on does not call it."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return nullcontext()
    return _UNCOMPILED


def first_output(named: NamedModel, inputs: Tensor, batch_size: int = 1) -> Tensor:
    """Run a model for the first time, under its limits if its graph came out of a file.

    Args:
        named: The model; run in evaluation mode without gradients.
        inputs: One input, `[1, ...]`.
        batch_size: How many inputs will run at once later.

    Returns:
        The output.

    Raises:
        DataError: A batch is expected to take more memory than allowed.
    """
    with torch.no_grad(), evaluation_mode(named.module) as module:
        if named.limits is None:
            return forward(module, inputs)
        # torch.fx prints a traceback of its generated code; the error says what there is to say.
        with SILENT_ERRORS, LimitedRun(named.limits, named.name) as run:
            output = forward(module, inputs)
    allowed = named.limits.memory
    if batch_size > 1 and run.peak * batch_size > allowed:
        raise DataError(
            f"one input takes up to {run.peak:,} bytes while {named.name} runs, so {batch_size} at "
            f"once may pass the {allowed:,} allowed; use batches of {allowed // run.peak}"
        )
    return output
