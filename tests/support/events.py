"""Listeners of a training."""

from __future__ import annotations

from kdcache.training.run import TrainingEvents


class StopAfter(TrainingEvents):
    """Interrupts training after an epoch, as Ctrl-C would."""

    def __init__(self, epoch: int, *, name: str | None = None) -> None:
        self.epoch, self.name = epoch, name

    def epoch_finished(self, config, history, *, folder):
        if len(history) == self.epoch and self.name in (None, folder.name):
            raise KeyboardInterrupt
