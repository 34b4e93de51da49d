"""The targets of an export by name, with what each can express; imports no torch and no target."""

from __future__ import annotations

from mpsearch.errors import UnknownNameError
from mpsearch.export.language import FLOAT, Pair, Words
from mpsearch.export.protocol import Target

__all__ = ["find_target", "known_targets"]

_HOME = "mpsearch.export.targets"
_LINEAR = frozenset({"linear"})
_CONVOLUTIONS = frozenset(f"conv{way}{n}d" for way in ("", "transpose") for n in (1, 2, 3))
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))
_OWN_SCALES = (
    "scales are fitted by the tool's own rule, not by the one that mpsearch verified; bits, grid "
    "and granularity are those asked for"
)
_DYNAMIC = "scales of activations are taken per token at run time, not from calibrated ranges"

_STORED = (
    Pair(FLOAT),
    Pair(Words((2, 3, 4, 5, 6, 7, 8), sharing=("channel", "tensor", "group"))),
    Pair(
        Words((4, 8), sharing=("channel", "tensor", "group")),
        Words((8,), (8,), sharing=("channel", "tensor")),
    ),
    Pair(
        Words(minifloats=("fp8_e4m3",), sharing=("channel", "tensor")),
        Words(minifloats=("fp8_e4m3",), sharing=("channel", "tensor"), whole=True),
    ),
)
_COMPRESSED = (*_STORED, Pair(Words((), (4, 8), sharing=("channel", "group"))))
_COMPRESSED_OFFERS = (
    *("float", "w8a8", "w4a8", "w8", "w4", "w3", "w2", "int4_g128", "int4_asym_g128", "int8_g128"),
    *("w:int8/a:int8_asym", "w:fp8_e4m3/a:fp8_e4m3", "fp8_e4m3"),
)
_COMPRESSED_CANNOT = (
    "layers other than linear ones",
    "different options for projections that vLLM fuses (q/k/v, gate/up)",
    "MX and NVFP4 blocks, codebooks, clipped ranges",
)

