"""The data of each point of a gain study: which images have labels, as folders of links."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache.config.parser import make_config, merge
from kdcache.data.pictures import Sample, space_evenly
from kdcache.data.voc import VOC_DIR, find_samples
from kdcache.errors import Phrase, SettingsError, describe
from kdcache.storage.lock import hold_folder
from tests.study.gain.plan import HALVES, Study

LABELLED, UNLABELLED, VAL = "labelled", "others", "val"
"""Lists of each point's data set."""


@dataclass(frozen=True)
class Lists:
    """The samples of a data set in the order of its lists; `extra` have no labels, `named` are
    training samples by the name of their list.
    """

    train: list[Sample]
    val: list[Sample]
    extra: list[Sample]
    named: dict[str, list[Sample]]

    def divide(
        self, every: int | str, pictures: int | None = None
    ) -> tuple[list[Sample], list[Sample]]:
        """Every k-th training sample, or those of a list, with labels; all others without, or so
        many of them, evenly spaced.
        """
        labelled = self.named[every] if isinstance(every, str) else self.train[::every]
        kept = {sample.id for sample in labelled}
        others = [s for s in self.train if s.id not in kept] + self.extra
        if pictures is not None:
            others = [others[k] for k in space_evenly(len(others), pictures)] if pictures else []
        return labelled, others

    def halve_val(self, half: str) -> list[Sample]:
        """The first or the second half of val; the first is longer by one if they differ."""
        middle = (len(self.val) + 1) // 2
        return self.val[:middle] if half == HALVES[0] else self.val[middle:]


def read_lists(study: Study, root: Path) -> Lists:
    """The lists of the data set at `root`. Raises DataError."""
    dataset = make_config(
        study.settings, {"dataset": {"root": str(root), "download": False}}
    ).dataset
    train, val = (find_samples(dataset, study.lists[name]) for name in ("train", "val"))
    extra = study.lists.get("unlabelled")
    named = {name: find_samples(dataset, name) for name in study.every if isinstance(name, str)}
    return Lists(train, val, find_samples(dataset, extra) if extra else [], named)


def make_data_set(
    lists: Lists, root: Path, *, every: int | str, half: str, pictures: int | None = None
) -> None:
    """Make the data set of a point: links to the images, and to the labels that it has.

    Several processes may do so at once. Raises SettingsError if it has links to other files.
    """
    labelled, unlabelled = lists.divide(every, pictures)
    val, base = lists.halve_val(half), root / VOC_DIR
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True, exist_ok=True)
    with hold_folder(root, wait=True):
        for sample in [*labelled, *unlabelled, *val]:
            _link(base / "JPEGImages" / f"{sample.id}.jpg", sample.image_path)
        for sample in [*labelled, *val]:
            _link(base / "SegmentationClass" / f"{sample.id}.png", sample.label_path)
        for name, samples in ((LABELLED, labelled), (UNLABELLED, unlabelled), (VAL, val)):
            ids = "".join(f"{sample.id}\n" for sample in samples)
            (base / "ImageSets/Segmentation" / f"{name}.txt").write_text(ids, encoding="utf-8")


def make_data_settings(
    study: Study, lists: Lists, root: Path, *, every: int | str, pictures: int | None = None
) -> dict:
    """All settings of the data set of a point, nested."""
    ours = {"root": str(root), "train_split": LABELLED, "val_split": VAL, "download": False}
    if lists.divide(every, pictures)[1]:
        ours["unlabelled"] = UNLABELLED
    return merge(study.settings, {"dataset": ours})


def _link(path: Path, target: Path) -> None:
    target = target.absolute()
    if not path.is_symlink():
        path.symlink_to(target)
    elif path.readlink() != target:
        where, expected = Phrase(path.readlink()), Phrase(target)
        cure = "choose another --out for another data set"
        raise SettingsError(describe(path, field="link", found=where, expected=expected, cure=cure))
