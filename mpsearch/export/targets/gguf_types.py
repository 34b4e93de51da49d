"""GGUF: `--tensor-type` arguments of llama-quantize, for decoders with the usual names.

Tensor names: gguf-py of llama.cpp, "tensor_mapping". Types: the block formats of ggml; q8_0 is 32
bytes and one float16 scale.
"""

from __future__ import annotations

import re

from mpsearch.errors import InputError
from mpsearch.export.protocol import Request
from mpsearch.export.targets.naming import option_name
from mpsearch.formats import get

__all__ = ["parse", "render"]

_TYPES = {
    "int8_g32": "q8_0",
    "int5_g32": "q5_0",
    "int5_asym_g32": "q5_1",
    "int4_g32": "q4_0",
    "int4_asym_g32": "q4_1",
    "mxfp4": "mxfp4",
    "fp16": "f16",
    "bf16": "bf16",
    "float": "f32",
}
_WHOLE = {"model.embed_tokens": "token_embd", "lm_head": "output"}
_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_ARGUMENT = re.compile(r"--tensor-type '\^(.+)\\\.weight\$=(\w+)'")
_TENSOR = re.compile(r"blk\\\.(\d+)\\\.(\w+)")


def render(request: Request) -> str:
    """Write one argument per line, to be put on the command line of llama-quantize.

    Args:
        request: Layers of a decoder.

    Returns:
        The lines.

    Raises:
        InputError: Layers have names that llama.cpp's converter does not know.
    """
    unknown = [layer for layer in request.layers if _tensor(layer) is None]
    if unknown:
        raise InputError(
            f"gguf has no tensor for {len(unknown)} layers: {', '.join(unknown[:8])}"
            f"{', …' if len(unknown) > 8 else ''}; it knows {', '.join(_WHOLE)} and "
            f"model.layers.N. followed by {', '.join(_BLOCK)}"
        )
    lines = []
    for layer, option in request.layers.items():
        kind = next(t for name, t in _TYPES.items() if get(name) == option.weight)
        pattern = (_tensor(layer) or "").replace(".", r"\.")
        lines.append(f"--tensor-type '^{pattern}\\.weight$={kind}'")
    return "\n".join(lines) + "\n"


def parse(text: str) -> dict[str, str]:
    """Read layer -> option."""
    names = {kind: name for name, kind in _TYPES.items()}
    whole = {tensor: layer for layer, tensor in _WHOLE.items()}
    inside = {tensor: layer for layer, tensor in _BLOCK.items()}
    found = {}
    for line in filter(str.strip, text.splitlines()):
        argument = _ARGUMENT.fullmatch(line.strip())
        if argument is None:
            raise ValueError(f"{line!r} is no --tensor-type")
        block = _TENSOR.fullmatch(argument[1])
        layer = f"model.layers.{block[1]}.{inside[block[2]]}" if block else whole[argument[1]]
        found[layer] = option_name(names[argument[2]])
    return found


def _tensor(layer: str) -> str | None:
    match = _LAYER.fullmatch(layer)
    if match is None:
        return _WHOLE.get(layer)
    name = _BLOCK.get(match[2])
    return f"blk.{match[1]}.{name}" if name else None
