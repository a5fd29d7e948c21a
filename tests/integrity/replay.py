"""Draws stored views again from the data set and finds those that differ."""

from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np

from kdcache.cache.settings import stored_config
from kdcache.config import Config
from kdcache.data.pictures import Sample, read_sample
from kdcache.data.views import apply, draw, fit_inside
from kdcache.data.voc import VOC_DIR, find_samples
from tests.integrity.opened import Opened


def find_data_set(opened: Opened) -> Config | None:
    """The settings the cache was built with, None where their data set is not on this machine."""
    config = stored_config(opened.root, opened.manifest, {})
    return config if (config.dataset.root / VOC_DIR).is_dir() else None


def find_unlike_replay(opened: Opened, config: Config, split: str, *, count: int) -> list[str]:
    """Of `count` stored samples, those whose image or label is not, byte for byte, the one drawn
    again, or whose record is not.

    Raises: DataError if the data set is damaged.
    """
    samples = find_samples(
        config.dataset,
        {"train": config.dataset.train_split, "val": config.dataset.val_split}[split],
    )
    ids = [sample.id for sample in samples]
    if ids != opened.readers[split].sample_ids:
        return [f"{split}: sample ids are not those of the data set at {config.dataset.root}"]
    found = []
    for view, sample in opened.draw_places(split, count=count):
        found += _compare(opened, config, split, view, sample, samples[sample])
    return found


def _compare(
    opened: Opened, config: Config, split: str, view: int, index: int, sample: Sample
) -> list[str]:
    image, label, facts = _make_view(config, split, view, sample)
    reader, where = opened.readers[split], opened.name(split, view, index)
    record, row = opened.find_record(split, view, index)
    found = []
    if record.views[row] != json.loads(json.dumps(facts)):
        found.append(f"{where}: record says {record.views[row]}, drawn again it is {facts}")
    for name, drawn in (("image", image), ("label", label)):
        num_px = int(
            (reader.read(name, view, index) != drawn).reshape(*label.shape, -1).any(-1).sum()
        )
        if num_px:
            found.append(
                f"{where}: {name} differs in {num_px} pixels from the one drawn again"
                f"{_note_versions(opened)}"
            )
    return found


def _make_view(
    config: Config, split: str, view: int, sample: Sample
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Image, label and what a record says of them."""
    image, label = read_sample(config.dataset, sample)
    if split == "val":
        padded_image, padded_label, hw = fit_inside(image, label, size_hw=config.dataset.val_hw)
        return padded_image, padded_label, {"image_box": (0, 0, *hw), "image_hw": label.shape}
    size_hw = config.dataset.size_hw
    drawn = draw(
        config.augment, sample_id=sample.id, view=view, image_hw=label.shape, size_hw=size_hw
    )
    return *apply(drawn, image, label), {**drawn.to_dict(), "image_box": drawn.image_box}


def _note_versions(opened: Opened) -> str:
    """Another Pillow may decode or resize otherwise: no damage then, but no repair would give the
    same bytes either.
    """
    then, now = opened.manifest.information.get("versions", {}).get("pillow"), version("pillow")
    return "" if then == now else f" (made with Pillow {then}, this is {now})"
