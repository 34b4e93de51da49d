"""Runs in ModelOpt's environment: applies an exported quant_cfg and prints what became of it."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch

from mpsearch.models.registry import as_data, as_model


def main() -> None:
    module = as_model(sys.argv[1]).module
    inputs = as_data(sys.argv[2]).inputs[:64]
    source = ast.parse(Path(sys.argv[3]).read_text())
    assigned = next(each for each in source.body if isinstance(each, ast.Assign))
    model = mtq.quantize(module, ast.literal_eval(assigned.value), lambda m: m(inputs))
    report = {}
    with torch.no_grad():
        model(inputs)
        for name, layer in model.named_modules():
            if not hasattr(layer, "weight_quantizer"):
                continue
            report[name] = {
                part: {
                    "on": quantizer.is_enabled,
                    "num_bits": quantizer.num_bits,
                    "axis": quantizer.axis,
                    "blocks": {str(k): v for k, v in (quantizer.block_sizes or {}).items()},
                    "amax": None if quantizer.amax is None else float(quantizer.amax.max()),
                }
                for part, quantizer in (
                    ("weight", layer.weight_quantizer),
                    ("input", layer.input_quantizer),
                )
            }
            values = layer.weight_quantizer(layer.weight).flatten(1)
            report[name]["levels"] = max(int(row.unique().numel()) for row in values)
            report[name]["sum"] = float(values.double().abs().sum())
    sys.stdout.write("\n" + json.dumps(report) + "\n")


main()
