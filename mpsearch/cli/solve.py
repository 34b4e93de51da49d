"""`mpsearch solve`: an allocation problem from a file, without any model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mpsearch.errors import (
    DependencyError,
    DocumentError,
    InfeasibleError,
    InputError,
    UnsolvedError,
)
from mpsearch_solvers import (
    BackendError,
    MethodError,
    Problem,
    ProblemError,
    Progress,
    Solution,
    frontier,
    method_names,
    solve,
)

__all__ = ["solve_command"]

_STATUSES_WITH_CHOICE = ("optimal", "feasible")
_ROWS = 40


def solve_command(
    problem: Annotated[Path, typer.Argument(help="Problem file (JSON); - reads stdin.")],
    method: Annotated[
        str, typer.Option("--method", "-m", help=f"One of: {', '.join(method_names())}.")
    ] = "auto",
    gap: Annotated[
        float, typer.Option("--gap", help="Relative gap that counts as optimal; 0: full proof.")
    ] = 1e-6,
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", help="Seconds; the best answer so far is returned then."),
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option(
            "--goal",
            help="What to minimise instead of the file's goal: loss, worst_loss, a resource, "
            "or a weighted sum such as loss=1,latency=0.1.",
        ),
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option("--max-loss", help="Largest total loss allowed.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option("--limit", "-l", help="RESOURCE=NUMBER, replaces the file's; repeatable."),
    ] = None,
    resource: Annotated[
        str | None,
        typer.Option("--frontier", help="Trace the goal against this resource instead."),
    ] = None,
    points: Annotated[
        int | None, typer.Option("--points", help="Thin the frontier to about so many points.")
    ] = None,
    unsupported: Annotated[
        bool,
        typer.Option("--unsupported", help="Frontier: also the points between supported ones."),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of randomised methods.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Solve an allocation problem, with a certificate.

    Exit codes: 0 solved (feasible included, with its gap); 2 bad input; 3 infeasible;
    4 time ran out with nothing feasible.
    """
    if resource is None and (points is not None or unsupported):
        raise InputError("--points and --unsupported belong to --frontier RESOURCE")
    with _translated(), _reporter() as report:
        loaded = _adjusted(_read(problem), goal, max_loss, limit or [])
        if resource is not None:
            curve = frontier(
                loaded,
                resource,
                points,
                unsupported=unsupported,
                method=method,
                gap=gap,
                time_limit=time_limit,
                seed=seed,
                progress=report,
            )
            found = list(curve)
        else:
            found = [solve(loaded, method, gap, time_limit, seed, progress=report)]
    if as_json:
        documents = [solution.to_dict() for solution in found]
        body = documents[0] if resource is None else {"resource": resource, "points": documents}
        sys.stdout.write(json.dumps(body, indent=1, allow_nan=False) + "\n")
    _fail_without_choice(found[0], loaded)
    stderr = Console(stderr=True, highlight=False)
    if resource is not None:
        stderr.print(_frontier_table(found, resource))
        return
    stderr.print(_choice_table(found[0]))
    stderr.print(_usage_table(found[0], loaded))
    stderr.print(_verdict(found[0]))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read problem file {path}: {error}") from error
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        # ValueError: not JSON, a number of too many digits, or a name given twice.
        raise DocumentError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(document, dict):
        raise DocumentError(f"{path} holds a {type(document).__name__}; a problem is an object")
    return document


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a document; of two fields of one name JSON would drop the first."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ValueError(f"{twice!r} is given twice in one object")
    return fields


def _adjusted(
    document: dict[str, Any], goal: str | None, max_loss: float | None, limits: list[str]
) -> Problem:
    """Return the file's problem with what the command line replaces."""
    if goal is not None:
        document["goal"] = {"minimize": _read_goal(goal)}
    if max_loss is not None:
        document["goal"] = {**(document.get("goal") or {}), "max_loss": max_loss}
    for text in limits:
        name, equals, amount = text.partition("=")
        if not equals:
            raise InputError(f"--limit {text!r} is not RESOURCE=NUMBER")
        document["limits"] = {
            **(document.get("limits") or {}),
            name.strip(): _number(amount, f"--limit {text!r}"),
        }
    return Problem.from_dict(document)


def _read_goal(text: str) -> str | dict[str, float]:
    text = text.removeprefix("min:")
    if "=" not in text:
        return text.strip()
    weights = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        weights[name.strip()] = _number(weight, f"--goal {text!r}")
    return weights


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{where}: {text!r} is not a number") from error


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the solvers' errors into those that carry exit codes."""
    try:
        yield
    except ProblemError as error:
        raise DocumentError(str(error)) from error
    except MethodError as error:
        raise InputError(str(error)) from error
    except BackendError as error:
        raise DependencyError(str(error)) from error


