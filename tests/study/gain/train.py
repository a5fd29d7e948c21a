"""The runs of a gain study, one after the other; several processes share them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from kdcache import disk
from kdcache.cache.manifest import find_manifest
from kdcache.config.parser import make_config, merge, unflatten
from kdcache.errors import TrainingError
from kdcache.precompute.build import build_cache
from kdcache.progress import Progress, Say, format_time
from kdcache.storage import open_storage
from kdcache.storage.lock import FolderInUseError, take_file_lease
from kdcache.training.distill import distill
from kdcache.training.run_folder import BEST, LAST, is_finished
from tests.study.gain.jobs import Job, Place
from tests.study.gain.memory import remember_answers
from tests.study.gain.plan import Study
from tests.study.gain.points import Lists, make_data_set, make_data_settings
from tests.study.gain.results import write_results
from tests.study.gain.teachers import make_teacher

WAIT_S = 2.0


def run_jobs(
    study: Study,
    jobs: Sequence[Job],
    *,
    place: Place,
    lists: Lists,
    every_job: Sequence[Job],
    progress: Progress,
    say: Say,
) -> list[Job]:
    """Train what is not finished; runs and teachers of other processes are waited for at the end.

    Args:
        every_job: of the whole grid; the results of those that are finished are written.

    Returns: the runs that failed. Raises: KdcacheError that would end each of them.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    options = {"place": place, "lists": lists, "progress": progress, "say": say}
    failed, left = [], list(jobs)
    while left:
        jobs, left, num_trained = left, [], 0
        for job in jobs:
            try:
                if _claim(study, job, **options):
                    num_trained += 1
                    write_results(study, every_job, place=place)
            except FolderInUseError:
                left.append(job)
            except TrainingError as error:
                say(f"{job.name}: {error}")
                failed.append(job)
        if left and not num_trained:
            time.sleep(WAIT_S)  # others end, or die and leave their runs to this process
    write_results(study, every_job, place=place)
    return failed


def _claim(
    study: Study, job: Job, *, place: Place, lists: Lists, progress: Progress, say: Say
) -> bool:
    """Train a run that nobody has finished.

    Returns: whether it was trained here. Raises: FolderInUseError if another process trains it or
        fits its teacher.
    """
    if is_finished(place.run_folder(job)):
        return False
    with take_file_lease(place.folder / "claims" / job.name, wait=False) as lease:
        if lease is None:
            raise FolderInUseError(f"{job.name}: another process trains it")
        if is_finished(place.run_folder(job)):  # meanwhile
            return False
        build_point(study, job, place=place, lists=lists, progress=progress, say=say)
        train_job(study, job, place=place, say=say)
    return True


def build_point(
    study: Study, job: Job, *, place: Place, lists: Lists, progress: Progress, say: Say
) -> None:
    """The data set and the cache of a run, unless they are whole; several processes may do so."""
    path, root = place.cache_path(job), place.data_root(job.data)
    seen = {"every": job.every, "pictures": job.pictures}
    make_data_set(lists, root, **seen, half=place.half)
    if _is_whole(path):
        return
    name = job.cached
    weights = make_teacher(study, name, job, place=place, lists=lists, progress=progress, say=say)
    ours = {
        "teacher": {"weights": str(weights)},
        "cache": {"path": str(path), "levels": []},
    }
    say(f"cache: {path}")
    given = make_data_settings(study, lists, root, **seen)
    with remember_answers(path.parent):
        build_cache(make_config(given, ours), progress=progress)


def train_job(study: Study, job: Job, *, place: Place, say: Say) -> None:
    """Train one run or go on with it; its checkpoints go once it is finished."""
    folder, root = place.run_folder(job), open_storage(place.cache_path(job))
    result = distill(make_run_settings(study, job, place=place), root=root)
    for name in (BEST, LAST):
        disk.remove(folder / name)
    miou, took = result.student["last_miou"], format_time(result.student["seconds"])
    say(f"{job.name}: mIoU {miou:.4f} on the half {place.half}, {took}")


def make_run_settings(study: Study, job: Job, *, place: Place) -> dict:
    """The settings of one run, nested. Nothing is compiled, so that all arms round alike.

    Those of views and teacher are among them: a cache of others is then refused.
    """
    weights = place.teacher_file(job.cached, job.labels)
    run = {"dir": str(place.run_folder(job)), "resume": True, "baseline": False, "track": "none"}
    ours = {
        "teacher": {"weights": str(weights)},
        "train": {"seed": job.seed, "epochs": job.epochs, "compile": "off"},
        "run": run,
    }
    return merge(merge(study.settings, unflatten(job.settings)), ours)


def _is_whole(path: Path) -> bool:
    manifest = find_manifest(open_storage(path))
    return manifest is not None and all(
        manifest.complete_views[split] >= layout.num_views
        for split, layout in manifest.layouts.items()
    )
