"""Score ResNet-18 once, by fisher_output or by ModelOpt's gradient search, in a fresh process.

Run by sensitivity.py: `sensitivity_modelopt.py ours|modelopt THREADS`. Prints one line of JSON:
processor seconds, MiB by which the peak of resident memory grew, and scores by layer and option. It
imports mpsearch only for `ours`, so that it runs in an environment that has only ModelOpt and
torchvision.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BITS = [2, 3, 4, 6, 8]


def workload() -> tuple[nn.Module, Tensor, Tensor]:
    """Make the network and its data, the same as in sensitivity.py."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    return model, torch.randn(64, 3, 64, 64), torch.randint(0, 1000, (64,))


def resident() -> float:
    """Peak resident memory of this program, MiB; getrusage counts its parent too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def by_mpsearch(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, dict[str, float]]:
    """Score by fisher_output."""
    import mpsearch as mp

    data = mp.DataSet("noise", inputs, targets, batch_size=len(inputs))
    found = mp.profile(model, data, [f"w{bits}" for bits in BITS], "fisher_output")
    return {
        group: {str(bits): float(value) for bits, value in zip(BITS, row, strict=True)}
        for group, row in zip(found.groups, found.loss, strict=True)
    }


def by_modelopt(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, dict[str, float]]:
    """Score by ModelOpt's auto_quantize, method gradient."""
    import modelopt.torch.quantization as mtq

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
    model.requires_grad_(True)
    _, state = mtq.auto_quantize(
        model,
        constraints={"effective_bits": 5.0},
        quantization_formats=formats,
        data_loader=[(inputs, targets)],
        forward_step=lambda net, batch: net(batch[0]),
        loss_func=lambda output, batch: nn.functional.cross_entropy(output, batch[1]),
        num_calib_steps=1,
        num_score_steps=1,
        disabled_layers=[],
    )
    return {name: _by_bits(entry) for name, entry in _candidates(state)}


def _candidates(state: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (entry["module_names"][0], entry)
        for entry in state["candidate_stats"].values()
        if entry["module_names"]
    ]


def _by_bits(entry: dict[str, Any]) -> dict[str, float]:
    """Formats are listed by rising cost; the last one is no quantization."""
    order = sorted(zip(entry["costs"], entry["scores"], strict=True))
    return {str(bits): float(score) for bits, (_, score) in zip(BITS, order, strict=False)}


def main() -> None:
    """Score once and print."""
    torch.set_num_threads(int(sys.argv[2]))
    model, inputs, targets = workload()
    scorer = by_mpsearch if sys.argv[1] == "ours" else by_modelopt
    if sys.argv[1] == "ours":
        import mpsearch.pipeline  # noqa: F401
        import mpsearch.sensitivity.fisher_output  # noqa: F401 - imports are not timed
    else:
        import modelopt.torch.quantization  # noqa: F401
    before = resident()
    started = time.process_time()
    scores = scorer(model, inputs, targets)
    seconds = time.process_time() - started
    print(json.dumps({"seconds": seconds, "mib": resident() - before, "scores": scores}))


if __name__ == "__main__":
    main()
