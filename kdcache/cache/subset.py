"""Which shard groups' data are read where reading all would take too long."""

from __future__ import annotations

import math
import random
import re

from kdcache.cache.layout import Group
from kdcache.cache.verify import Choose
from kdcache.errors import refuse


def choose_subset(text: str | None) -> Choose:
    """A share like "5%", another one at every call, or part n of t like "2/7", the same at every call; None is all.

    Raises: SettingsError for anything else.
    """
    if text is None:
        return lambda groups: groups
    share, part = (
        re.fullmatch(r"(\d+(?:\.\d+)?)%", text),
        re.fullmatch(r"(\d{1,9})/(\d{1,9})", text),
    )
    if share and 0 < float(share[1]) <= 100:
        return lambda groups: _draw(groups, float(share[1]) / 100)
    if part and 1 <= int(part[1]) <= int(part[2]):
        return lambda groups: groups[int(part[1]) - 1 :: int(part[2])]
    raise refuse("--subset", text, "a share above 0% up to 100%, or N/T with N from 1 to T")


def _draw(groups: list[Group], share: float) -> list[Group]:
    """Drawn from the system's noise: repeated checks come to see every group."""
    return random.SystemRandom().sample(groups, math.ceil(len(groups) * share))
