"""Measured refinement: allocations that slightly other scores would give, run on the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpsearch.engine.meter import AllocationMeter
from mpsearch.engine.quantizer import Quantizer
from mpsearch.errors import InputError, UnsolvedError
from mpsearch.formats import Option, parse_option
from mpsearch.losses import Loss
from mpsearch.models.dataset import DataSet
from mpsearch.progress import OnProgress, Progress
from mpsearch.schemas import Allocation, Costs, Profile, Refinement
from mpsearch_solvers.method import relative_gap

__all__ = [
    "DEFAULT_PROPOSALS",
    "FEWEST_PARTS",
    "PartLosses",
    "Refined",
    "perturbed",
    "proposals_wanted",
    "refine",
    "refined_allocation",
]

DEFAULT_PROPOSALS = 32
"""Proposals where nothing else is asked for and the estimator is `auto`."""

SPREAD = 0.3
"""Standard deviation of the logarithm of what scores are multiplied with."""

WIDER, WIDEST = 1.1, 1.0
"""What that is multiplied with after a proposal that is known already, and where it ends."""

PARTS = 20
"""Parts of the data, about, over which the error of a difference is estimated."""

FEWEST_PARTS = 5
"""Parts without which that error says too little."""

LOOSE_GAP = 1e-3
SECONDS = 10.0
"""How closely a proposal is solved, and for how long at most."""

_TOO_FEW = "not refined: {} calibration inputs are too few to tell what is better from chance"

_DIVERGED = (
    "not refined: the measured loss of the predicted best is not finite, nor that of any proposal"
)

_SAME_DATA = (
    "the allocation was chosen among {} by measuring on the data that it is verified on, so the "
    "loss measured there is no independent estimate; hold some data out"
)

T = TypeVar("T")
Measure = Callable[[T], NDArray[np.float64]]


@dataclass(frozen=True)
class Refined(Generic[T]):
    """What a refinement came to.

    Attributes:
        chosen: The first allocation, or one that was measured to be better.
        measured: Allocations that were run, the first one among them.
        before: Measured loss of the first one; None where it is not finite.
        after: Measured loss of the chosen one; None where no loss was finite.
        error: Standard error of the difference, over parts of the data; None where there is none.
    """

    chosen: T
    measured: int
    before: float | None
    after: float | None
    error: float | None


def proposals_wanted(asked: int | None, estimator: str) -> int:
    """Settle how many proposals to make.

    Args:
        asked: What the caller wants; None: what suits the estimator.
        estimator: Name of the one that scored.

    Returns:
        The number; 0 leaves the predicted best as it is.

    Raises:
        InputError: It is negative.
    """
    if asked is None:
        return DEFAULT_PROPOSALS if estimator == "auto" else 0
    if asked < 0:
        raise InputError(f"refine={asked}: give how many proposals to measure, 0 for none")
    return asked


def perturbed(
    loss: NDArray[np.float64],
    interactions: NDArray[np.float64] | None,
    generator: np.random.Generator,
    spread: float = SPREAD,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Multiply scores with random factors, log-normal around 1.

    Args:
        loss: Groups x options.
        interactions: (groups x options) squared, or None; multiplied with the geometric mean of the
            factors of its two choices.
        generator: Draws the factors.
        spread: Standard deviation of their logarithms.

    Returns:
        Scores as they might as well be.
    """
    factors = generator.lognormal(0.0, spread, size=loss.shape)
    roots = np.sqrt(factors).ravel()
    pairs = None if interactions is None else interactions * np.outer(roots, roots)
    return loss * factors, pairs


def refine(
    first: T,
    propose: Callable[[np.random.Generator, float], T | None],
    measure: Measure[T],
    key: Callable[[T], Hashable],
    *,
    proposals: int,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> Refined[T]:
    """Measure proposals and take the best of those that are measurably better than the first.

    Scores come from few inputs and from sums of what single changes do; where many allocations are
    about as good by the scores, they are not by the truth. Each proposal is the best one for scores
    that are a little off; of those that beat the first one by more than a standard error of the
    paired difference, the one of least measured loss is taken. Without that condition the luckiest
    of many would win: at mild budgets, where little is to be gained, it did worse on other data.
    Where the loss of the first one is not finite, any finite one is better.

    Args:
        first: The predicted best.
        propose: Solves with scores perturbed by a generator and a spread, which is wider the longer
            nothing new was proposed; None where that found nothing.
        measure: Losses on parts of the data, of which their mean is the loss.
        key: Tells allocations apart; each distinct one is measured once.
        proposals: How many to make.
        seed: Seed of the perturbations.
        on_step: Called after every proposal with their number so far.

    Returns:
        The choice.
    """
    generator = np.random.default_rng(seed)
    base = measure(first)
    seen = {key(first)}
    best, spread = first, SPREAD
    error: float | None = None
    before = after = float(base.mean()) if np.isfinite(base).all() else None
    for number in range(1, proposals + 1):
        proposal = propose(generator, spread)
        if proposal is None or key(proposal) in seen:
            spread = min(WIDEST, spread * WIDER)
        else:
            seen.add(key(proposal))
            spread = SPREAD
            found = measure(proposal)
            loss = float(found.mean())
            if math.isfinite(loss) and (after is None or loss < after):
                uncertain = math.nan if before is None else _error(base - found)
                if before is None or before - loss > uncertain:
                    best, after, error = proposal, loss, uncertain
        if on_step is not None:
            on_step(number)
    return Refined(best, len(seen), before, after, None if before is None else error)


def _error(difference: NDArray[np.float64]) -> float:
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))


