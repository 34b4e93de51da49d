"""Allocate bits to EfficientNet-Lite0 by ModelOpt's gradient search, in an environment with it.

    python sensitivity_photos_modelopt.py THREADS BITS…

Prints one line of JSON: for every budget of average bits, with and without the candidate that
leaves a layer unquantized at 16 bits (which ModelOpt adds unless told otherwise), the processor
seconds of the whole search and the option of every layer.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from sensitivity_photos import efficientnet_lite0, plain_convolutions, views
from torch import nn

BITS = [2, 3, 4, 6, 8]


def allocate(budget: float, leave_float: bool) -> dict[str, Any]:
    """Score and solve once."""
    import modelopt.torch.quantization as mtq

    model = plain_convolutions(efficientnet_lite0())
    inputs, targets = views(0.875)
    formats = [
        {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            ],
            "algorithm": "max",
        }
        for bits in BITS
    ]
    spaces = [
        {
            "module_name_patterns": ["*"],
            "quantization_formats": formats,
            "allow_no_quant": leave_float,
        }
    ]
    model.requires_grad_(True)
    started = time.process_time()
    _, state = mtq.auto_quantize(
        model,
        constraints={"effective_bits": budget},
        quantization_formats=formats,
        module_search_spaces=spaces,
        data_loader=[(inputs, targets)],
        forward_step=lambda net, batch: net(batch[0]),
        loss_func=lambda output, batch: nn.functional.cross_entropy(output, batch[1]),
        num_calib_steps=1,
        num_score_steps=1,
        disabled_layers=[],
    )
    seconds = time.process_time() - started
    found = {
        _own_name(name): _option(recipe)
        for group, recipe in state["best"]["recipe"].items()
        for name in state["candidate_stats"][group]["module_names"]
    }
    return {"budget": budget, "float": leave_float, "seconds": seconds, "layers": found}


def _own_name(name: str) -> str:
    """Take off what `plain_convolutions` put between a module and its convolution."""
    return name.removesuffix(".convolution")


def _option(recipe: Any) -> str:  # noqa: ANN401 - a class of ModelOpt's
    return "float" if recipe.num_bits == 16 else f"w{recipe.num_bits}"


def main() -> None:
    """Search at every budget with both menus and print."""
    torch.set_num_threads(int(sys.argv[1]))
    import modelopt.torch.quantization  # noqa: F401 - imports are not timed

    found = [
        allocate(float(budget), leave_float)
        for budget in sys.argv[2:]
        for leave_float in (True, False)
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
