"""A cache as batches for your own training loop: images, labels and teacher outputs on a device.

Letters: N batch, K classes, C channels, H, W size of the images, h, w of a coarser grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor

from kdcache.cache.encodings import Targets, make_target
from kdcache.cache.layout import UNLABELLED, ArraySpec
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.settings import read_settings
from kdcache.config import LEVELS, TrainConfig
from kdcache.config.parser import make_config
from kdcache.errors import refuse
from kdcache.losses.target import Target
from kdcache.machine.devices import choose_device
from kdcache.models.inputs import normalize_images
from kdcache.progress import format_table
from kdcache.storage import Storage, open_given
from kdcache.training.batches import BatchReader
from kdcache.training.learner import find_teacher_channels, open_targets
from kdcache.training.order import plan_epoch, plan_mixed_epoch, split_batches
from kdcache.training.samples import (
    LABELLED,
    JoinedReader,
    choose_residency,
    find_labelled,
    find_need,
)

MOST_NAMES = 20  # of classes, in a notebook


@dataclass(frozen=True)
class TaughtBatch:
    """Samples with the teacher's outputs; the tensors are not reused by later batches."""

    ids: list[str]
    images: Tensor
    """float32 [N, 3, H, W], normalised as torchvision's backbones expect it."""
    labels: Tensor
    """int64 [N, H, W]: the class of each pixel, 255 for pixels without one."""
    answers: dict[str, Target]
    """Teacher outputs as they are stored, by name: "logits" and the levels."""
    labelled: Tensor | None = None
    """bool [N]: which samples have a label; None: all. The others are 255 everywhere."""

    @property
    def teacher(self) -> dict:
        """Keyword arguments of `KnowledgeDistillationLoss`.

        Used as `loss(logits, features, batch.labels, **batch.teacher)`.
        """
        levels = {name: answer for name, answer in self.answers.items() if name in LEVELS}
        given = {"teacher_NKHW": self.answers.get("logits"), "teacher_features": levels}
        return given if self.labelled is None else {**given, "labelled_N": self.labelled}

    @cached_property
    def logits(self) -> Tensor:
        """The teacher's logits before upsampling, float32 [N, K, h, w].

        Raises: KeyError if logits were not requested.
        """
        return self.answers["logits"].decode()

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """level -> teacher features, float32 [N, C, h, w].

        Features of a lowrank level are scaled to length 1 at each position.
        """
        return {name: answer.decode() for name, answer in self.answers.items() if name in LEVELS}


class CachedSplit:
    """The training or the validation part of a cache.

    Args:
        reader: of "train" or "val".
    """

    def __init__(self, reader: CacheReader | JoinedReader) -> None:
        self.reader, self.sample_ids = reader, reader.sample_ids
        self.name = reader.layout.split
        self.num_samples, self.num_views = self.reader.layout.num_samples, self.reader.num_views
        stored = {spec.name for spec in self.reader.layout.arrays}
        self.answers = tuple(name for name in ("logits", *LEVELS) if name in stored)
        """Names of the cached teacher outputs."""

    def __len__(self) -> int:
        """Number of samples."""
        return self.num_samples

    def batches(
        self,
        *,
        batch_size: int,
        epoch: int = 0,
        seed: int = 0,
        answers: Sequence[str] | None = None,
        device: str = "auto",
    ) -> Iterator[TaughtBatch]:
        """Every sample once, in one of its views; batches are read ahead while you compute.

        The order of "train" depends on (seed, epoch) only, and views rotate from epoch to epoch;
        "val" is in stored order.

        Args:
            batch_size: 1 or more. The last batch may be smaller; a single last sample of "train"
                joins the batch before it.
            epoch: from 0.
            answers: which of `self.answers` to read (default: all); others are not read from disk.
            device: auto, cpu, cuda or cuda:N.

        Raises: SettingsError if an argument is out of range; CacheCorruptError if stored bytes
        differ from the committed ones.
        """
        batch_size = _read_whole("batch_size", batch_size, least=1)
        epoch, seed = _read_whole("epoch", epoch), _read_whole("seed", seed)
        plan = self._plan(batch_size, seed, epoch)
        answers = (answers,) if isinstance(answers, str) else answers
        wanted = self.answers if answers is None else tuple(answers)
        unknown = [name for name in wanted if name not in self.answers]
        if unknown:
            raise refuse("answers", unknown[0], f"some of {', '.join(self.answers)}")
        place = choose_device(device, field="device")
        targets = open_targets(self.reader, place)
        reader = self._open_reader(wanted, targets, batch_size, place)
        return (
            _serve(batch.arrays, batch.sample_ids, wanted, targets) for batch in reader.read(plan)
        )

    def _plan(self, batch_size: int, seed: int, epoch: int) -> list:
        if self.name == "val":
            return split_batches([(0, sample) for sample in range(self.num_samples)], batch_size)
        return plan_epoch(
            num_samples=self.num_samples,
            num_views=self.num_views,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
        )

    def _open_reader(
        self, answers: Sequence[str], targets: Targets, batch_size: int, device: torch.device
    ) -> BatchReader:
        stored = {spec.name for spec in self.reader.layout.arrays}
        arrays = [name for name in ("image", "label", LABELLED) if name in stored]
        arrays += [array for name in answers for array in targets.list_arrays(name)]
        choice = choose_residency(
            "auto", [find_need(self.reader, arrays)], device=torch.device("cpu")
        )  # GPU memory is yours
        return BatchReader(
            self.reader, arrays=arrays, batch_size=batch_size, device=device, residency=choice.kind
        )


