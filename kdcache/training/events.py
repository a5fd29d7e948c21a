"""Callbacks of training, for printing or counting; the library itself prints nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.config import Config

if TYPE_CHECKING:
    from kdcache.training.run import Data, PlannedRun


class TrainingEvents:
    """Does nothing; a subclass overrides the events it wants.

    Only the process that leads calls it. What a method raises ends the run, as an interruption
    would: every epoch before it is saved.
    """

    def said(self, text: str) -> None:
        """A line of text: the device, whether the student is compiled, which folder is next."""

    def epoch_finished(self, config: Config, history: list[dict], *, folder: Path) -> None:
        """An epoch is trained, validated and saved.

        Args:
            config: settings of the run. folder: of the run.
            history: an entry per epoch so far, as in metrics.jsonl; the finished one is the last.
        """

    def run_finished(self, run: PlannedRun, data: Data, *, is_changed: bool) -> None:
        """A run of a grid is finished, now or by an earlier command.

        Args:
            data: the opened cache. is_changed: its result.json was completed with a baseline that
                was trained after it.
        """