class PartLosses:
    """Measures allocations on parts of the calibration data.

    Attributes:
        parts: Their number.
    """

    def __init__(self, quantizer: Quantizer, data: DataSet, loss: Loss) -> None:
        """Cut the data.

        Args:
            quantizer: Holds the float model and its calibrated ranges.
            data: What the scores came from; nothing that is held out.
            loss: The loss.
        """
        size = max(1, min(data.batch_size, -(-len(data) // PARTS)))
        batches = list(replace(data, batch_size=size).batches())
        self.parts = len(batches)
        # Proposals change about every layer: there is no prefix of the float model to re-use.
        self._meter = AllocationMeter(quantizer, batches, loss, memory_limit=0)

    def __call__(self, choice: Mapping[str, Option]) -> NDArray[np.float64]:
        """Measure one allocation.

        Args:
            choice: Layer -> option.

        Returns:
            What every part contributes, float64 `[parts]`; the mean is the loss.
        """
        (tally,) = self._meter.tally_many([choice])
        sums, terms = np.array(tally.parts, dtype=np.float64).T
        shares: NDArray[np.float64] = sums * len(sums) / terms.sum()
        return shares


def refined_allocation(
    answer: Allocation,
    scores: tuple[Profile, Costs],
    solve: Callable[..., Allocation],
    measure: PartLosses,
    proposals: int,
    *,
    independent: bool,
    on_progress: OnProgress,
) -> Allocation:
    """Look for an allocation within the same budgets whose measured loss is less.

    Args:
        answer: The allocation of least predicted loss.
        scores: The profile and the costs that it was solved from.
        solve: `allocate` for a profile, with all but `method`, `gap` and `time_limit` settled.
        measure: Losses on the calibration data.
        proposals: How many to make.
        independent: Whether the answer will not be verified on the same data.
        on_progress: Called after every proposal.

    Returns:
        The answer, or one that was measured to be better, with `refinement`; its certificate is
        still that of the predicted loss, and it is `feasible` unless it is as good by that. Method,
        seconds and shadow prices stay those of the predicted best.
    """
    if measure.parts < FEWEST_PARTS:
        return _warned(answer, _TOO_FEW.format(measure.parts))
    profile, costs = scores
    paired = profile.interactions is not None and not set(answer.budgets) & set(costs.conversions)
    method = "local_search" if paired else "auto"

    def propose(generator: np.random.Generator, spread: float) -> Allocation | None:
        loss, pairs = perturbed(profile.loss, profile.interactions, generator, spread)
        moved = profile.model_copy(update={"loss": loss, "interactions": pairs})
        try:
            return solve(moved, method=method, gap=LOOSE_GAP, time_limit=SECONDS)
        except UnsolvedError:  # not within so short a time; others are
            return None

    found = refine(
        answer,
        propose,
        lambda allocation: measure(
            {layer: parse_option(option) for layer, option in allocation.layers.items()}
        ),
        lambda allocation: tuple(allocation.groups.items()),
        proposals=proposals,
        seed=answer.seed,
        on_step=lambda done: on_progress(Progress("solve", done, proposals, "measured proposals")),
    )
    if found.after is None:
        return _warned(answer, _DIVERGED)
    record = Refinement(
        proposals=proposals,
        measured=found.measured,
        loss_before=found.before,
        loss_after=found.after,
        standard_error=found.error,
    )
    if found.chosen is answer:
        return answer.model_copy(update={"refinement": record})
    note = () if independent else (_SAME_DATA.format(record.measured),)
    return _warned(_put_in(found.chosen, answer, scores, record), *note)


def _warned(answer: Allocation, *notes: str) -> Allocation:
    return answer.model_copy(update={"warnings": [*answer.warnings, *notes]})


def _put_in(
    chosen: Allocation,
    answer: Allocation,
    scores: tuple[Profile, Costs],
    record: Refinement,
) -> Allocation:
    """Give a proposal, which was solved for perturbed scores, its place in the true problem."""
    profile, costs = scores
    columns = [profile.options.index(chosen.groups[group]) for group in profile.groups]
    predicted = profile.predicted(columns)
    bound = answer.bound if answer.monotone == "keep" else None  # a bound on clamped losses
    as_good = answer.monotone == "keep" and predicted <= answer.objective
    refined = answer.model_copy(
        update={
            "layers": chosen.layers,
            "groups": chosen.groups,
            "budgets": chosen.budgets,
            "costs": chosen.costs,
            "objective": predicted,
            "predicted_loss": predicted,
            "bound": bound,
            "gap": None if bound is None else relative_gap(predicted, bound),
            "status": answer.status if as_good else "feasible",
            "refinement": record,
        }
    )
    return refined.solved_from(profile, costs)
