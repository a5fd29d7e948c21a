"""What happens to Ray's actors in tests: the quick teacher, and a folder of traps that whoever asks
it may step into.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from kdcache.cache.writer import write_group
from kdcache.precompute import build
from kdcache.precompute import group as shard_group
from tests.support import quick

FOLDER = "KDCACHE_TEST_TRAPS"  # environment variable
ONCE, ALWAYS, COMMITTED = "die-once", "die-always", "die-behind-a-commit"
STRANGER = "other-weights"  # names of files


class TrappedTeacher(quick.QuickTeacher):
    """Its process is killed in the middle of a group, as by a spot machine that goes away."""

    num_asked = 0

    def __call__(self, image_NHWC: torch.Tensor) -> dict[str, torch.Tensor]:
        self.num_asked += 1
        if self.num_asked == 2 and _steps_into(ONCE) or (_folder() / ALWAYS).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(image_NHWC)


def make_trapped_teacher(config: object, *, num_classes: int, levels: list[str], device: object):
    """In place of kdcache.models.teacher.build_teacher."""
    weight = 2.0 if (_folder() / STRANGER).exists() else 1.0
    return TrappedTeacher(num_classes, levels), {"quick": torch.full((1,), weight)}


def write_and_perhaps_die(*args: object, **options: object) -> int:
    """In place of kdcache.cache.writer.write_group: nobody hears that the group is there."""
    size_bytes = write_group(*args, **options)
    if _steps_into(COMMITTED):
        os.kill(os.getpid(), signal.SIGKILL)
    return size_bytes


def prepare_actor() -> None:
    """Before anything else in each process of Ray."""
    build.build_teacher = make_trapped_teacher
    shard_group.write_group = write_and_perhaps_die
    os.fsync = lambda descriptor: None


def _folder() -> Path:
    return Path(os.environ[FOLDER])


def _steps_into(name: str) -> bool:
    """Whether the trap is there; only the first finds it."""
    try:
        (_folder() / name).unlink()
    except FileNotFoundError:
        return False
    return True
