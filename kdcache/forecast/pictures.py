"""Bytes of coded images and labels: these need no teacher, so many more are looked at than it is asked about.

They differ more from sample to sample than its answers do, and of a compact cache they are half.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from kdcache.cache.answers import draw_view
from kdcache.cache.codecs import choose_codec
from kdcache.cache.layout import CRC_BYTES, ArraySpec, SplitLayout
from kdcache.cache.pipeline import Plan
from kdcache.cache.writer import encode_samples
from kdcache.forecast.probe import pick_samples
from kdcache.report.progress import Progress

MOST_PICTURES = 400  # of a split; of CamVid's 734 views the error of their mean is 0.4 %, that of 48 is 1.7 % (rms)
MOST_S = 6.0  # for each split
PICTURES = ("image", "label")

Sizes = dict[tuple[str, ArraySpec], float]


def measure_pictures(plan: Plan, codecs: Iterable[str], *, progress: Progress) -> Sizes:
    """(split, array) -> mean bytes of a chunk and its checksum, for the plan's image and label and for these codecs.

    Raises: DataError.
    """
    sizes = {}
    for split, layout in plan.manifest.layouts.items():
        specs = {spec for name in PICTURES for spec in _list_specs(layout.array(name), codecs)}
        sizes |= {(split, spec): float(spec.item_bytes + CRC_BYTES) for spec in specs if spec.codec is None}
        coded = [spec for spec in specs if spec.codec]
        with progress.start(f"coding images of {split}", total=None, unit="samples") as bar:
            rows = []
            for arrays in _draw(plan, layout):
                rows.append([measure_chunks(spec, arrays[spec.name][None]) for spec in coded])
                bar.advance(1)
        sizes |= {(split, spec): float(size) for spec, size in zip(coded, np.mean(rows, axis=0), strict=True)}
    return sizes


def measure_chunks(spec: ArraySpec, block: np.ndarray) -> float:
    """Mean bytes of the chunks of samples [count, *item_shape] and their checksums."""
    return float(np.mean([chunk.size for chunk in encode_samples(spec, block)])) + CRC_BYTES


def _list_specs(spec: ArraySpec, codecs: Iterable[str]) -> list[ArraySpec]:
    return [spec, *(replace(spec, codec=choose_codec(codec, spec.dtype)) for codec in codecs)]


def _draw(plan: Plan, layout: SplitLayout) -> Iterator[dict[str, np.ndarray]]:
    """Image and label of samples and views spread over the split, until there are enough or it takes too long."""
    began_s, samples = time.monotonic(), plan.splits[layout.split].samples
    for place in pick_samples(layout.num_samples * layout.num_views, MOST_PICTURES):
        view, sample = divmod(place, layout.num_samples)
        image, label, _ = draw_view(plan.config, samples[sample], split=layout.split, view=view)
        yield {"image": image, "label": label}
        if time.monotonic() - began_s > MOST_S:
            return
