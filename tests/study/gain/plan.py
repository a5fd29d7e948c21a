"""The file of a gain study: data set, arms, teachers, and what is trained in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdcache.config.parser import check_values, make_config, merge, unflatten
from kdcache.config.yaml_file import read_settings_file
from kdcache.errors import Phrase, SettingsError, describe

HALVES = ("choose", "report")
"""Of val, by the order of its list: settings are chosen on the first, figures are of the second."""
OF_UNLABELLED = ("train.unlabelled_share", "loss.pseudo", "loss.pseudo_threshold")
_PARTS = {
    "name": str, "lists": dict, "every": list, "settings": dict, "students": dict, "arms": dict,
    "baseline": str, "teachers": dict, "budgets": list, "picture": list, "goals": list,
    "grids": dict, "step_s": int | float,
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Points of a grid: all combinations, with the seeds 0 to `seeds` - 1."""

    every: list[int | str]
    arms: list[str]
    budgets: list[int]
    teachers: list[str]
    seeds: int


@dataclass(frozen=True)
class Goal:
    """What a point must gain over the baseline.

    Args:
        over: labels of the baseline.
        mean: least mean difference in points. low: of its interval, None if nothing is asked.
    """

    arm: str
    labels: int
    teacher: str
    budget: int
    over: int
    mean: float
    low: float | None = None


@dataclass(frozen=True)
class Study:
    """A gain study.

    Args:
        name: of the data set.
        lists: "train", "val", and "unlabelled" for images that nobody labelled.
        every: k of "the labels of every k-th training image", largest first; or the name of a list
            of training images.
        settings: of all arms, nested. students: name -> settings of one, by dotted name.
        arms: name -> settings of one, by dotted name, with those of the first student; for each
            other student once more, as STUDENT-NAME. pictures: arm -> how many images without a
            label it has, if not all; `pictures` in the file's arm.
        baseline: the arm that the others with the same student are compared with.
        teachers: name -> "knows", what it was fitted on, in words; "fit", settings if the study
            fits it, to the labels of each point, or to those of every "every"-th image.
        budgets: steps, the first is that of the picture. picture: the arms that are drawn.
        goals: what it must reach.
        grids: half of val -> blocks, the most important first.
        step_s: seconds of a step, a guess.
    """

    name: str
    lists: dict[str, str]
    every: list[int | str]
    settings: dict
    students: dict[str, dict]
    arms: dict[str, dict]
    pictures: dict[str, int]
    baseline: str
    teachers: dict[str, dict]
    budgets: list[int]
    picture: list[str]
    goals: list[Goal]
    grids: dict[str, list[Block]]
    step_s: float

    def choose_arm(self, arm: str, *, unlabelled: bool) -> dict | None:
        """The settings of an arm by dotted name, None if it learns nothing new there.

        Without unlabelled images what speaks of them is left out.
        """
        settings = self.arms[arm]
        if unlabelled:
            return settings
        rest = {name: value for name, value in settings.items() if name not in OF_UNLABELLED}
        taught_nothing = self.uses_teacher(settings) and not self.uses_teacher(rest)
        return None if taught_nothing else rest

    def find_same(self, arm: str, *, unlabelled: bool) -> list[str]:
        """The arms that are the same there, in the file's order, `arm` among them."""

        def find(arm: str) -> tuple:
            return self.pictures.get(arm), self.choose_arm(arm, unlabelled=unlabelled)

        return [other for other in self.arms if find(other) == find(arm)]

    def find_baseline(self, arm: str) -> str:
        """The arm that this one is compared with: the baseline with its student."""
        return _name_arm(self.students, _find_student(self.students, arm), self.baseline)

    def uses_teacher(self, settings: Mapping[str, object]) -> bool:
        """Whether an arm with these settings learns from the teacher."""
        return make_config(self.settings, unflatten(settings)).loss.uses_teacher


