"""Runs in llm-compressor's environment: applies an exported recipe to a small decoder."""

from __future__ import annotations

import json
import sys

import torch
import transformers
from llmcompressor import oneshot


def main() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
    oneshot(model=model, recipe=sys.argv[2])
    report = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        scheme = getattr(layer, "quantization_scheme", None)
        report[name] = None if scheme is None else scheme.weights.model_dump(mode="json")
    sys.stdout.write("\n" + json.dumps(report) + "\n")


main()
