"""A run as a table for a terminal, and bench.json or gpu.json as Markdown for a page."""

from __future__ import annotations

from tests.bench.figures import Figure
from tests.study.gain.page import find_study
from tests.study.gain.table import render_tables, render_teachers


def format_figure(figure: Figure) -> str:
    """One line of the table."""
    facts = figure.to_dict()
    end = figure.reason or figure.spec.unit
    return (
        f"{figure.spec.key:<24} {_value(facts):>10}  {_goal(facts):>8}  {figure.verdict:<9} {end}"
    )


def format_rivals(gb_s: dict[str, float]) -> list[str]:
    """The rivals' lines, fastest first."""
    return [
        f"    {rate:8.2f} GB/s  {name}"
        for name, rate in sorted(gb_s.items(), key=lambda item: -item[1])
    ]


def render_markdown(document: dict) -> str:
    """Tables of figures and rivals, where and with what they were measured, what each figure means;
    and, from `make gpu`, what tests and study gave.
    """
    parts = [_render_head(document), _render_tests(document.get("tests") or {})]
    parts.append(_render_figures(document["figures"]))
    for key, render in (("rivals", _render_rivals), ("teacher_tf32", _render_arithmetic)):
        figure = document["figures"].get(key, {})
        if figure.get("value") is not None:
            parts.append(render(figure["details"]))
    parts.append(_render_study(document.get("study") or []))
    parts.append(
        "\n".join(
            f"- `{key}`: {figure['definition']}." for key, figure in document["figures"].items()
        )
    )
    return "\n\n".join(filter(None, parts)) + "\n"


def _render_head(document: dict) -> str:
    machine, versions = document["machine"], document["versions"]
    gpu = machine["gpu"] or "no GPU"
    gpu += f" (driver {machine['driver']})" if machine["gpu"] and "driver" in machine else ""
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {gpu}"
    what = ", ".join(f"{name} {number}" for name, number in versions.items())
    quick = " **Quick run: the numbers mean nothing.**" if document["quick"] else ""
    elapsed_s = sum(document["elapsed_s"].values())
    return f"Measured {document['date']} on {where}, in {elapsed_s:.0f} s ({what}).{quick}"


def _render_figures(figures: dict[str, dict]) -> str:
    rows = ["| figure | value | goal | |", "|---|---|---|---|"]
    for key, facts in figures.items():
        unit = (
            ""
            if facts["unit"] in ("ratio", "share") or facts["value"] is None
            else f" {facts['unit']}"
        )
        end = facts["verdict"] + (f": {facts['reason']}" if facts["reason"] else "")
        rows.append(f"| `{key}` | {_value(facts)}{unit} | {_goal(facts)} | {end} |")
    return "\n".join(rows)


def _render_rivals(details: dict) -> str:
    rates = sorted(details["gb_s"].items(), key=lambda item: -item[1])
    rows = [
        f"| one random sample of {details['sample_mb']:.1f} MB, warm | GB/s | of the memory copy |",
        "|---|---|---|",
    ]
    rows += [
        f"| {name} | {rate:.2f} | {rate / details['gb_s']['memcpy']:.2f} |" for name, rate in rates
    ]
    return "\n".join(rows)


def _render_arithmetic(details: dict) -> str:
    """What each arithmetic gains a teacher, and what it changes."""
    rows = [
        f"| the teacher at {details['px']}x{details['px']}, batch {details['batch_size']} | times "
        "faster than float32 | largest difference over largest value, of logits and features |",
        "|---|---|---|",
    ]
    for name, faster in details["times_faster"].items():
        apart = max(details["apart"][name].values())
        rows.append(f"| {name} | {faster:.2f} | {apart:.1e} |")
    return "\n".join(rows)


def _render_tests(found: dict) -> str:
    if not found:
        return ""
    counts = ", ".join(f"{found[name]} {name}" for name in ("passed", "failed", "skipped"))
    names = f" ({', '.join(found['names'])})" if found["names"] else ""
    return f"Tests that need CUDA: {counts}{names}."


def _render_study(lines: list[dict]) -> str:
    if not lines:
        return ""
    study = find_study(lines[0]["data"])
    return "\n".join([render_teachers(lines), render_tables(study, lines)]).strip()


def _value(facts: dict) -> str:
    return "-" if facts["value"] is None else _number(facts["value"], facts["unit"])


def _goal(facts: dict) -> str:
    if facts["goal"] is None:
        return "-"
    return (
        f"{'>=' if facts['goal_is'] == 'least' else '<='} {_number(facts['goal'], facts['unit'])}"
    )


def _number(value: float, unit: str) -> str:
    if unit == "cosine":  # what matters is how little is missing to 1
        return f"{value:.7f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