@contextmanager
def _reporter() -> Iterator[Callable[[Progress], None] | None]:
    """Show bound and incumbent on a terminal while a solve lasts; nothing elsewhere."""
    stderr = Console(stderr=True, highlight=False)
    if not stderr.is_terminal:
        yield None
        return
    with stderr.status("solving") as status:

        def report(progress: Progress) -> None:
            parts = [progress.method, progress.stage, f"{progress.seconds:.1f} s"]
            if progress.bound is not None:
                parts.append(f"bound {progress.bound:.8g}")
            if progress.incumbent is not None:
                parts.append(f"best {progress.incumbent:.8g}")
            if progress.gap is not None:
                parts.append(f"gap {progress.gap:.2g}")
            status.update(" · ".join(part for part in parts if part))

        yield report


def _fail_without_choice(solution: Solution, problem: Problem) -> None:
    if solution.status in _STATUSES_WITH_CHOICE:
        return
    if solution.status == "infeasible":
        raise InfeasibleError(_why_infeasible(solution, problem), dict(solution.minimum or {}))
    raise UnsolvedError(
        f"time ran out after {solution.seconds:.3g} s with nothing feasible found; "
        "raise --time-limit"
    )


def _why_infeasible(solution: Solution, problem: Problem) -> str:
    lines = ["no allocation keeps every limit"]
    if solution.conflict:
        lines[0] += f"; these clash: {', '.join(solution.conflict)}"
    for resource, least in (solution.minimum or {}).items():
        line = f"{resource}: least achievable {least:.10g}"
        given = (solution.minimum_given_others or {}).get(resource)
        if given is not None and given != least:
            line += f", {given:.10g} while the other limits hold"
        lines.append(f"{line}; limit {_limit_text(problem, resource)}")
    for resource, most in (solution.maximum or {}).items():
        lines.append(
            f"{resource}: most achievable {most:.10g}; limit {_limit_text(problem, resource)}"
        )
    lines.append("raise a limit or add a cheaper option")
    return "\n".join(lines)


def _limit_text(problem: Problem, resource: str) -> str:
    limit = problem.limits.get(resource)
    if limit is None:
        return f"{problem.goal.max_loss:.10g}" if problem.goal.max_loss is not None else "none"
    bounds = [("at least", limit.min), ("at most", limit.max)]
    return " and ".join(f"{word} {value:.10g}" for word, value in bounds if value is not None)


def _choice_table(solution: Solution) -> Table:
    table = Table("group", "option", box=box.SIMPLE)
    for group, option in list(solution.choice.items())[:_ROWS]:
        table.add_row(group, option)
    if len(solution.choice) > _ROWS:
        table.add_row(f"… {len(solution.choice) - _ROWS} more groups", "see --json")
    return table


def _usage_table(solution: Solution, problem: Problem) -> Table:
    table = Table("resource", "usage", "limit", "price", box=box.SIMPLE)
    for resource, usage in solution.usage.items():
        limit = _limit_text(problem, resource) if resource in problem.limits else "none"
        price = solution.shadow_prices.get(resource)
        name = resource
        if resource in solution.binding_steps:
            name += f" (peak at {solution.binding_steps[resource]})"
        table.add_row(name, f"{usage:.10g}", limit, "" if price is None else f"{price:.4g}")
    return table


def _verdict(solution: Solution) -> str:
    parts = [f"{solution.status}: objective {solution.objective:.10g}"]
    if solution.bound is None:
        parts.append("nothing proven about the optimum")
    else:
        parts.append(f"bound {solution.bound:.10g}, gap {solution.gap:.3g}")
    by = f"{solution.method} {solution.solver}".strip()
    parts.append(f"by {by} in {solution.seconds:.3g} s")
    if solution.reason:
        parts.append(f"chosen because {solution.reason}")
    if solution.note:
        parts.append(solution.note)
    return "; ".join(parts)


def _frontier_table(solutions: list[Solution], resource: str) -> Table:
    table = Table(resource, "objective", "bound", "status", box=box.SIMPLE)
    step = max(1, -(-len(solutions) // _ROWS))
    shown = solutions[::step]
    if shown[-1] is not solutions[-1]:
        shown = [*shown, solutions[-1]]
    for solution in shown:
        bound = "" if solution.bound is None else f"{solution.bound:.10g}"
        table.add_row(
            f"{solution.usage[resource]:.10g}",
            f"{solution.objective:.10g}",
            bound,
            solution.status,
        )
    if len(shown) < len(solutions):
        table.caption = f"{len(shown)} of {len(solutions)} points; all with --json"
    return table
