"""Hessian-vector products over retained graphs, and probes of the Hessian's diagonal blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch.errors import DependencyError, InputError
from mpsearch.formats import Format
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.progress import Progress
from mpsearch.sensitivity.gradient import differentiated, layer_weights
from mpsearch.sensitivity.protocol import ScoringTask
from mpsearch.sensitivity.taps import frozen, own_use, watch_inputs

__all__ = [
    "ProbeRound",
    "hessian_vector_products",
    "pyhessian_products",
    "pyhessian_round",
    "rademacher",
    "taped_round",
    "twice_differentiable",
]


@dataclass(frozen=True)
class ProbeRound:
    """Samples of z_i . (Hz)_i over the whole data.

    Attributes:
        weights: For every layer's weight, probes x layers.
        activations: For every layer's input, of one input's own loss averaged over the data;
            probes x layers, zeros where activations stay in float.
        input_sizes: Elements of every layer's input, per input of the model.
        input_errors: (layer, format) -> mean over the data of ||Q(A) - A||².
        float_loss: Loss of the unquantized model.
    """

    weights: NDArray[np.float64]
    activations: NDArray[np.float64]
    input_sizes: NDArray[np.float64]
    input_errors: dict[tuple[str, Format], float]
    float_loss: float


def taped_round(task: ScoringTask, numbers: range, inputs: bool) -> ProbeRound:
    """Probe with one graph per batch that serves all probes and layers.

    Args:
        task: Model, layers, options, data.
        numbers: Numbers of the probes; each is the same vector in every run with the same seed.
        inputs: Whether layer inputs are probed, too.

    Returns:
        The samples.
    """
    weights = layer_weights(task.model, task.layers)
    watch = _Inputs(task)
    on_weights = np.zeros((len(numbers), len(weights)))
    on_inputs = np.zeros_like(on_weights)
    total = len(numbers) * math.ceil(len(task.data) / task.data.batch_size)
    done, losses = 0, []
    with (
        ExitStack() as hooks,
        frozen(task.model),
        differentiated(weights),
        evaluation_mode(task.model),
        twice_differentiable(),
    ):
        if inputs:
            hooks.enter_context(watch_inputs(task, watch.watch, differentiated=True))
        for batch, (values, target) in enumerate(task.data.batches()):
            watch.restart()
            loss = task.loss(forward(task.model, values), target)
            share = len(values) / len(task.data)
            losses.append(share * float(loss.detach()))
            variables = [*weights, *(tensor for _, tensor in watch.seen)]
            probes = (
                [
                    *rademacher(weights, (task.seed, number)),
                    *rademacher((t for _, t in watch.seen), (task.seed, number, batch + 1)),
                ]
                for number in numbers
            )
            products = hessian_vector_products(loss, variables, probes, len(numbers))
            for row, (probe, product) in enumerate(products):
                dots = [
                    float(torch.sum(z * hz, dtype=torch.float64))
                    for z, hz in zip(probe, product, strict=True)
                ]
                on_weights[row] += share * np.array(dots[: len(weights)])
                # The batch's Hessian is block diagonal, each input's own divided by their number.
                for (column, _), dot in zip(watch.seen, dots[len(weights) :], strict=True):
                    on_inputs[row, column] += share * dot
                done += 1
                task.on_progress(Progress("profile", done, total, "Hessian-vector products"))
    return ProbeRound(on_weights, on_inputs, watch.sizes, watch.errors(), math.fsum(losses))


def hessian_vector_products(
    loss: Tensor, variables: Sequence[Tensor], vectors: Iterable[Sequence[Tensor]], count: int
) -> Iterator[tuple[Sequence[Tensor], list[Tensor]]]:
    """Multiply the Hessian of a loss with vectors, over one retained graph.

    Args:
        loss: A scalar with a graph.
        variables: Tensors that the Hessian is taken in, jointly.
        vectors: Vectors, each a sequence of tensors shaped like the variables.
        count: How many vectors there are; the graph is freed with the last.

    Yields:
        Each vector with H·v, as a list shaped like the variables; zeros where the gradient does
        not depend on a variable.
    """
    curved: list[tuple[Tensor, int]] = []
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, variables, create_graph=True, allow_unused=True)
        curved = [
            (gradient, index)
            for index, gradient in enumerate(gradients)
            if gradient is not None and gradient.requires_grad
        ]
    for number, vector in enumerate(vectors):
        products: Sequence[Tensor | None] = [None] * len(variables)
        if curved:
            products = torch.autograd.grad(
                [gradient for gradient, _ in curved],
                variables,
                grad_outputs=[vector[index] for _, index in curved],
                retain_graph=number < count - 1,
                allow_unused=True,
            )
        yield (
            vector,
            [
                torch.zeros_like(variable) if product is None else product
                for variable, product in zip(variables, products, strict=True)
            ],
        )


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Keep attention from fused kernels, whose backward pass cannot be differentiated again.

    Yields:
        Nothing.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


def rademacher(tensors: Iterable[Tensor], seed: Sequence[int]) -> Iterator[Tensor]:
    """Draw independent signs, the same on every device.

    Args:
        tensors: Tensors whose shapes, types and devices are taken.
        seed: Numbers that name the draw.

    Yields:
        Tensors of +1 and -1.
    """
    generator = np.random.default_rng(seed)
    for tensor in tensors:
        bits = np.unpackbits(np.frombuffer(generator.bytes(-(-tensor.numel() // 8)), np.uint8))
        signs = torch.from_numpy(bits[: tensor.numel()]).to(tensor.device, tensor.dtype)
        yield signs.mul_(2).sub_(1).view(tensor.shape)


class _Inputs:
    """Makes layer inputs variables of the graph, and measures what formats do to them."""

    def __init__(self, task: ScoringTask) -> None:
        self.seen: list[tuple[int, Tensor]] = []
        self.sizes = np.zeros(len(task.layers))
        self._task = task
        self._squares: dict[tuple[str, Format], float] = {}

    def restart(self) -> None:
        self.seen.clear()

    def errors(self) -> dict[tuple[str, Format], float]:
        return {key: total / len(self._task.data) for key, total in self._squares.items()}

    def watch(self, row: int, inputs: Tensor, axis: int) -> Tensor:
        watched = own_use(inputs)
        self.seen.append((row, watched))
        # An expert may see more or fewer rows than the batch has inputs.
        self.sizes[row] += watched.numel() / len(self._task.data)
        name, values = self._task.layers[row].name, watched.detach()
        for fmt in self._task.activation_formats:
            moved = self._task.quantizer.activation(name, fmt)(values, axis) - values
            earlier = self._squares.get((name, fmt), 0.0)
            self._squares[name, fmt] = earlier + float(moved.double().square().sum())
        return watched


def pyhessian_round(task: ScoringTask, numbers: range, inputs: bool) -> ProbeRound:
    """Probe by PyHessian 0.1, one pass over the data for every product.

    Args:
        task: Model, layers, options, data with targets.
        numbers: Numbers of the probes.
        inputs: Whether layer inputs are probed, too.

    Returns:
        The samples, equal to those of `taped_round` up to rounding; no activations.

    Raises:
        InputError: Inputs are to be probed, which PyHessian cannot look at.
    """
    if inputs:
        raise InputError(
            "engine='pyhessian' multiplies by the Hessian in weights only; offer options without "
            "activation formats and leave out activations=True, or use the default engine"
        )
    weights = layer_weights(task.model, task.layers)
    losses = [
        (len(x) / len(task.data)) * float(task.loss(forward(task.model, x), y).detach())
        for x, y in task.data.batches()
    ]
    samples = np.zeros((len(numbers), len(weights)))
    with pyhessian_products(task, weights) as multiply:
        for row, number in enumerate(numbers):
            probe = list(rademacher(weights, (task.seed, number)))
            samples[row] = [
                float(torch.sum(z * hz, dtype=torch.float64))
                for z, hz in zip(probe, multiply(probe), strict=True)
            ]
            task.on_progress(
                Progress("profile", row + 1, len(numbers), "Hessian-vector products (PyHessian)")
            )
    nothing = np.zeros(len(weights))
    return ProbeRound(samples, np.zeros_like(samples), nothing, {}, math.fsum(losses))


@contextmanager
def pyhessian_products(
    task: ScoringTask, weights: Sequence[Tensor]
) -> Iterator[Callable[[Sequence[Tensor]], list[Tensor]]]:
    """Multiply the Hessian in some weights by PyHessian 0.1, one pass over the data per product.

    Args:
        task: Model and data.
        weights: The weights; all other parameters are out of its sight.

    Yields:
        Vector to product, both shaped like the weights.

    Raises:
        DependencyError: PyHessian is not installed.
    """
    try:
        from pyhessian import hessian
    except ImportError as error:
        raise DependencyError(
            "engine='pyhessian' needs PyHessian, which is not installed; "
            "run: pip install 'mpsearch[torch]'"
        ) from error
    others = [p for p in task.model.parameters() if not any(p is weight for weight in weights)]
    with (
        differentiated(weights),
        evaluation_mode(task.model),
        _untouched(others),
        twice_differentiable(),
    ):
        on_gpu = weights[0].device.type == "cuda"
        reference = hessian(
            _Forwarded(task.model), task.loss, dataloader=list(task.data.batches()), cuda=on_gpu
        )
        order = [id(p) for p in task.model.parameters() if p.requires_grad]

        def multiply(vector: Sequence[Tensor]) -> list[Tensor]:
            by_id = {id(w): v for w, v in zip(weights, vector, strict=True)}
            _, products = reference.dataloader_hv_product([by_id[key] for key in order])
            found = dict(zip(order, products, strict=True))
            return [found[id(w)].detach() for w in weights]

        yield multiply


class _Forwarded(nn.Module):
    """Returns the tensor that the loss reads, as PyHessian expects of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return forward(self.model, inputs)


class _untouched:  # noqa: N801 - reads as a keyword
    """Keeps parameters out of PyHessian's sight, and clears the gradients it leaves behind."""

    def __init__(self, others: list[nn.Parameter]) -> None:
        self._flags = [(parameter, parameter.requires_grad) for parameter in others]

    def __enter__(self) -> None:
        for parameter, _ in self._flags:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
