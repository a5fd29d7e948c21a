"""The finished runs of some folders, and a line for each folder that is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kdcache.comparison.runs import Run, read_run
from kdcache.errors import Phrase, SettingsError, TrainingError, describe
from kdcache.training.folder import RESULT, SETTINGS

DEPTH = 2  # a folder of runs, or of folders of runs


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs in `paths`, run folders or folders that hold some, each once; and what is left out, a line each.

    Raises: SettingsError for a path that is not there.
    """
    runs, left_out = {}, []
    for path in paths:
        if not path.exists():
            found, expected = Phrase("missing"), Phrase("a run folder, or a folder of runs")
            raise SettingsError(
                describe(
                    path,
                    field="path",
                    found=found,
                    expected=expected,
                    cure="give one that is there",
                )
            )
        for folder, reason in _walk(path, DEPTH):
            try:
                if reason is None:
                    runs[folder.resolve()] = read_run(folder)
            except TrainingError as error:
                reason = str(error)
            left_out += [reason] if reason else []
    return list(runs.values()), list(dict.fromkeys(left_out))


def _walk(path: Path, depth: int) -> Iterator[tuple[Path, str | None]]:
    """Folders of finished runs, and others with the reason why they are none."""
    if (path / RESULT).is_file() and (path / SETTINGS).is_file():
        yield path, None
    elif (path / SETTINGS).is_file():
        yield (
            path,
            f"{path}: run is not finished (it has no {RESULT}); go on with it by --run.resume, or start its grid again",
        )
    else:
        inner = (
            [pair for folder in _list_folders(path) for pair in _walk(folder, depth - 1)]
            if depth
            else []
        )
        of_runs = any((folder / SETTINGS).is_file() for folder, _ in inner)
        yield from inner if of_runs else [(path, f"{path}: no run folder (it has no {SETTINGS})")]


def _list_folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:  # a file, or a folder that is not ours to read: no run
        return []
