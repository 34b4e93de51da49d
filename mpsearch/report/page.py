"""An answer as one HTML page that needs nothing else: no scripts, no fonts, no other files."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from mpsearch.budgets import format_amount
from mpsearch.report.tables import bits_of, refinement_line
from mpsearch.schemas import Allocation, Costs, Frontier, Measurement, Profile, Verification

__all__ = ["report_page"]

FRONTIER_ROWS = 200
"""Most points listed; the picture and `frontier.json` have them all."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8885; text-align: right; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #8888; }
tr.chosen td { font-weight: 600; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
.bar { display: inline-block; height: .7em; background: #4878cf; border-radius: 2px; }
.proven { color: #1a7f37; } .open, .warning { color: #9a6700; }
details { margin: 1rem 0; }
"""


def report_page(
    allocation: Allocation,
    profile: Profile | None = None,
    costs: Costs | None = None,
    curve: Frontier | None = None,
    *,
    pictures: Mapping[str, bytes] | None = None,
    title: str = "",
) -> str:
    """Write the page.

    Every text that comes from a model, a file or a person is escaped.

    Args:
        allocation: The answer.
        profile: Adds predicted losses and their table.
        costs: Adds the memory of every group.
        curve: Adds the frontier.
        pictures: Caption -> PNG.
        title: Heading; by default the model's name.

    Returns:
        HTML, UTF-8.
    """
    name = title or (allocation.model.name if allocation.model else "Allocation")
    parts = [
        f"<h1>{escape(name)}</h1>",
        _certificate(allocation),
        *_warnings(allocation, profile),
        _budgets(allocation),
        *[_picture(caption, png) for caption, png in (pictures or {}).items()],
        _measured(allocation.verification),
        _layers(allocation, profile, costs),
    ]
    if curve is not None:
        parts.append(_frontier(curve, allocation))
    if profile is not None:
        parts.append(_scores(profile))
    parts.append(_origin(allocation, profile, costs))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · mpsearch</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _certificate(answer: Allocation) -> str:
    proven = answer.status == "optimal"
    words = [f'<span class="{"proven" if proven else "open"}">{escape(answer.status)}</span>']
    words.append(
        f"predicted loss increase {answer.predicted_loss:.6g} ({escape(answer.estimator)})"
    )
    if answer.bound is None:
        words.append("no lower bound")
    else:
        words.append(f"lower bound {answer.bound:.6g}, gap {answer.gap or 0.0:.2g}")
    by = ", ".join(filter(None, (answer.method, answer.solver)))
    text = f"<p>{', '.join(words)} – {escape(by)}, {answer.seconds:.3f} s.</p>"
    if answer.goal != "min:loss":
        text += (
            f"<p>Smallest found for {escape(answer.goal)} with a drop of at most "
            f"{answer.max_drop or 0.0:.2%}: {answer.allocations_measured} allocations measured, "
            "smaller ones not excluded; the certificate is that of least predicted loss at this "
            "use.</p>"
        )
    if answer.refinement is not None:
        text += f"<p>{escape(refinement_line(answer.refinement))}.</p>"
    return text


def _warnings(answer: Allocation, profile: Profile | None) -> list[str]:
    said = dict.fromkeys([*answer.warnings, *(profile.warnings if profile else [])])
    return [f'<p class="warning">Warning: {escape(text)}</p>' for text in said]


def _budgets(answer: Allocation) -> str:
    rows = []
    for resource, used in answer.costs.items():
        unit = answer.units.get(resource, "")
        use = answer.budgets.get(resource)
        if use is None:
            rows.append([resource, format_amount(used, unit), "–", "–", "–"])
            continue
        limit = f"{format_amount(use.limit, unit)} ({use.requested})"
        rows.append(
            [
                resource + (f", peaks at {use.binding_step}" if use.binding_step else ""),
                format_amount(use.usage, unit),
                limit,
                f"{use.usage / use.limit:.1%}",
                format_amount(use.least, unit),
            ]
        )
    return _table("Resources", ["resource", "used", "budget", "share", "least possible"], rows)


def _measured(found: Verification | None) -> str:
    if found is None:
        return '<p class="open">Nothing was verified: the allocation was not run on the model.</p>'
    where = "held out" if found.held_out else "the calibration inputs themselves"
    heads = ["", f"loss ({found.loss_function})", *([found.metric_name] * bool(found.metric_name))]

    def row(name: str, measured: Measurement | None, note: str) -> list[str]:
        loss = "–" if measured is None else f"{measured.loss:.5f}"
        score = "–"
        if measured is not None and measured.metric is not None:
            score = format(measured.metric, ".2%" if found.metric_is_share else ".5g")
        return [name, loss, *([score] if found.metric_name else []), note]

    rows = [row("float", found.float_model, ""), row("mpsearch", found.allocation, "this answer")]
    rows += [row(each.name, each.measurement, each.description) for each in found.baselines]
    caption = f"Measured on {found.data.inputs} inputs of {found.data.name} ({where})"
    return _table(caption, [*map(str, heads), "note"], rows, chosen={1})


def _layers(answer: Allocation, profile: Profile | None, costs: Costs | None) -> str:
    memory = costs is not None and "weight_memory" in costs.values
    heads = ["group", "option", "bits", ""]
    heads += ["predicted loss"] * (profile is not None) + ["memory"] * memory
    rows = []
    for index, (group, option) in enumerate(answer.groups.items()):
        bits = bits_of(option)
        bar = f'<span class="bar" style="width:{min(bits, 16) / 2:.2f}em"></span>'
        row = [escape(group), escape(option), f"{bits:.3g}", bar]
        if profile is not None:
            column = profile.options.index(option)
            error = profile.stderr[index, column]
            spread = f" ± {error:.1g}" if error else ""
            row.append(f"{profile.loss[index, column]:+.3g}{spread}")
        if memory:
            assert costs is not None
            column = costs.options.index(option)
            row.append(format_amount(float(costs.values["weight_memory"][index, column]), "B"))
        rows.append(row)
    return _table("Allocation", heads, rows, escaped=True)


def _frontier(curve: Frontier, answer: Allocation) -> str:
    step = max(1, -(-len(curve.points) // FRONTIER_ROWS))
    points = curve.points[::step]
    used = answer.costs.get(curve.resource)
    rows = [
        [
            format_amount(point.usage, curve.unit),
            f"{point.predicted_loss:.6g}",
            "–" if point.gap is None else f"{point.gap:.2g}",
            point.status,
        ]
        for point in points
    ]
    chosen = {i for i, p in enumerate(points) if p.groups == answer.groups and p.usage == used}
    shown = f" (every {step}th of {len(curve.points)} points)" if step > 1 else ""
    heads = [curve.resource, "predicted loss", "gap", "status"]
    caption = f"Frontier of predicted loss and {curve.resource}{shown}"
    table = _table("", heads, rows, chosen=chosen)
    return f"<details><summary>{escape(caption)}</summary>{table}</details>"


def _scores(profile: Profile) -> str:
    rows = [
        [
            group,
            *(
                f"{profile.loss[row, column]:+.3g}" if profile.offered[row, column] else "–"
                for column in range(len(profile.options))
            ),
        ]
        for row, group in enumerate(profile.groups)
    ]
    caption = f"Predicted loss increase of every group and option ({profile.estimator})"
    table = _table("", ["group", *profile.options], rows)
    return f"<details><summary>{escape(caption)}</summary>{table}</details>"


def _origin(answer: Allocation, profile: Profile | None, costs: Costs | None) -> str:
    said = []
    if answer.model is not None:
        said.append(f"model {answer.model.name}, sha256 {answer.model.fingerprint[:16]}…")
    if profile is not None and profile.data is not None:
        said.append(
            f"scored on {profile.data.inputs} inputs of {profile.data.name}, sha256 "
            f"{profile.data.fingerprint[:16]}…, seed {profile.seed}"
        )
    if costs is not None:
        said += [f"{resource}: {source}" for resource, source in costs.provenance.items()]
    items = "".join(f"<li>{escape(each)}</li>" for each in said)
    return f"<h2>Where the numbers come from</h2><ul>{items}</ul>"


def _picture(caption: str, png: bytes) -> str:
    coded = base64.b64encode(png).decode("ascii")
    said = escape(caption, quote=True)
    return f'<p><img src="data:image/png;base64,{coded}" alt="{said}"></p>'


def _table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    chosen: set[int] | None = None,
    escaped: bool = False,
) -> str:
    """Write a table; cells are escaped here unless they have been."""
    cell = str if escaped else escape
    lines = [f"<caption>{escape(caption)}</caption>" if caption else ""]
    lines.append("<thead><tr>" + "".join(f"<th>{escape(h)}</th>" for h in heads) + "</tr></thead>")
    for index, row in enumerate(rows):
        mark = ' class="chosen"' if chosen and index in chosen else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{cell(text)}</td>" for text in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"
