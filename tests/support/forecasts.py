"""Settings like others, and teachers that answer otherwise."""

from __future__ import annotations

from dataclasses import replace

from kdcache.config import Config
from tests.support import quick


def encode(config: Config, encoding: object, codec: str = "auto") -> Config:
    """With another encoding and codec."""
    return replace(config, cache=replace(config.cache, encoding=encoding, codec=codec))


def group(config: Config, shard_samples: int) -> Config:
    """With other shard groups."""
    return replace(config, cache=replace(config.cache, shard_samples=shard_samples))


def answer_otherwise(monkeypatch, change) -> None:
    """`change(number of the question, answers)` in place of the stand-in's answers; the first
    question is number 1.
    """
    asked = iter(range(1, 100_000))

    def ask(self, image_NHWC, real=quick.QuickTeacher.__call__):
        return change(next(asked), real(self, image_NHWC))

    monkeypatch.setattr(quick.QuickTeacher, "__call__", ask)


def enlarge(monkeypatch, factor: float) -> None:
    """Features, not scores."""
    answer_otherwise(
        monkeypatch,
        lambda _, answer: {k: v if k == "logits" else factor * v for k, v in answer.items()},
    )
