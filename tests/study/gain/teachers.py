"""The teachers of a gain study: given as files, or fitted to the labels of a point."""

from __future__ import annotations

from pathlib import Path

from kdcache.config.parser import make_config, merge
from kdcache.errors import Phrase, SettingsError, describe
from kdcache.models.fit import fit_teacher
from kdcache.progress import Progress, Say
from kdcache.storage.lock import FolderInUseError, take_file_lease
from tests.study.gain.jobs import Job, Place
from tests.study.gain.plan import HALVES, Study, make_fit_settings
from tests.study.gain.points import Lists, make_data_set, make_data_settings


def find_teachers(study: Study, words: list[str], out: Path) -> dict[str, str]:
    """Name -> file of each teacher, in the order of the study's file.

    Those that are neither given nor fitted by the study are left out.

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
    both = _name_fitted(study, out) | given
    if first not in both:
        _refuse("--teacher", "missing", f"the weights of teacher {first}", "give its file")
    return {name: both[name] for name in study.teachers if name in both}


def _name_fitted(study: Study, out: Path) -> dict[str, str]:
    """The files of the teachers that the study fits."""
    folders = {
        name: name if "every" in teacher else f"{name}-{{labels}}"
        for name, teacher in study.teachers.items()
        if "fit" in teacher
    }
    return {
        name: str(out / "teachers" / folder / "teacher.pth") for name, folder in folders.items()
    }


def make_teacher(
    study: Study, name: str, job: Job, *, place: Place, lists: Lists, progress: Progress, say: Say
) -> Path:
    """The weights of a run's teacher, which is fitted first if need be.

    Its own validation images are those of the half on which settings are chosen. A fit that was
    stopped goes on. Raises FolderInUseError if another process fits it.
    """
    path, settings = place.teacher_file(name, job.labels), make_fit_settings(study, name)
    if path.is_file() or settings is None:
        return path
    every = study.teachers[name].get("every", job.every)
    path.parent.mkdir(parents=True, exist_ok=True)
    with take_file_lease(path.with_name("claim"), wait=False) as lease:
        if lease is None:
            raise FolderInUseError(f"{path}: another process fits it")
        if not path.is_file():  # meanwhile
            data = _make_data(study, every, place=place, lists=lists)
            ours = {"fit": {"out": str(path)}, "teacher": {"weights": str(path)}}  # from scratch
            config = make_config(merge(settings, data), ours)
            say(str(fit_teacher(config, progress=progress, say=say)))
    return path


def _make_data(study: Study, every: int, *, place: Place, lists: Lists) -> dict:
    """The settings of a data set with these labels, which is made."""
    root = Place(place.out, HALVES[0], {}).data_root(str(len(lists.divide(every)[0])))
    make_data_set(lists, root, every=every, half=HALVES[0])
    data = make_data_settings(study, lists, root, every=every)
    data["dataset"].pop("unlabelled", None)
    return data


def _check_name(study: Study, name: str) -> None:
    if name not in study.teachers:
        expected = f"one of {', '.join(study.teachers)}"
        _refuse("teacher", name, expected, "write --teacher NAME=FILE, or FILE for the first")


def _refuse(field: str, found: str, expected: str, cure: str) -> None:
    found = Phrase(found) if found == "missing" else found
    raise SettingsError(
        describe("study", field=field, found=found, expected=Phrase(expected), cure=cure)
    )
