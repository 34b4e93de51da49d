"""Hessian-vector products over retained graphs, by autograd or by PyHessian."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch.errors import DependencyError
from mpsearch.models.layers import evaluation_mode, forward
from mpsearch.process_wide import ProcessWide
from mpsearch.sensitivity.differentiation import differentiated
from mpsearch.sensitivity.protocol import ScoringTask

__all__ = [
    "GradientGraph",
    "hessian_vector_products",
    "pyhessian_products",
    "rademacher",
    "twice_differentiable",
]


class GradientGraph:
    """The gradient of a loss with a graph of its own, which serves any number of products."""

    def __init__(self, loss: Tensor, variables: Sequence[Tensor]) -> None:
        """Differentiate once.

        Args:
            loss: A scalar with a graph.
            variables: Tensors that the Hessian is taken in, jointly.
        """
        self._variables = list(variables)
        self._curved: list[tuple[Tensor, int]] = []
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, variables, create_graph=True, allow_unused=True)
            self._curved = [
                (gradient, index)
                for index, gradient in enumerate(gradients)
                if gradient is not None and gradient.requires_grad
            ]

    def product(self, vector: Sequence[Tensor], *, keep: bool = True) -> list[Tensor]:
        """Multiply the Hessian with a vector.

        Args:
            vector: Tensors shaped like the variables.
            keep: Whether another product will follow; the graph is freed otherwise.

        Returns:
            Tensors shaped like the variables; zeros where the gradient does not depend on one.
        """
        products: Sequence[Tensor | None] = [None] * len(self._variables)
        if self._curved:
            products = torch.autograd.grad(
                [gradient for gradient, _ in self._curved],
                self._variables,
                grad_outputs=[vector[index] for _, index in self._curved],
                retain_graph=keep,
                allow_unused=True,
            )
        return [
            torch.zeros_like(variable) if product is None else product
            for variable, product in zip(self._variables, products, strict=True)
        ]


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
    graph = GradientGraph(loss, variables)
    for number, vector in enumerate(vectors):
        yield vector, graph.product(vector, keep=number < count - 1)


_UNFUSED = ProcessWide(lambda: sdpa_kernel(SDPBackend.MATH))


def twice_differentiable() -> AbstractContextManager[None]:
    """Keep attention from fused kernels, whose backward pass cannot be differentiated again.

    Returns:
        A context, for all threads.
    """
    return _UNFUSED


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
