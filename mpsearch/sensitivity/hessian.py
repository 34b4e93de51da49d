"""Second-order sensitivity: the trace of the Hessian, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import ModelError
from mpsearch.sensitivity.hessian_probes import ProbeRound, pyhessian_round, taped_round
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask
from mpsearch.sensitivity.ranking import unsettled_share
from mpsearch.sensitivity.second_order import squared_errors
from mpsearch.sensitivity.sharding import ShardRunner

__all__ = ["HessianTrace"]

ROUND = 8
"""Probes between two looks at the ranking when their number is adaptive."""


class HessianTrace(Estimator):
    """Tr(H_W)/n_W * ||Q(W) - W||² + Tr(H_A)/n_A * ||Q(A) - A||² for every layer.

    The traces are Hutchinson's estimates: E[z_i . (Hz)_i] = Tr(H_i) for z with independent +1 and
    -1 entries over all layers together, so that one Hessian-vector product serves every layer,
    weights and activations alike. The cross terms between layers have mean zero; they add variance,
    which the standard error includes. H_A is the Hessian of one input's own loss in the layer's
    input, averaged over the data, and only computed when activations are quantized.

    With `probes="auto"` rounds of 8 probes are added until the expected share of layer pairs in the
    wrong order is at most `settled`. Such a stopped standard error is slightly optimistic.

    Source: HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852); Hutchinson, "A stochastic estimator of the
    trace of the influence matrix", 1990.
    """

    name: ClassVar[str] = "hessian_trace"
    scores_activations: ClassVar[bool] = True
    expands: ClassVar[bool] = True

    def __init__(
        self,
        probes: int | Literal["auto"] = 32,
        settled: float = 0.02,
        most_probes: int = 256,
        engine: Literal["mpsearch", "pyhessian"] = "mpsearch",
        activations: bool = False,
    ) -> None:
        """Choose the number of probes and who multiplies.

        Args:
            probes: Random vectors, at least 2 so that a standard error exists, or `auto`.
            settled: Share of layer pairs in the wrong order at which `auto` stops.
            most_probes: Where `auto` stops in any case.
            engine: `pyhessian` multiplies by PyHessian's `dataloader_hv_product`, slower and for
                weights only; the reference.
            activations: Whether to find the traces of layer inputs where the options quantize
                none, too.

        Raises:
            ValueError: Fewer than 2 probes, or an unknown engine.
        """
        if probes != "auto" and (not isinstance(probes, int) or probes < 2):
            raise ValueError(f"probes must be at least 2 or 'auto', not {probes!r}")
        if most_probes < 2:
            raise ValueError(f"most_probes must be at least 2, not {most_probes}")
        if engine not in {"mpsearch", "pyhessian"}:
            raise ValueError(f"engine is 'mpsearch' or 'pyhessian', not {engine!r}")
        self._probes = probes
        self._settled = settled
        self._most = most_probes
        self._engine = engine
        self._activations = activations

    @property
    def held(self) -> float:
        """A graph of the gradient holds about three times what the loss's own does."""
        return 3.0

    def score(self, task: ScoringTask) -> Scores:
        """Score every layer at every option; see the class.

        Args:
            task: Model, layers, options, data.

        Returns:
            Scores with standard errors over the probes; `statistics` holds `hessian_trace` and
            `hessian_trace_stderr` of every layer, and the same of its activations.
        """
        rounds: list[ProbeRound] = []
        each: NDArray[np.float64] = np.zeros((0, len(task.layers), len(task.options)))
        moved = squared_errors(task)
        runner = ShardRunner(task)
        for numbers in self._rounds():
            rounds.append(self._round(runner, task, numbers))
            each = np.concatenate([each, _scores_of_probes(task, rounds[-1], rounds[0], moved)])
            if self._probes == "auto" and unsettled_share(*_summary(each)) <= self._settled:
                break
        score, stderr = _summary(each)
        weights = np.concatenate([r.weights for r in rounds])
        trace, error = _summary(weights)
        names = [layer.name for layer in task.layers]
        statistics = _named(names, "hessian_trace", trace, error)
        if self._of_inputs(task):
            inputs = np.concatenate([r.activations for r in rounds])
            statistics |= _named(names, "activation_hessian_trace", *_summary(inputs))
        statistics["probes"] = dict.fromkeys(names, float(len(each)))
        return Scores(
            score,
            stderr,
            statistics=statistics,
            warnings=(*_flat(names, weights), *_negative_traces(names, trace, error)),
            float_loss=rounds[0].float_loss,
        )

    def _of_inputs(self, task: ScoringTask) -> bool:
        return self._activations or bool(task.activation_formats)

    @property
    def _last(self) -> int:
        return self._probes if isinstance(self._probes, int) else self._most

    def _rounds(self) -> Iterator[range]:
        """List the numbers of the probes of every round, whoever computes them."""
        step = self._last if isinstance(self._probes, int) else ROUND
        for first in range(0, self._last, step):
            yield range(first, min(first + step, self._last))

    def _round(self, runner: ShardRunner, task: ScoringTask, numbers: range) -> ProbeRound:
        inputs = self._of_inputs(task)
        if self._engine == "mpsearch":
            found = taped_round(runner, task, numbers, inputs, self._last)
        else:
            found = pyhessian_round(task, numbers, inputs)
        finite = np.isfinite(found.weights).all() and np.isfinite(found.activations).all()
        if not (finite and math.isfinite(found.float_loss)):
            raise ModelError(f"{task.loss.name} or its Hessian is not finite on this data")
        return found


def _scores_of_probes(
    task: ScoringTask, found: ProbeRound, first: ProbeRound, moved: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Turn traces of single probes into scores of single probes: probes x layers x options."""
    # What formats do to inputs is not random, and only the first round measured it.
    sizes = np.array([layer.weights for layer in task.layers], dtype=np.float64)
    scores = (found.weights / sizes)[:, :, None] * moved
    for column, option in enumerate(task.options):
        if not option.activation.is_float:
            for row, layer in enumerate(task.layers):
                mean_trace = found.activations[:, row] / max(1.0, first.input_sizes[row])
                scores[:, row, column] += mean_trace * first.input_errors.get(
                    (layer.name, option.activation), 0.0
                )
    return scores


def _summary(samples: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean: NDArray[np.float64] = samples.mean(axis=0)
    stderr: NDArray[np.float64] = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    return mean, stderr


def _named(
    names: list[str], what: str, trace: NDArray[np.float64], stderr: NDArray[np.float64]
) -> dict[str, dict[str, float]]:
    return {
        what: dict(zip(names, trace.tolist(), strict=True)),
        f"{what}_stderr": dict(zip(names, stderr.tolist(), strict=True)),
    }


def _flat(names: list[str], samples: NDArray[np.float64]) -> tuple[str, ...]:
    flat = [name for name, column in zip(names, samples.T, strict=True) if not column.any()]
    if not flat:
        return ()
    return (f"the Hessian is zero in {', '.join(flat)}: their scores say nothing",)


def _negative_traces(
    names: list[str], trace: NDArray[np.float64], stderr: NDArray[np.float64]
) -> tuple[str, ...]:
    negative = [
        f"{name} ({value:.3g} ± {error:.2g})"
        for name, value, error in zip(names, trace, stderr, strict=True)
        if value < 0
    ]
    if not negative:
        return ()
    return (
        f"the estimated Hessian trace is negative in {', '.join(negative)}; "
        "their scores fall as the error grows",
    )