def read_study(path: Path) -> Study:
    """The study of a file. Raises SettingsError for whatever it does not understand."""
    given = read_settings_file(path)
    _check_parts(path, given, _PARTS)
    settings = unflatten(check_values(given["settings"]))
    students, arms, pictures = _read_arms(given)
    parts = {"settings": settings, "students": students, "arms": arms, "pictures": pictures}
    study = Study(**{**given, **parts, "goals": [], "grids": {}})
    grids = {
        half: [_read_block(path, study, block) for block in given["grids"].get(half, [])]
        for half in HALVES
    }
    goals = [_read_goal(path, study, goal) for goal in given["goals"]]
    for arm in arms.values():
        study.uses_teacher(arm)  # ranges
    _check_numbers(path, "every", [k for k in study.every if not isinstance(k, str)])
    _check_numbers(path, "budgets", study.budgets)
    _check_numbers(path, "pictures", list(pictures.values()), least=0)
    _check_known(path, "picture", study.picture, arms)
    _check_known(path, "baseline", [study.baseline], arms)
    _check_known(path, "half of val", given["grids"], HALVES)
    return Study(**{**vars(study), "goals": goals, "grids": grids})


def _read_arms(given: dict) -> tuple[dict, dict, dict]:
    """Students and arms, name -> settings, and how many unlabelled images an arm has."""
    students = {name: check_values(own) for name, own in given["students"].items()}
    arms, pictures = {}, {}
    for student, settings in students.items():
        for arm, own in given["arms"].items():
            name = _name_arm(students, student, arm)
            arms[name] = {**settings, **check_values({k: own[k] for k in own if k != "pictures"})}
            pictures |= {name: own["pictures"]} if "pictures" in own else {}
    return students, arms, pictures


def _name_arm(students: Iterable[str], student: str, arm: str) -> str:
    """Of an arm with one of the students: the first one's have the plain name."""
    return arm if student == next(iter(students)) else f"{student}-{arm}"


def _find_student(students: Iterable[str], arm: str) -> str:
    """The student of an arm with such a name."""
    first, *others = students
    return next((name for name in others if arm.startswith(f"{name}-")), first)


def make_fit_settings(study: Study, teacher: str) -> dict | None:
    """The settings that fit a teacher, nested; None if it is given as a file."""
    fit = study.teachers[teacher].get("fit")
    return None if fit is None else merge(study.settings, unflatten(check_values(fit)))


def _read_block(path: Path, study: Study, given: dict) -> Block:
    kinds = dict.fromkeys(("every", "arms", "budgets", "teachers"), list) | {"seeds": int}
    _check_parts(path, given, kinds)
    for name in ("every", "arms", "budgets", "teachers"):
        _check_known(path, name, given[name], getattr(study, name))
    _check_numbers(path, "seeds", [given["seeds"]])
    return Block(**given)


def _read_goal(path: Path, study: Study, given: dict) -> Goal:
    kinds = {"arm": str, "labels": int, "teacher": str, "budget": int, "over": int}
    kinds |= dict.fromkeys(("mean", "low"), int | float)
    _check_parts(path, {"low": 0, **given}, kinds)
    for name, known in (("arm", study.arms), ("teacher", study.teachers)):
        _check_known(path, name, [given[name]], known)
    return Goal(**given)


def _check_parts(path: Path, given: object, kinds: Mapping[str, object]) -> None:
    """Raise SettingsError unless `given` has these names with values of these types."""
    names = set(given) if isinstance(given, dict) else set()
    for name in sorted(names ^ set(kinds)):
        found = "there" if name in names else "missing"
        raise _refuse(path, name, found, f"these names: {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(given[name], kind):
            raise _refuse(path, name, repr(given[name])[:60], _name(kind))


def _name(kind: object) -> str:
    names = {list: "a list", dict: "names with values", str: "text", int: "a whole number"}
    return names.get(kind, "a number")


def _check_known(path: Path, field: str, found: object, known: object) -> None:
    for name in found:
        if name not in known:
            raise _refuse(path, field, repr(name), f"one of {', '.join(map(str, known))}")


def _check_numbers(path: Path, field: str, values: list, *, least: int = 1) -> None:
    for value in values:
        if type(value) is not int or value < least:
            raise _refuse(path, field, repr(value), f"whole numbers from {least}")


def _refuse(path: Path, field: str, found: str, expected: str) -> SettingsError:
    found, expected = Phrase(found), Phrase(expected)
    cure = "mend the study's file; tests/study/gain.yaml is one"
    return SettingsError(describe(path, field=field, found=found, expected=expected, cure=cure))
