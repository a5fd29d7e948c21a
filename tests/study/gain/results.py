"""Results of a gain study: a line for each finished run, in its folder and in the repository."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdcache import disk
from kdcache.errors import SettingsError, one_line
from kdcache.storage.lock import hold_folder
from kdcache.training.run_folder import is_finished, read_history, read_result
from tests.study.gain.jobs import Job, Place, find_key
from tests.study.gain.plan import Study

RECORDED = Path(__file__).parents[1] / "gain_results.jsonl"
"""The results behind the figures of docs/results.md."""


def write_results(study: Study, jobs: Iterable[Job], *, place: Place) -> None:
    """Write the lines of all finished runs."""
    place.folder.mkdir(parents=True, exist_ok=True)
    with hold_folder(place.folder, wait=True):  # several processes write it
        finished = [job for job in jobs if is_finished(place.run_folder(job))]
        write_lines(place.results, [make_line(study, job, place=place) for job in finished])


def make_line(study: Study, job: Job, *, place: Place) -> dict:
    """What a finished run has given. Raises TrainingError if its files are damaged."""
    folder = place.run_folder(job)
    result = read_result(folder)
    last = read_history(folder, result)[-1]
    return {
        **_identify(study, job, place=place),
        "last_miou": round(result["last_miou"], 5),
        "best_miou": round(result["miou"], 5),
        "teacher_miou": _round(result["teacher_miou"]),
        "per_class": [_round(iou) for iou in last["per_class_iou"]],
        "seconds": round(result["seconds"], 1),
        "steps": job.steps,
        "settings": job.settings,
    }


def read_lines(path: Path) -> list[dict]:
    """The lines of a file, none if it is missing. Raises SettingsError if it is damaged."""
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        list(map(find_key, lines))
        return lines
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{path}: results are unreadable ({one_line(error)}); remove the file, the same "
            "command writes it again"
        ) from None


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    """Replace the file."""
    disk.replace_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def record(lines: Sequence[dict], path: Path = RECORDED) -> None:
    """Add lines to those of the repository, in place of older ones of the same runs."""
    both = {find_key(line): line for line in [*read_lines(path), *lines]}
    write_lines(path, [both[key] for key in sorted(both)])


def find_unrecorded(study: Study, jobs: Iterable[Job], *, place: Place) -> list[Job]:
    """The runs that have no line in the repository; another machine may have trained them."""
    recorded = {find_key(line) for line in read_lines(RECORDED)}
    return [job for job in jobs if find_key(_identify(study, job, place=place)) not in recorded]


def _identify(study: Study, job: Job, *, place: Place) -> dict:
    """The part of a run's line that tells it from the others."""
    return {
        "data": study.name,
        "half": place.half,
        "arm": job.arm,
        "also": list(job.also),
        "labels": job.labels,
        "teacher": job.teacher,
        "budget": job.budget,
        "seed": job.seed,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
