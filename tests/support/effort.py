"""How much a test tries: `make test` meets every kind of thing, `make nightly` every single one.

A test that takes `effort` runs twice: as "quick" in `make test`, as "full" in `make nightly`. Each
is a hypothesis profile, too.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

QUICK, FULL = "quick", "full"
_SAME = {"derandomize": True, "deadline": None, "database": None}
settings.register_profile(QUICK, max_examples=100, **_SAME)
settings.register_profile(FULL, max_examples=1000, **_SAME)

quick_and_full = pytest.mark.parametrize(
    "effort", [QUICK, pytest.param(FULL, marks=pytest.mark.nightly)]
)


def get_settings(effort: str, *, share: float = 1.0) -> settings:
    """The hypothesis profile of an effort; `share` of its examples for what is slow or has few
    kinds.
    """
    profile = settings.get_profile(effort)
    return settings(profile, max_examples=round(profile.max_examples * share))


def choose_steps(names: list[str], effort: str) -> list[int]:
    """Numbers of the steps to meet: all of them, or the first and the last of each kind and every
    tenth.
    """
    if effort == FULL:
        return list(range(len(names)))
    last = {name: step for step, name in enumerate(names)}
    first = {name: step for step, name in reversed(list(enumerate(names)))}
    return sorted({*first.values(), *last.values(), *range(0, len(names), 10)})