class MixedSplit(CachedSplit):
    """Training samples with and without labels, in batches of both; see `Cache.mix`.

    Args:
        reader: of both kinds of samples.
        unlabelled_share: of the rows of a batch, above 0 and below 1.
    """

    def __init__(self, reader: JoinedReader, unlabelled_share: float) -> None:
        super().__init__(reader)
        self.num_labelled, self.num_unlabelled = reader.num_labelled, reader.num_unlabelled
        self.unlabelled_share = unlabelled_share

    def _plan(self, batch_size: int, seed: int, epoch: int) -> list:
        rows = TrainConfig(batch_size=batch_size, unlabelled_share=self.unlabelled_share)
        return plan_mixed_epoch(
            num_labelled=self.num_labelled,
            num_unlabelled=self.num_unlabelled,
            unlabelled_rows=rows.unlabelled_rows,
            num_views=self.num_views,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
        )


class Cache:
    """An opened cache; `train` and `val` serve batches. Also a context, as a file is.

    Args:
        root: a folder, a packed .h5 file or the address of a bucket.

    Raises: CacheError if there is no cache, or it is damaged or incomplete.
    """

    def __init__(self, root: Storage | str | Path) -> None:
        self.root = open_given(root)
        self.manifest = read_manifest(self.root)
        self._labelled = CacheReader(self.root, self.manifest, "train")
        self.train = CachedSplit(self._labelled)
        self.val = CachedSplit(CacheReader(self.root, self.manifest, "val"))
        dataset = make_config({"dataset": read_settings(self.manifest)["dataset"]}).dataset
        self.num_classes, self.class_names = dataset.num_classes, dataset.names
        self.teacher_channels = find_teacher_channels(self._labelled)
        """level -> channels of the teacher's features."""

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close: files are open only while they are read."""

    def mix(self, unlabelled_share: float = 0.75) -> MixedSplit:
        """The training samples together with those that have no label.

        Its batches have both in each; an epoch has as many as pass all samples once.

        Args:
            unlabelled_share: of the rows of a batch, above 0 and below 1.

        Raises: SettingsError for another share, or if the cache has no unlabelled samples;
            CacheError if they are damaged or incomplete.
        """
        is_number = isinstance(unlabelled_share, Real)  # also of NumPy
        if not (is_number and 0 < unlabelled_share < 1):
            raise refuse("unlabelled_share", unlabelled_share, "above 0 and below 1")
        if UNLABELLED not in self.manifest.listed:
            expected = "a cache with unlabelled samples (dataset.unlabelled adds some)"
            raise refuse("unlabelled_share", unlabelled_share, expected)
        unlabelled = CacheReader(self.root, self.manifest, UNLABELLED)
        return MixedSplit(JoinedReader(self._labelled, unlabelled), unlabelled_share)

    @property
    def identity(self) -> str:
        """Hash over everything that decides the stored numbers."""
        return self.manifest.identity_hash

    def _repr_html_(self) -> str:
        head = ("split", "samples", "views", "one sample")
        rows = [
            [name, grid.num_samples, grid.num_views, "; ".join(map(_describe, grid.arrays))]
            for name, grid in self.manifest.listed.items()
        ]
        miou = self.manifest.information.get("teacher_miou")
        notes = [f"{self.num_classes} classes: {', '.join(self.class_names[:MOST_NAMES])}"]
        notes[0] += ", ..." if self.num_classes > MOST_NAMES else ""
        notes += [] if miou is None else [f"teacher's mIoU on val: {miou:.4f}"]
        return format_table(f"cache {self.root}", head, rows, notes=notes)


def open_cache(root: Storage | str | Path) -> Cache:
    """Open a cache for your own training loop.

    Args:
        root: a folder, a packed .h5 file or the address of a bucket.

    Returns: the cache, with its splits `train` and `val` as batches.

    Raises: CacheError if there is no cache, or it is damaged or incomplete.
    """
    return Cache(root)


def _describe(array: ArraySpec) -> str:
    return f"{array.name} {array.dtype} {'x'.join(map(str, array.item_shape))}"


def _read_whole(name: str, given: object, *, least: int = 0) -> int:
    """A whole number, also of NumPy. Raises SettingsError."""
    if isinstance(given, Integral) and least <= (number := int(given)) < 2**63:
        return number
    raise refuse(name, given, f"a whole number, {least} or more")


def _serve(
    arrays: dict[str, Tensor], ids: list[str], answers: Sequence[str], targets: Targets
) -> TaughtBatch:
    own = {
        name: values.clone()
        for name, values in arrays.items()
        if name not in ("image", "label", LABELLED)
    }  # the slot is used again
    made = {name: make_target(name, own, targets.bases.get(name)) for name in answers}
    labelled = find_labelled(arrays)
    images, labels = normalize_images(arrays["image"]), arrays["label"].long()
    return TaughtBatch(ids, images, labels, made, labelled)
