"""Finished runs of a gain study as Markdown tables, one for each budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdcache.analysis.runs import Estimate, estimate
from tests.study.gain.plan import Goal, Study
from tests.study.table import format_spread, render_line

Values = dict["Point", dict[int, float]]
"""Point -> seed -> mIoU of the last epoch, 0 to 1."""


@dataclass(frozen=True)
class Point:
    """An arm at a number of labels. teacher: None if it has none."""

    budget: int
    labels: int
    teacher: str | None
    arm: str


def find_values(lines: Iterable[dict]) -> Values:
    """The values of each point; a run stands for each arm with its settings."""
    values: Values = {}
    for line in lines:
        for arm in (line["arm"], *line["also"]):
            point = Point(line["budget"], line["labels"], line["teacher"], arm)
            values.setdefault(point, {})[line["seed"]] = line["last_miou"]
    return values


def render_tables(study: Study, lines: Sequence[dict]) -> str:
    """A table for each budget with a finished run, with a heading."""
    values = find_values(lines)
    budgets = sorted({point.budget for point in values})
    return "\n".join(_render_budget(study, values, budget) for budget in budgets)


def render_short(study: Study, lines: Sequence[dict]) -> str:
    """The arm `recipe` beside labels only, at the smallest budget: a line for each number of labels
    and teacher.
    """
    values = find_values(lines)
    budget, most = min(p.budget for p in values), max(p.labels for p in values)
    points = [p for p in values if (p.budget, p.arm) == (budget, "recipe")]
    head = ["labels", "teacher has seen", "labels only", "with the cache"]
    head += ["gain in points [95 %]", "seeds"]
    rows = [head, ["---"] * len(head)]
    for point in sorted(points, key=lambda p: _order(study, p)):
        own, base = values[point], find_baseline(study, values, point, point.labels)
        gain = compare(own, base)
        seen = f"all {most} labels" if point.teacher == "all" else f"the same {point.labels}"
        cells = [f"{point.labels} of {most}", seen]
        cells += [format_spread([run[s] for s in sorted(run)], digits=3) for run in (base, own)]
        rows.append([*cells, format_difference(gain), str(gain.count if gain else 0)])
    return "\n".join([*map(render_line, rows), ""])


def render_goals(study: Study, lines: Sequence[dict]) -> str:
    """A table of the study's goals beside what was measured; empty without goals."""
    if not study.goals:
        return ""
    values, head = find_values(lines), ["figure", "goal", "measured", "reached"]
    rows = [head, ["---"] * len(head)]
    rows += [_render_goal(study, values, goal) for goal in study.goals]
    return "\n".join([*map(render_line, rows), ""])


def render_teachers(lines: Sequence[dict]) -> str:
    """mIoU of the teachers on the images of the tables; empty without one."""
    found = {
        (line["teacher"], line["labels"]): line["teacher_miou"]
        for line in lines
        if line["teacher"] and line["teacher_miou"] is not None
    }
    texts = []
    for name in sorted({name for name, _ in found}):
        mious = {labels: miou for (own, labels), miou in sorted(found.items()) if own == name}
        same = len(set(mious.values())) == 1
        shown = [f"{miou:.4f}" + ("" if same else f" ({n})") for n, miou in mious.items()]
        texts.append(f"`{name}` {shown[0] if same else ', '.join(shown)}")
    return f"The teacher's own mIoU on these images: {'; '.join(texts)}.\n" if texts else ""


def find_baseline(study: Study, values: Values, point: Point, labels: int) -> dict[int, float]:
    """The baseline's values with so many labels, in as many steps."""
    return values.get(Point(point.budget, labels, None, study.find_baseline(point.arm)), {})


def compare(own: dict[int, float], base: dict[int, float]) -> Estimate | None:
    """The difference in points, seed by seed; None without a common seed."""
    points = [100 * (own[seed] - base[seed]) for seed in sorted(own) if seed in base]
    return estimate(points) if points else None


def _render_budget(study: Study, values: Values, budget: int) -> str:
    points = sorted((p for p in values if p.budget == budget), key=lambda p: _order(study, p))
    bases = [None]  # with as many labels as the point
    bases += [max(p.labels for p in points)] if len({p.labels for p in points}) > 1 else []
    names = [f"with {base} labels" if base else "with as many" for base in bases]
    head = ["labels", "teacher", "arm", "seeds", "mIoU"]
    head += [f"over {study.baseline} {name}, points" for name in names]
    rows = [head, ["---"] * len(head)]
    rows += [_render_point(study, values, point, bases) for point in points]
    return "\n".join([f"{study.name}, {budget} steps:", "", *map(render_line, rows), ""])


def _render_point(
    study: Study, values: Values, point: Point, bases: Sequence[int | None]
) -> list[str]:
    own = values[point]
    cells = [str(point.labels), point.teacher or "-", point.arm, str(len(own))]
    cells.append(format_spread([own[seed] for seed in sorted(own)], digits=4))
    for labels in (base or point.labels for base in bases):
        is_itself = point.arm == study.find_baseline(point.arm) and labels == point.labels
        base = find_baseline(study, values, point, labels)
        cells.append("-" if is_itself else format_difference(compare(own, base)))
    return cells


def _render_goal(study: Study, values: Values, goal: Goal) -> list[str]:
    point = Point(goal.budget, goal.labels, goal.teacher, goal.arm)
    base = find_baseline(study, values, point, goal.over)
    found = compare(values.get(point, {}), base)
    figure = (
        f"{goal.arm}, {goal.labels} labels, teacher `{goal.teacher}`, over "
        f"{study.find_baseline(goal.arm)} with {goal.over}, {goal.budget} steps"
    )
    wanted = f"{goal.mean:+g}" if goal.mean else "above 0"
    wanted += "" if goal.low is None else f", interval above {goal.low:+g}"
    if found is None:
        return [figure, wanted, "-", "not measured"]
    measured = f"{format_difference(found)}, {found.count} seeds"
    return [figure, wanted, measured, "yes" if _is_reached(goal, found) else "**no**"]


def _is_reached(goal: Goal, found: Estimate) -> bool:
    low = found.interval[0] if found.interval else -math.inf
    enough = found.mean >= goal.mean if goal.mean else found.mean > 0
    return enough and (goal.low is None or low > goal.low)


def format_difference(difference: Estimate | None) -> str:
    """`+3.6 [+1.1, +6.2]`: the mean and its 95 % interval, bold if 0 is outside."""
    if difference is None:
        return "-"
    mean = f"{difference.mean:+.1f}"
    if difference.interval is None:
        return f"{mean} (one seed)"
    low, high = difference.interval
    text = f"{mean} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if difference.excludes_zero else text


def _order(study: Study, point: Point) -> tuple:
    teachers = [None, *study.teachers]
    return point.labels, teachers.index(point.teacher), list(study.arms).index(point.arm)
