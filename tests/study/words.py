"""Lists on the command lines of the studies: `0,1,2` and `labels,recipe`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def read_numbers(least: int) -> Callable[[str], tuple[int, ...]]:
    """For the `type` of an argument: different whole numbers from `least`, with commas."""

    def read(text: str) -> tuple[int, ...]:
        words = text.split(",")
        fits = all(word.isdecimal() and int(word) >= least for word in words)
        if not fits or len(set(words)) < len(words):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no list of different numbers from {least}, with commas between them"
            )
        return tuple(int(word) for word in words)

    return read


def read_names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """For the `type` of an argument: some of the known names, with commas."""

    def read(text: str) -> tuple[str, ...]:
        words = text.split(",")
        unknown = [word for word in words if word not in known]
        if unknown or len(set(words)) < len(words):
            raise argparse.ArgumentTypeError(
                f"{text!r} has {unknown or 'a name twice'}, expected some of {','.join(known)}"
            )
        return tuple(words)

    return read
