"""Runs with compressed-tensors: loads a checkpoint by transformers, prints schemes and outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file


def main() -> None:
    folder, inputs, outputs = map(Path, sys.argv[1:4])
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = load_file(inputs)["ids"]
    with torch.no_grad():
        hidden = model(ids, attention_mask=(ids != 0).long()).last_hidden_state
    save_file({"hidden": hidden.contiguous()}, outputs)
    report = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        scheme = getattr(layer, "quantization_scheme", None)
        report[name] = {"weights": None, "input_activations": None}
        if scheme is not None:
            for part in report[name]:
                args = getattr(scheme, part)
                if args is not None:
                    report[name][part] = args.model_dump(mode="json")
        rows = layer.weight.detach()
        report[name]["levels"] = max(int(row.unique().numel()) for row in rows)
    sys.stdout.write("\n" + json.dumps(report) + "\n")


main()
