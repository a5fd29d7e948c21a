"""How faithful each encoding must be, measured by the student after some steps; README, "Size", says what it means."""

from __future__ import annotations

from dataclasses import dataclass

FAITHFULNESS = ("float16", "int8", "lowrank")  # most faithful first


@dataclass(frozen=True)
class Limit:
    """Least cosine of gradients, and largest relative change of the loss (None: only reported)."""

    grad_cos: float
    loss_rel: float | None = None


EXACT = Limit(
    grad_cos=0.999999, loss_rel=1e-4
)  # the smaller a loss, the more of it rounding is: 1e-7 to 2e-5 were seen
EXACT_NOT_FLOAT32 = Limit(
    grad_cos=0.999, loss_rel=1e-2
)  # autocast, or a GPU: asked again, the teacher itself differs
LIMITS = {
    "kd": {"float16": EXACT, "int8": Limit(0.9999), "lowrank": Limit(0.9999)},
    "feature": {"float16": EXACT, "int8": Limit(0.9999), "lowrank": Limit(0.995)},
}

# Least mean cosine of a position's channels, each answer by itself: gradients of all levels together hide one that is lost. Of
# CamVid's compact keeps 0.966 to 0.98; eight coefficients for layer4 kept 0.875, and the gradients were within their limit.
LEAST_COSINES = {"float16": 0.999999, "int8": 0.999, "lowrank": 0.9}
NOT_FLOAT32_COSINE = 0.999


def find_limits(kinds: dict[str, str], *, exact: bool) -> dict[str, Limit]:
    """The limit of each term, by the least faithful encoding it reads.

    Args:
        kinds: logits and levels -> kind of encoding. exact: whether the same question gets the same answer (float32 on a CPU).
    """
    used = {
        "kd": [kinds["logits"]],
        "feature": [kind for name, kind in kinds.items() if name != "logits"],
    }
    limits = {}
    for term, found in used.items():
        if found:
            limit = LIMITS[term][max(found, key=FAITHFULNESS.index)]
            limits[term] = limit if exact else _loosen(limit)
    return limits


def find_least_cosines(kinds: dict[str, str], *, exact: bool) -> dict[str, float]:
    """Of logits and each level."""
    least = {name: LEAST_COSINES[kind] for name, kind in kinds.items()}
    return (
        least
        if exact
        else {name: min(cosine, NOT_FLOAT32_COSINE) for name, cosine in least.items()}
    )


def find_blurred(answers: dict[str, dict], least: dict[str, float]) -> list[str]:
    """Answers that are below their least cosine, in words."""
    return [
        f"cached {name} have a cosine of {answers[name]['cosine']:.7f} with live ones, expected {cosine} or more"
        for name, cosine in least.items()
        if not answers[name]["cosine"] >= cosine
    ]


def _loosen(limit: Limit) -> Limit:
    """Never stricter than what is asked of an exact cache there."""
    loss_rel = None if limit.loss_rel is None else max(limit.loss_rel, EXACT_NOT_FLOAT32.loss_rel)
    return Limit(min(limit.grad_cos, EXACT_NOT_FLOAT32.grad_cos), loss_rel)


def find_failures(felt: dict[str, dict], limits: dict[str, Limit]) -> list[str]:
    """What is beyond its limit, in words; `felt` has `grad_cos` and `loss_rel` of each term."""
    failures = []
    for term, limit in limits.items():
        facts = felt[term]
        if not facts["grad_cos"] >= limit.grad_cos:
            failures.append(
                f"{term} gradient's cosine is {facts['grad_cos']:.7f}, expected {limit.grad_cos} or more"
            )
        if limit.loss_rel is not None and not facts["loss_rel"] <= limit.loss_rel:
            failures.append(
                f"{term} loss differs by {facts['loss_rel']:.1e} of itself, expected {limit.loss_rel} or less"
            )
    return failures
