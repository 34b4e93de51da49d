"""What a search costs on paper: operations, bytes and shards, from the shapes of a model's layers.

The unit is one *forward pass*: two operations for every multiply-accumulate of the scored layers,
on all calibration data. `passes` says how many of them an estimator takes; the derivation of every
term is in docs/scaling.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch.sensitivity.shard_plan import Cell, cells

__all__ = [
    "DEEPSEEK_V3",
    "ESTIMATORS",
    "LLAMA_70B",
    "Linear",
    "ModelShape",
    "Task",
    "activation_bytes",
    "forwards",
    "pair_bytes",
    "passes",
    "plan",
    "total_passes",
    "worker_bytes",
]

ESTIMATORS = ("fisher_output", "ggn_trace", "hessian_trace", "measured_kl", "pairs_measured")

GRAPH = 3.0
"""Forward, and backward to inputs and weights, each as dear as the forward pass."""

PRODUCT = 6.0
"""The backward pass of that whole graph: twice what it took to make it."""

SHARED = 0.5
"""Part of a forward pass that a choice takes on average, when what lies before it is re-used."""

RECORDING = 3.0
"""Forward passes in which a shard of choices records what may be re-used."""


@dataclass(frozen=True)
class Linear:
    """Equal linear layers.

    Attributes:
        inputs: Width of the input.
        outputs: Width of the output.
        count: How many there are.
        share: Part of the tokens that one of them is multiplied with: 1, less for an expert, 0 for
            an embedding.
        bank: How many of them are one layer: the experts of a block are a single tensor.
    """

    inputs: int
    outputs: int
    count: int = 1
    share: float = 1.0
    bank: int = 1

    @property
    def weights(self) -> int:
        """Weights of all of them."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class ModelShape:
    """A language model as far as costs depend on it.

    Attributes:
        name: For tables.
        blocks: Transformer blocks.
        hidden: Width of the residual stream.
        heads: Attention heads.
        vocabulary: Tokens that the output tells apart.
        layers: Scored layers.
    """

    name: str
    blocks: int
    hidden: int
    heads: int
    vocabulary: int
    layers: tuple[Linear, ...]

    @property
    def weights(self) -> int:
        """Weights of the scored layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def active(self) -> float:
        """Multiply-accumulates of a token."""
        return sum(layer.weights * layer.share for layer in self.layers)

    @property
    def count(self) -> int:
        """Number of scored layers."""
        return sum(layer.count // layer.bank for layer in self.layers)


@dataclass(frozen=True)
class Task:
    """What is asked.

    Attributes:
        sequences: Calibration inputs, one a batch.
        tokens: Tokens in each.
        options: Options beside float.
        draws: Probes of the Hessian, or drawn gradients.
    """

    sequences: int
    tokens: int
    options: int
    draws: int


# meta-llama/Meta-Llama-3-70B, config.json: hidden 8192, 80 blocks, 64 heads, 8 of them for keys and
# values, intermediate 28672, vocabulary 128256 (Llama 3, arXiv 2407.21783, table 3).
LLAMA_70B = ModelShape(
    "70B dense (Llama 3)",
    80,
    8192,
    64,
    128_256,
    (
        Linear(8192, 8192, 160),  # queries, output
        Linear(8192, 1024, 160),  # keys, values
        Linear(8192, 28_672, 160),  # gate, up
        Linear(28_672, 8192, 80),  # down
        Linear(8192, 128_256),  # head
        Linear(128_256, 8192, share=0),  # embedding
    ),
)

# deepseek-ai/DeepSeek-V3, config.json: hidden 7168, 61 blocks of which 3 dense (18432 wide), 256
# experts 2048 wide of which 8 see a token, one shared expert, queries through 1536, keys and values
# through 512 + 64, 128 heads of 128 + 64 and 128 (arXiv 2412.19437, section 4.2).
DEEPSEEK_V3 = ModelShape(
    "671B mixture of experts (DeepSeek-V3)",
    61,
    7168,
    128,
    129_280,
    (
        Linear(7168, 1536, 61),
        Linear(1536, 128 * 192, 61),
        Linear(7168, 512 + 64, 61),
        Linear(512, 128 * 256, 61),
        Linear(128 * 128, 7168, 61),
        Linear(7168, 18_432, 6),
        Linear(18_432, 7168, 3),
        Linear(7168, 2048, 58 * 2),  # shared expert
        Linear(2048, 7168, 58),
        Linear(7168, 2048, 58 * 512, share=8 / 256, bank=512),  # gate and up are one tensor
        Linear(2048, 7168, 58 * 256, share=8 / 256, bank=256),
        Linear(7168, 129_280),
        Linear(129_280, 7168, share=0),
    ),
)


def forwards(shape: ModelShape, task: Task) -> float:
    """Count the operations of one forward pass over all data."""
    return 2.0 * shape.active * task.sequences * task.tokens


def passes(estimator: str, shape: ModelShape, task: Task, shards: int = 0) -> float:
    """Count what an estimator does, in forward passes over all data.

    Args:
        estimator: One of `ESTIMATORS`.
        shape: The model.
        task: What is asked.
        shards: Shards per sequence, each of which records a prefix of its own.

    Returns:
        Forward passes.
    """
    choices = shape.count * task.options
    if estimator == "fisher_output":
        # One backward pass to the layers' outputs; every option runs each layer once more.
        return 1.0 + 1.0 + task.options
    if estimator == "ggn_trace":
        return 1.0 + task.draws * (1.0 + _gram(shape, task.tokens))
    if estimator == "hessian_trace":
        return max(1, shards) * GRAPH + task.draws * PRODUCT
    if estimator == "measured_kl":
        return max(1, shards) * RECORDING + 1.0 + choices * SHARED
    if estimator == "pairs_measured":
        between = choices**2 / 2.0 * (1.0 - 1.0 / shape.count)
        return max(1, shards) * RECORDING + 1.0 + (choices + between) * SHARED
    raise ValueError(f"unknown estimator {estimator}")


def _gram(shape: ModelShape, tokens: int) -> float:
    """Part of a forward pass that squared gradient norms of single inputs take.

    The cheaper of the Gram form, `2 T² (in + out)` operations, and the gradient itself,
    `2 T in out`, for every layer and input of T positions.
    """
    spent = 0.0
    for layer in shape.layers:
        seen = tokens * layer.share
        gram = 2.0 * seen**2 * (layer.inputs + layer.outputs)
        spent += layer.count * min(gram, 2.0 * seen * layer.inputs * layer.outputs)
    return spent / (2.0 * tokens * shape.active)


def plan(estimator: str, shape: ModelShape, task: Task) -> tuple[list[Cell], int]:
    """Cut a measurement as `mpsearch.sensitivity` does.

    Args:
        estimator: One of `ESTIMATORS`.
        shape: The model.
        task: What is asked.

    Returns:
        The shards of one round, and the number of rounds, which wait for each other.
    """
    one = forwards(shape, task) / task.sequences
    if estimator == "hessian_trace":
        rounds = math.ceil(task.draws / 8)
        return cells(task.sequences, min(8, task.draws), PRODUCT * one, finest=4), rounds
    if estimator in {"measured_kl", "pairs_measured"}:
        choices = shape.count * task.options
        columns = choices + 1
        if estimator == "pairs_measured":
            columns += int(choices**2 / 2.0 * (1.0 - 1.0 / shape.count))
        return cells(task.sequences, columns, SHARED * one, finest=8), 1
    return cells(task.sequences, 1, passes(estimator, shape, task) * one), 1


def activation_bytes(shape: ModelShape, tokens: int, *, fused: bool, width: int = 2) -> float:
    """Estimate what a backward pass through one sequence keeps, without recomputation.

    `s h (34 + 5 a s / h)` bytes a block at 16 bits; the second term, of the attention matrix, is
    not kept by fused attention. Source: Korthikanti et al. 2022, arXiv 2205.05198, equation 1.
    """
    matrix = 0.0 if fused else 5.0 * shape.heads * tokens / shape.hidden
    block = tokens * shape.hidden * (34.0 + matrix) * width / 2.0
    logits = 2.0 * 4.0 * tokens * shape.vocabulary
    return shape.blocks * block + logits


def worker_bytes(estimator: str, shape: ModelShape, task: Task, width: int = 2) -> float:
    """Estimate the memory of one worker: weights and what one sequence keeps.

    Args:
        estimator: One of `ESTIMATORS`.
        shape: The model.
        task: What is asked.
        width: Bytes of a weight.

    Returns:
        Bytes.
    """
    weights = width * shape.weights
    if estimator in {"measured_kl", "pairs_measured"}:
        largest = max(layer.inputs * layer.outputs * layer.bank for layer in shape.layers)
        # A quantized copy of the layer, the recorded prefix (2 GiB), the float outputs to compare.
        return weights + width * largest + 2.0**31 + 2 * 4.0 * task.tokens * shape.vocabulary
    kept = activation_bytes(shape, task.tokens, fused=estimator != "hessian_trace", width=width)
    return weights + kept * (3.0 if estimator == "hessian_trace" else 1.0)


def pair_bytes(shape: ModelShape, task: Task, sequences: int = 1) -> float:
    """Count what `pairwise` keeps by default: the outputs of every single choice, in float32."""
    return 4.0 * shape.count * task.options * sequences * task.tokens * shape.vocabulary


def total_passes(
    estimator: str, shape: ModelShape, task: Task
) -> tuple[float, Sequence[Cell], int]:
    """Count passes with the recordings of every shard, beside the plan."""
    shards, rounds = plan(estimator, shape, task)
    per_sequence = math.ceil(len(shards) / task.sequences) * rounds
    return passes(estimator, shape, task, per_sequence), shards, rounds