_TARGETS = (
    Target(
        "json",
        "plain JSON",
        "layer -> weight and activation format, bits and scales spelled out",
        (),
        f"{_HOME}.tables_json",
        None,
        ("float", "w8a8", "w4a8"),
    ),
    Target(
        "csv",
        "plain CSV",
        "one line per layer: option, formats, bits, granularity",
        (),
        f"{_HOME}.tables_csv",
        None,
        ("float", "w8a8", "w4a8"),
        suffix=".csv",
        media_type="text/csv",
    ),
    Target(
        "onnxruntime",
        "ONNX Runtime",
        "ONNX QDQ model: weights stored in their formats, inputs quantized with calibrated ranges",
        ("onnxruntime>=1.20",),
        f"{_HOME}.onnx_file",
        (
            Pair(
                Words(
                    (2, 4, 8, 16),
                    (2, 4, 8, 16),
                    ("fp8_e4m3", "fp8_e5m2"),
                    ("fp16", "bf16"),
                    ("channel", "tensor", "group"),
                    clips=True,
                    whole=True,
                ),
                Words(
                    (4, 8, 16),
                    (4, 8, 16),
                    ("fp8_e4m3", "fp8_e5m2"),
                    ("fp16", "bf16"),
                    ("channel", "tensor"),
                    clips=True,
                    whole=True,
                ),
            ),
        ),
        (
            *("float", "w8a8", "w4a8", "w2a8", "w8", "w4", "w2", "int4_g32", "int4_asym_g32"),
            *("w:int8/a:int8_asym", "w:fp8_e4m3/a:fp8_e4m3", "w:fp16/a:fp16", "w:bf16/a:bf16"),
            *("w16a16", "w:int16/a:int16"),
        ),
        kinds=_CONVOLUTIONS | {"linear", "embedding", "attention"},
        needs_model=True,
        suffix=".onnx",
        media_type="application/octet-stream",
        cannot=(
            "3, 5, 6, 7 bits: ONNX has no tensor type for them",
            "block formats for activations, FP6, FP4, MX, codebooks",
            "recurrent layers and banks of experts",
            "activations of an attention's output projection",
        ),
        notes=(
            "fused integer kernels on x86 processors without VNNI saturate at 16 bits; set "
            "session.x64quantprecision=1 there (ONNX Runtime documentation, quantization)",
        ),
        requires=("torch", "onnx", "onnxscript"),
    ),
    Target(
        "tensorrt",
        "NVIDIA TensorRT",
        "folder: Q/DQ ONNX model, layer precisions as flags of trtexec",
        ("tensorrt",),
        f"{_HOME}.tensorrt_folder",
        (
            Pair(FLOAT),
            Pair(Words((8,), sharing=("channel", "tensor"), clips=True), Words((8,), clips=True)),
            Pair(
                Words(minifloats=("fp8_e4m3",), sharing=("channel", "tensor")),
                Words(minifloats=("fp8_e4m3",), sharing=("channel", "tensor")),
            ),
            Pair(Words((4,), sharing=("group",), groups=(64, 128), clips=True)),
            Pair(Words(exact=("fp16",)), Words(exact=("fp16",))),
            Pair(Words(exact=("bf16",)), Words(exact=("bf16",))),
        ),
        (
            "float",
            "w8a8",
            "int4_g128",
            "int4_g64",
            "w:fp8_e4m3/a:fp8_e4m3",
            "w:fp16/a:fp16",
            "w:bf16/a:bf16",
        ),
        kinds=_CONVOLUTIONS | {"linear"},
        needs_model=True,
        folder=True,
        suffix="",
        media_type="application/zip",
        cannot=(
            "zero points: TensorRT's integers are symmetric",
            "4-bit activations, 4-bit convolutions, 2, 3, 5, 6, 7 bits",
        ),
        notes=("not run here: TensorRT needs an NVIDIA GPU",),
        requires=("torch", "onnx", "onnxscript"),
    ),
    Target(
        "torchao",
        "PyTorch torchao",
        "FqnToConfig as JSON, for torchao.core.config.config_from_dict and quantize_",
        ("torchao>=0.15",),
        f"{_HOME}.torchao_config",
        (
            Pair(FLOAT),
            Pair(Words((2, 3, 4, 5, 6, 7, 8), (2, 3, 4, 5, 6, 7, 8), sharing=("channel", "group"))),
            Pair(Words((8,), sharing=("tensor",))),
            Pair(Words((8,), sharing=("channel", "tensor")), Words((8,), (8,))),
            Pair(
                Words((2, 3, 4, 5, 6, 7), sharing=("channel", "group")),
                Words((), (8,)),
            ),
            Pair(Words(minifloats=("fp8_e4m3",), sharing=("channel", "tensor"))),
        ),
        (
            *("float", "w8a8", "w8", "w6", "w4", "w3", "w2", "int4_g32", "int4_asym_g32"),
            *("int4_g128", "w:int8/a:int8_asym", "w:int4_g32/a:int8_asym", "w:int4/a:int8_asym"),
            *("fp8_e4m3",),
        ),
        kinds=_LINEAR,
        cannot=(
            "convolutions and embeddings: its int8 tensors run in linear layers only",
            "symmetric 8-bit activations with weights below 8 bits (they have a zero point there)",
            "static ranges: a scale is a tensor, which its JSON does not hold",
            "MX, NVFP4 and codebook formats, clipped ranges",
        ),
        notes=(_OWN_SCALES, _DYNAMIC),
    ),
    Target(
        "modelopt",
        "NVIDIA ModelOpt",
        "quant_cfg as a Python literal, for modelopt.torch.quantization.quantize",
        ("nvidia-modelopt>=0.40",),
        f"{_HOME}.modelopt_config",
        (
            Pair(
                Words(
                    tuple(range(2, 9)),
                    minifloats=("fp8_e4m3",),
                    exact=("mxfp4", "mxfp8", "nvfp4"),
                    sharing=("channel", "tensor", "group"),
                    whole=True,
                ),
                Words(
                    tuple(range(2, 9)),
                    minifloats=("fp8_e4m3",),
                    exact=("mxfp4", "mxfp8", "nvfp4"),
                    sharing=("channel", "tensor"),
                    whole=True,
                ),
            ),
        ),
        (
            *("float", "w8a8", "w4a8", "w6a8", "w3a8", "w2a8", "w4a4", "w8", "w4", "int4_g128"),
            *("w:fp8_e4m3/a:fp8_e4m3", "w:mxfp4/a:mxfp4", "w:nvfp4/a:nvfp4", "w:mxfp8/a:mxfp8"),
        ),
        kinds=_CONVOLUTIONS | _LINEAR,
        suffix=".py",
        media_type="text/x-python",
        cannot=("zero points", "FP6, codebooks, 16-bit formats", "clipped ranges"),
        notes=("ranges of activations are calibrated again by its forward loop",),
    ),
    Target(
        "auto-round",
        "Intel AutoRound",
        "layer_config as JSON, for AutoRound(model, layer_config=…)",
        ("auto-round>=0.9",),
        f"{_HOME}.auto_round_config",
        (
            Pair(FLOAT),
            Pair(
                Words(
                    tuple(range(2, 9)),
                    tuple(range(2, 8)),
                    sharing=("channel", "group"),
                ),
                Words((4, 8), (4, 8), whole=True),
            ),
            Pair(Words(exact=("mxfp4", "mxfp8")), Words(exact=("mxfp4", "mxfp8"), whole=True)),
            Pair(Words(exact=("nvfp4",)), Words(exact=("nvfp4",), whole=True)),
            Pair(
                Words(minifloats=("fp8_e4m3",), sharing=("channel", "tensor")),
                Words(minifloats=("fp8_e4m3",), whole=True),
            ),
        ),
        (
            *("float", "w8a8", "w4a8", "w8", "w4", "w3", "w2", "int4_g128", "int4_asym_g128"),
            *("int2_g64", "w:mxfp4/a:mxfp4", "w:nvfp4/a:nvfp4", "w:fp8_e4m3/a:fp8_e4m3"),
        ),
        kinds=_LINEAR,
        cannot=(
            "convolutions",
            "8-bit weights with a zero point",
            "codebooks, FP6, 16-bit formats, clipped ranges",
            "layers whose sides are no multiples of 32: AutoRound leaves them at 16 bits",
        ),
        notes=(_OWN_SCALES, _DYNAMIC),
    ),
    Target(
        "compressed-tensors",
        "compressed-tensors checkpoint (vLLM, transformers)",
        "folder: model.safetensors with codes and scales, config.json with config_groups",
        ("compressed-tensors>=0.15", "transformers or vLLM"),
        f"{_HOME}.compressed_checkpoint",
        _STORED,
        tuple(each for each in _COMPRESSED_OFFERS if each != "int4_asym_g128"),
        kinds=_LINEAR,
        fused=_FUSED,
        needs_model=True,
        folder=True,
        suffix="",
        media_type="application/zip",
        cannot=(
            *_COMPRESSED_CANNOT,
            "models that are not of transformers, whose config.json it needs",
            "weights with a zero point: transformers 5.23 does not load them packed",
        ),
        requires=("torch", "safetensors", "transformers"),
    ),
    Target(
        "llm-compressor",
        "llm-compressor recipe",
        "recipe with config_groups, for llmcompressor.oneshot(recipe=…)",
        ("llmcompressor>=0.8",),
        f"{_HOME}.llm_compressor_recipe",
        _COMPRESSED,
        _COMPRESSED_OFFERS,
        kinds=_LINEAR,
        fused=_FUSED,
        suffix=".yaml",
        media_type="application/yaml",
        cannot=_COMPRESSED_CANNOT,
        notes=(_OWN_SCALES,),
    ),
    Target(
        "huggingface",
        "Hugging Face quantization_config",
        "the quantization_config of a config.json, in the form of compressed-tensors",
        ("transformers", "compressed-tensors>=0.15"),
        f"{_HOME}.hugging_face_config",
        _COMPRESSED,
        _COMPRESSED_OFFERS,
        kinds=_LINEAR,
        fused=_FUSED,
        cannot=_COMPRESSED_CANNOT,
        notes=(_OWN_SCALES,),
    ),
    Target(
        "gguf",
        "GGUF (llama.cpp)",
        "arguments of llama-quantize: one --tensor-type for every layer",
        ("llama.cpp",),
        f"{_HOME}.gguf_types",
        (
            Pair(
                Words(
                    exact=(
                        *("int8_g32", "int5_g32", "int5_asym_g32", "int4_g32", "int4_asym_g32"),
                        *("mxfp4", "fp16", "bf16"),
                    ),
                    sharing=(),
                    whole=True,
                )
            ),
        ),
        (
            *("float", "int8_g32", "int5_g32", "int5_asym_g32", "int4_g32", "int4_asym_g32"),
            *("mxfp4", "fp16", "bf16"),
        ),
        kinds=frozenset({"linear", "embedding"}),
        suffix=".txt",
        media_type="text/plain",
        cannot=(
            "formats of activations: its kernels choose them",
            "scales per channel or tensor, groups other than 32",
            "K- and IQ-quants, which mpsearch has no format for",
            "layers that are not of a Llama-like decoder (model.layers.N.self_attn.q_proj …)",
        ),
        notes=(
            "q4_0 and q5_0 use one code more on the negative side and take the scale from the "
            "largest magnitude with its sign, so values differ from int4_g32 and int5_g32",
        ),
    ),
    Target(
        "hawq",
        "HAWQ",
        "bit_config as a Python literal, for HAWQ's quantized ResNets",
        ("HAWQ (source)",),
        f"{_HOME}.hawq_bits",
        (Pair(Words(tuple(range(2, 9))), Words(tuple(range(2, 9)))),),
        ("w8a8", "w4a8", "w6a8", "w4a4", "w3a8", "w2a8"),
        kinds=frozenset({"conv2d", "linear"}),
        suffix=".py",
        media_type="text/x-python",
        cannot=(
            "float layers, zero points, groups, floating-point grids",
            "models other than ResNets with torchvision's names",
            "different activations for a block's first convolution and its shortcut: one tensor",
        ),
        notes=("not run here: HAWQ does not install from a registry",),
    ),
)

_ALIASES = {
    "onnx": "onnxruntime",
    "onnx-qdq": "onnxruntime",
    "ort": "onnxruntime",
    "autoround": "auto-round",
    "nvidia-modelopt": "modelopt",
    "llmcompressor": "llm-compressor",
    "vllm": "compressed-tensors",
    "hf": "huggingface",
    "hugging-face": "huggingface",
    "llama.cpp": "gguf",
    "trt": "tensorrt",
}


def known_targets() -> tuple[Target, ...]:
    """List the targets.

    Returns:
        Every target.
    """
    return _TARGETS


def find_target(name: str) -> Target:
    """Find a target.

    Args:
        name: Its name; case does not matter, nor whether words are joined by `-` or `_`.

    Returns:
        The target.

    Raises:
        UnknownNameError: There is none of this name.
    """
    plain = name.strip().lower().replace("_", "-")
    plain = _ALIASES.get(plain, plain)
    for target in _TARGETS:
        if target.name == plain:
            return target
    raise UnknownNameError("export target", name, [target.name for target in _TARGETS])
