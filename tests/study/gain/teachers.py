"""The teachers of a gain study: given as files, or fitted to the labels of a point."""

from __future__ import annotations

from pathlib import Path

from kdcache import durable
from kdcache.config.parser import make_config, merge
from kdcache.errors import Phrase, SettingsError, describe
from kdcache.models.fit import fit_teacher
from kdcache.progress import Progress, Say
from kdcache.storage.lock import hold_folder
from tests.study.gain.jobs import Job, Place
from tests.study.gain.plan import HALVES, Study, make_fit_settings
from tests.study.gain.points import Lists, make_data_set, make_data_settings


def find_teachers(study: Study, words: list[str], out: Path) -> dict[str, str]:
    """Name -> file of each teacher, in the order of the study's file.

    Those that are neither given nor fitted are left out.

    Args:
        words: NAME=FILE, or FILE for the first teacher. out: fitted ones go there.

    Raises: SettingsError for an unknown name, a missing file, or none for the first teacher.
    """
    first, given = next(iter(study.teachers)), {}
    for word in words:
        name, is_named, path = word.partition("=")
        name, path = (name, path) if is_named else (first, word)
        _check_name(study, name)
        if "{labels}" not in path and not Path(path).is_file():
            _refuse("--teacher", path, "a file of weights", "give one that is there")
        given[name] = path
    if first not in given:
        _refuse("--teacher", "missing", f"the weights of teacher {first}", "give its file")
    fitted = {
        name: str(out / "teachers" / f"{name}-{{labels}}" / "teacher.pth")
        for name in study.teachers
        if "fit" in study.teachers[name]
    }
    both = fitted | given
    return {name: both[name] for name in study.teachers if name in both}


def make_teacher(
    study: Study, name: str, job: Job, *, place: Place, lists: Lists, progress: Progress, say: Say
) -> Path:
    """The weights of a run's teacher, which is fitted first if need be.

    Its own validation images are those of the half on which settings are chosen. Raises
    FolderInUseError if another process fits it.
    """
    path, settings = place.teacher_file(name, job.labels), make_fit_settings(study, name)
    if path.is_file() or settings is None:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold_folder(path.parent):
        if not path.is_file():
            say(f"teacher: {path}")
            _fit(study, settings, path, job, place=place, lists=lists, progress=progress, say=say)
    return path


def _fit(
    study: Study, settings: dict, path: Path, job: Job, *, place: Place, lists: Lists,
    progress: Progress, say: Say,
) -> None:  # fmt: skip
    root = Place(place.out, HALVES[0], {}).data_root(job.labels)
    make_data_set(lists, root, every=job.every, half=HALVES[0])
    data = make_data_settings(study, lists, root, every=job.every)
    data["dataset"].pop("unlabelled", None)
    unfinished = path.with_name("unfinished.pth")
    unfinished.unlink(missing_ok=True)  # of a fit that was stopped: this one begins from scratch
    ours = {"fit": {"out": str(unfinished)}, "teacher": {"weights": str(unfinished)}}
    fit_teacher(make_config(merge(settings, data), ours), progress=progress, say=say)
    durable.rename(unfinished, path)


def _check_name(study: Study, name: str) -> None:
    if name not in study.teachers:
        expected = f"one of {', '.join(study.teachers)}"
        _refuse("teacher", name, expected, "write --teacher NAME=FILE, or FILE for the first")


def _refuse(field: str, found: str, expected: str, cure: str) -> None:
    found = Phrase(found) if found == "missing" else found
    raise SettingsError(
        describe("study", field=field, found=found, expected=Phrase(expected), cure=cure)
    )
