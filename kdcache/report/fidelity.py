"""A fidelity measurement as text."""

from __future__ import annotations

from kdcache.fidelity.limits import Limit


def format_fidelity(result: dict, root: object) -> str:
    """For a person: answers, then what students feel, then what is beyond its limit."""
    lines = [
        f"{root}: cached against live answers of {result['samples']} samples (seed {result['seed']}, {result['device']})"
    ]
    lines += [_format_answer(name, facts) for name, facts in result["answers"].items()]
    for name, terms in result["students"].items():
        lines += [_format_felt(name, term, facts) for term, facts in terms.items()]
    limits = {term: Limit(**facts) for term, facts in result["limits"].items()}
    lines += [f"expected, {term}: {_format_limit(limit)}" for term, limit in limits.items()]
    lines += [f"BEYOND ITS LIMIT: {failure}" for failure in result["failures"]] or ["faithful: every limit is kept"]
    return "\n".join(lines)


def format_fidelity_line(result: dict) -> str:
    """What phase one says at its end."""
    worst = {term: min(felt[term]["grad_cos"] for felt in result["students"].values()) for term in result["limits"]}
    told = ", ".join(f"{term} {cosine:.7f}" for term, cosine in worst.items())
    return (
        f"fidelity of {result['samples']} samples: least cosine of a student's gradients, cached against live: {told}"
    )


def _format_answer(name: str, facts: dict) -> str:
    line = (
        f"  {name:<7} {facts['encoding']:<8} cosine {facts['cosine']:.7f}, error {facts['relative']:.1e} of the values"
    )
    line += f", at most {facts['max_abs']:.2g}"
    if "kl" in facts:
        line += f"; KL at T={facts['temperature']:g} {facts['kl']:.1e}, same class {100 * facts['agreement']:.2f} %"
    return line


def _format_felt(student: str, term: str, facts: dict) -> str:
    line = f"  student {student}: {term} loss differs by {facts['loss_rel']:.1e}, gradient's cosine {facts['grad_cos']:.7f}"
    return line + (f", projections' {facts['align_grad_cos']:.7f}" if "align_grad_cos" in facts else "")


def _format_limit(limit: Limit) -> str:
    loss = "" if limit.loss_rel is None else f", loss within {limit.loss_rel:g}"
    return f"cosine {limit.grad_cos:g} or more{loss}"
