"""The samples of a gallery as HTML: views beside each other, of each its pictures and what was drawn for it.

Letters: H, W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from torch import Tensor

from kdcache.gallery.exhibit import Exhibit
from kdcache.gallery.scan import (
    Look,
    Sample,
    find_classes,
    find_entropy,
    find_share,
    read_view,
    work_through,
)
from kdcache.metrics import VOID
from kdcache.progress import Progress
from kdcache.report.pictures import class_map_uri, heat_map_uri, photo_uri, shrink_map


def draw_cards(exhibit: Exhibit, *, progress: Progress) -> str:
    """All samples. Raises CacheCorruptError."""
    with progress.start("drawing", total=len(exhibit.samples), unit="samples") as bar:
        cards, ranked = [], list(enumerate(exhibit.samples))
        for card in work_through(exhibit.reader, ranked, lambda item: _draw_card(exhibit, *item)):
            cards.append(card)
            bar.advance(1)
    height, width = exhibit.size_hw
    style = f"--shape:{width}/{height};--views:{exhibit.reader.num_views}"
    return f'<div id="gallery" class="cards" style="{style}">{"".join(cards)}</div>'


def format_error(error: float | None) -> str:
    """As a person reads it."""
    return "no labelled pixel" if error is None else f"teacher error {100 * error:.1f} %"


def _draw_card(exhibit: Exhibit, rank: int, sample: Sample) -> str:
    name = escape(exhibit.reader.sample_ids[sample.number])
    views = "".join(_draw_view(exhibit, sample, view) for view in range(exhibit.reader.num_views))
    percent = 100.0 if sample.error is None else 100 * sample.error
    return (
        f'<article data-rank="{rank}" data-number="{sample.number}" data-error="{percent:.2f}" '
        f'data-entropy="{sample.entropy:.4f}" data-classes="{" ".join(map(str, sample.classes))}">'
        f"<h3>{name} <small>{format_error(sample.error)}, entropy {sample.entropy:.2f}</small></h3>"
        f'<div class="views">{views}</div></article>'
    )


def _draw_view(exhibit: Exhibit, sample: Sample, view: int) -> str:
    """One view; its photograph is in the page once and lies under both class maps."""
    reader, number = exhibit.reader, sample.number
    name = escape(reader.sample_ids[number]) + (f", view {view}" if reader.num_views > 1 else "")
    facts, logits = (
        read_view(reader, number, view),
        torch.from_numpy(reader.decode("logits", view, number)),
    )
    figures = {"image": f'<div class="photo" role="img" aria-label="image of {name}"></div>'}
    for title, classes in _find_layers(exhibit, logits, number, view, facts["image_box"]).items():
        uri = class_map_uri(classes, longest_px=exhibit.longest_px)
        figures[title] = f'<div class="photo"><img alt="{title} of {name}" src="{uri}"></div>'
    for title, uri in _draw_heats(exhibit, logits, number, view).items():
        figures[title] = f'<img alt="{title} of {name}" src="{uri}">'
    shown = (
        f"<figure>{figure}<figcaption>{title}</figcaption></figure>"
        for title, figure in figures.items()
    )
    photo = photo_uri(reader.read("image", view, number), longest_px=exhibit.longest_px)
    return (
        f'<div class="view" style="--photo:url({photo})"><div class="pics">{"".join(shown)}</div>'
        f"<small>{_describe_view(facts, sample.looks[view], view, exhibit.size_hw)}</small></div>"
    )


def _find_layers(
    exhibit: Exhibit, logits_Khw: Tensor, number: int, view: int, box: Sequence[int]
) -> dict[str, np.ndarray]:
    """Title -> classes uint8 [H, W]; of the padding nothing."""
    top, left, bottom, right = box
    inside = np.full(exhibit.size_hw, VOID, np.uint8)
    inside[top:bottom, left:right] = find_classes(logits_Khw, exhibit.size_hw)[
        top:bottom, left:right
    ]
    return {"label": exhibit.reader.read("label", view, number), "teacher": inside}


def _draw_heats(exhibit: Exhibit, logits_Khw: Tensor, number: int, view: int) -> dict[str, str]:
    """Title -> data URI."""
    entropy = shrink_map(find_entropy(logits_Khw), exhibit.longest_px // 2)
    uris = {"entropy": heat_map_uri(entropy, most=exhibit.most_entropy)}
    for level, most in exhibit.mosts.items():
        uris[level] = heat_map_uri(exhibit.energies[level, view, number], most=most)
    return uris


def _describe_view(facts: dict, look: Look, view: int, size_hw: tuple[int, int]) -> str:
    """What the commit record says of its making; sizes are width x height in pixels."""
    box_hw = tuple(facts["image_box"][2:])
    padded = "" if box_hw == size_hw else f", padded from {_show_size(box_hw)}"
    if "resized_hw" not in facts:
        shrunk = "" if tuple(facts["image_hw"]) == box_hw else f", shrunk to {_show_size(box_hw)}"
        return f"image of {_show_size(facts['image_hw'])}{shrunk}{padded}"
    error = format_error(find_share(look.num_wrong, look.num_labelled))
    resized, (top, left) = _show_size(facts["resized_hw"]), facts["crop_tl"]
    flipped = ", flipped" if facts["flip"] else ""
    colours = ", ".join(
        f"{name} {facts[name]:.2f}" for name in ("brightness", "contrast", "saturation")
    )
    return f"view {view}: {error}; resized to {resized}, crop at {left}, {top}{flipped}{padded}; {colours}"


def _show_size(hw: Sequence[int]) -> str:
    return f"{hw[1]} x {hw[0]}"
