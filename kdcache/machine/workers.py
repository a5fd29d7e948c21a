"""Which of several processes this one is, if torchrun or SLURM started it.

They share work without talking to each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kdcache.errors import SettingsError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Worker:
    """One of `count` processes, `rank` from 0; on its machine `local_rank` of `local_count`."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def leads(self) -> bool:
        """Whether it waits for what others hold, and does it if they die."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> list[Item]:
        """The items of its own stripe, in order."""
        return list(items[self.rank :: self.count])

    def others(self, items: Sequence[Item]) -> list[Item]:
        """The items of the other stripes, the next worker's first, each stripe from its end.

        An owner works from the front, so the two meet late.
        """
        stripes = [items[(self.rank + n) % self.count :: self.count] for n in range(1, self.count)]
        return [item for stripe in stripes for item in reversed(stripe)]


def find_worker(environment: Mapping[str, str] | None = None) -> Worker:
    """The worker that the environment describes.

    torchrun sets RANK, WORLD_SIZE, ...; SLURM sets SLURM_PROCID, ...; a job array multiplies the
    processes by its elements. Each element is a job that starts alone, perhaps on another machine;
    together they are the workers. Whatever the numbers are, a single worker does all the work in
    the end, and the last one does what is done once.

    Raises: SettingsError if the variables contradict each other.
    """
    given = os.environ if environment is None else environment
    if "RANK" in given and "WORLD_SIZE" in given:
        rank, count = _read(given, "RANK", "WORLD_SIZE")
    else:
        place = _read(given, "SLURM_PROCID", "SLURM_NTASKS") if "SLURM_PROCID" in given else (0, 1)
        element, elements = _read_array(given) if "SLURM_ARRAY_TASK_ID" in given else (0, 1)
        rank, count = element * place[1] + place[0], elements * place[1]
    local_rank = _number(given, "LOCAL_RANK" if "LOCAL_RANK" in given else "SLURM_LOCALID")
    known = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in given else "SLURM_NTASKS_PER_NODE"
    return Worker(rank, count, local_rank, max(_number(given, known, unset=1), local_rank + 1))


def _read(given: Mapping[str, str], rank_name: str, count_name: str) -> tuple[int, int]:
    rank, count = _number(given, rank_name), _number(given, count_name, unset=1)
    if not 0 <= rank < count:
        expected = f"0 to {count - 1}, as {count_name} is {count}"
        raise SettingsError(
            f"environment: {rank_name} is {rank}, expected {expected}; unset both or mend them"
        )
    return rank, count


def _read_array(given: Mapping[str, str]) -> tuple[int, int]:
    """Place and number of the elements of a job array, whose ids may start anywhere, with steps."""
    names = {"SLURM_ARRAY_TASK_MIN": 0, "SLURM_ARRAY_TASK_STEP": 1, "SLURM_ARRAY_TASK_COUNT": 1}
    least, step, count = (_number(given, name, unset=unset) for name, unset in names.items())
    element = (_number(given, "SLURM_ARRAY_TASK_ID") - least) // max(step, 1)
    # for an array like 1,7,9 SLURM does not say which place 7 has: any place will do, since each
    # worker takes what is left
    return element % max(count, 1), max(count, 1)


def _number(given: Mapping[str, str], name: str, *, unset: int = 0) -> int:
    text = given.get(name, str(unset))
    if not text.isdecimal():
        raise SettingsError(
            f"environment: {name} is {text!r}, expected a whole number; unset it or mend it"
        )
    return int(text)
