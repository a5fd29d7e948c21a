"""A run as a table for a terminal, and bench.json as Markdown for BENCHMARKS.md."""

from __future__ import annotations

from tests.bench.figures import Figure


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
    """Tables of figures and rivals, where and with what they were measured, and what each figure
    means.
    """
    parts = [_render_head(document), _render_figures(document["figures"])]
    rivals = document["figures"].get("rivals", {})
    if rivals.get("value") is not None:
        parts.append(_render_rivals(rivals["details"]))
    parts.append(
        "\n".join(
            f"- `{key}`: {figure['definition']}." for key, figure in document["figures"].items()
        )
    )
    return "\n\n".join(parts) + "\n"


def _render_head(document: dict) -> str:
    machine, versions = document["machine"], document["versions"]
    gpu = machine["gpu"] or "no GPU"
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
