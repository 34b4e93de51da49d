"""Runs in AutoRound's environment: quantizes a small decoder with an exported layer_config."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import transformers
from auto_round import AutoRound


def main() -> None:
    folder, file = map(Path, sys.argv[1:3])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    layer_config = json.loads(file.read_text())
    rounding = AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        layer_config=layer_config,
        iters=0,  # round to nearest: nothing is tuned
        disable_opt_rtn=True,
        device_map="cpu",
    )
    quantized, settled = rounding.quantize()
    fields = ("bits", "group_size", "sym", "data_type", "act_bits", "act_sym", "act_data_type")
    report = {}
    for name in layer_config:
        layer = quantized.get_submodule(name)
        weight = getattr(layer, "orig_layer", layer).weight
        report[name] = {
            **{field: settled[name].get(field) for field in fields},
            "attribute_bits": getattr(getattr(layer, "orig_layer", layer), "bits", None),
            "levels": max(int(row.unique().numel()) for row in weight),
        }
    sys.stdout.write("\n" + json.dumps(report) + "\n")


main()
