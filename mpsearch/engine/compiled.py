"""Running compiled modules as they were written, for as long as hooks are on them.

torch.compile does not look at hooks when it decides whether code that it made before still holds
(`torch._dynamo.config.skip_nnmodule_hook_guards`), so a module that ran before its inputs are
rounded would go on without the rounding, and say nothing.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from torch import nn

__all__ = ["as_written"]


def as_written(model: nn.Module) -> ExitStack:
    """Take the compiled code off a model and its parts.

    Modules that `torch.compile(module)` or `module.compile()` made call their own `forward`. A
    function that was compiled apart from any module stays compiled: nothing tells that a module
    calls it.

    Args:
        model: The model.

    Returns:
        What puts the compiled code back; open until it is closed.
    """
    with ExitStack() as undo:
        if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing takes seconds
            return undo
        from torch._dynamo import OptimizedModule

        for module in model.modules():
            if module._compiled_call_impl is not None:
                undo.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
                module._compiled_call_impl = None
            if isinstance(module, OptimizedModule):
                undo.callback(setattr, module, "forward", module.forward)
                module.forward = module._orig_mod.__call__
        return undo.pop_all()
