"""A fidelity measurement as text."""

from __future__ import annotations

from kdcache.analysis.fidelity import Limit


def format_fidelity(result: dict, root: object) -> str:
    """For a person: answers, then what students feel, then what is beyond its limit."""
    asked = f"{result['samples']} samples of {result['views']} views (seed {result['seed']}, {result['device']})"
    lines = [f"{root}: cached against live answers of {asked}"]
    if result["views"] < result["planned_views"]:
        lines.append(
            f"  half-built: {result['views']} of {result['planned_views']} views are looked at"
        )
    for name, facts in result["answers"].items():
        lines.append(
            f"{_format_answer(name, facts)}; expected: cosine {result['least_cosines'][name]:g} or more"
        )
    limits = {term: Limit(**facts) for term, facts in result["limits"].items()}
    for name, terms in result["students"].items():
        for term, facts in terms.items():
            judged = (
                f"; expected: {_format_limit(limits[term])}"
                if name == result["judged"]
                else "; not judged"
            )
            lines.append(f"{_format_felt(name, term, facts)}{judged}")
    lines += [f"BEYOND ITS LIMIT: {failure}" for failure in result["failures"]] or [
        "faithful: every limit is kept"
    ]
    return "\n".join(lines)


def format_fidelity_line(result: dict) -> str:
    """What phase one says at its end."""
    felt = result["students"][result["judged"]]
    told = ", ".join(f"{term} {felt[term]['grad_cos']:.7f}" for term in result["limits"])
    return (
        f"fidelity of {result['samples']} samples: cosine of the gradients that a student {result['judged']} receives, "
        f"cached against live: {told}"
    )


def _format_answer(name: str, facts: dict) -> str:
    line = f"  {name:<7} {facts['encoding']:<8} cosine {facts['cosine']:.7f}, error {facts['relative']:.1e} of the values"
    line += f", at most {facts['max_abs']:.2g}"
    if "kl" in facts:
        line += f"; KL at T={facts['temperature']:g} {facts['kl']:.1e}, same class {100 * facts['agreement']:.2f} %"
    return line


def _format_felt(student: str, term: str, facts: dict) -> str:
    line = f"  student {student}: {term} loss differs by {facts['loss_rel']:.1e}, gradient's cosine {facts['grad_cos']:.7f}"
    return line + (
        f", projections' {facts['align_grad_cos']:.7f}" if "align_grad_cos" in facts else ""
    )


def _format_limit(limit: Limit) -> str:
    loss = "" if limit.loss_rel is None else f", loss within {limit.loss_rel:g}"
    return f"cosine {limit.grad_cos:g} or more{loss}"
