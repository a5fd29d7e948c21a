"""Do the cached answers and labels belong together? Each `find_` looks for another way in which
they may not.

A teacher is right far more often about its own label than about another sample's, so that answers
of other samples, other views or other classes, and labels that lie elsewhere than the image, all
show without the teacher.

Letters: V views, N samples, H, W height and width, K classes.
"""

from __future__ import annotations

import numpy as np

from tests.integrity.scenes import Scenes, share

# Of the way from another sample's label (0) to being always right (1); mixed-up answers are at 0.
LEAST_MARGIN = 0.25
# Share of pixels: frames of a film, and views without augmentation, fit each other's labels as well
# as their own.
ALIKE = 0.005
LEAST_MIRROR_MARGIN = 0.1
EXCHANGED = (
    0.4  # two shares of pixels together; true answers are below 0, exchanged ones at 0.5 and more
)
# two shares of pixels together; true classes are below 0, exchanged ones at 1 for a perfect teacher
DISORDERED = 0.2
LEAST_SCENES = 3  # in which a class must occur before its place in the order is judged
SHIFT_PX = 8  # a cell of the logits


def find_answers_of_others(scenes: Scenes) -> list[str]:
    """Answers that fit their own labels not clearly better than those of samples far away, or worse
    than their neighbours'.

    Far away, because neighbours may be frames of one film; neighbours, because a batch or shard
    group may be mixed up in itself.
    """
    far = np.roll(scenes.label_VNHW, len(scenes.samples) // 2, axis=1)
    own, other = (
        share(scenes.prediction_VNHW, scenes.label_VNHW),
        share(scenes.prediction_VNHW, far),
    )
    least, found = other + LEAST_MARGIN * (1 - other), []
    if own < least:
        what = f"answers agree with their labels in {own:.3f}, expected {least:.3f} or more"
        found.append(f"{scenes.split}: {what}: with other samples' they agree in {other:.3f}")
    for name, _, shares in scenes.crosses:
        own, other = (
            np.nanmean(shares.diagonal()),
            np.nanmean(shares[~np.eye(len(shares), dtype=bool)]),
        )
        if own < other - ALIKE:
            what = f"answers agree with their labels in {own:.3f}"
            found.append(f"{name}: {what}, with their neighbours' in {other:.3f}")
    return found


def find_exchanged_answers(scenes: Scenes) -> list[str]:
    """Pairs of neighbouring samples, each of whose answers fits the label of the other."""
    found = []
    for name, run, shares in scenes.crosses:
        gain = shares + shares.T - shares.diagonal()[:, None] - shares.diagonal()[None]
        for i, j in np.argwhere(np.triu(gain) > EXCHANGED):
            pair = scenes.samples[run][i], scenes.samples[run][j]
            found.append(f"{name}: answers of {pair[0]} and {pair[1]} look exchanged")
    return found


def find_answers_of_other_views(scenes: Scenes) -> list[str]:
    """Views whose answers fit another view's labels of the same samples better than their own."""
    found = []
    for v, view in enumerate(scenes.views):
        own = share(scenes.prediction_VNHW[v], scenes.label_VNHW[v])
        for w, other_view in enumerate(scenes.views):
            other = share(scenes.prediction_VNHW[v], scenes.label_VNHW[w])
            if other > own + ALIKE:
                where = f"{scenes.split} view {view}"
                found.append(
                    f"{where}: answers agree with its labels in {own:.3f}, "
                    f"with view {other_view}'s in {other:.3f}"
                )
    return found


def find_exchanged_classes(scenes: Scenes, *, num_classes: int) -> list[str]:
    """Pairs of classes that the answers would fit better the other way round; finds any wrong order
    of logits or labels.
    """
    rates_KK = _count(scenes.prediction_VNHW, scenes.label_VNHW, num_classes=num_classes)
    rates_KK = rates_KK / np.maximum(1, rates_KK.sum(1, keepdims=True))
    num_scenes = sum((np.bincount(label.reshape(-1), minlength=256)[:num_classes] > 0).astype(int)
                     for labels in scenes.label_VNHW for label in labels)  # fmt: skip
    gain_KK = rates_KK + rates_KK.T - rates_KK.diagonal()[:, None] - rates_KK.diagonal()[None]
    judged = num_scenes >= LEAST_SCENES
    suspects = np.argwhere(np.triu(gain_KK > DISORDERED) & judged[:, None] & judged[None])
    return [
        f"{scenes.split}: classes {a} and {b} look exchanged: "
        f"{a} is called {b} in {rates_KK[a, b]:.3f} of its pixels, "
        f"{b} is called {a} in {rates_KK[b, a]:.3f}"
        for a, b in suspects
    ]


def find_displaced_labels(scenes: Scenes) -> list[str]:
    """Whether answers fit mirrored labels better or nearly as well, or better those moved by one
    cell.
    """
    predictions, labels = _flat(scenes.prediction_VNHW), _flat(scenes.label_VNHW)
    flips, boxes = scenes.flip_VN.reshape(-1), scenes.box_VN4.reshape(-1, 4)
    mirrored = np.array([_mirror(label, box) for label, box in zip(labels, boxes, strict=True)])
    found = []
    for flip in sorted(set(flips.tolist())):
        some = flips == flip
        own, other = (
            share(predictions[some], labels[some]),
            share(predictions[some], mirrored[some]),
        )
        if own - other < LEAST_MIRROR_MARGIN * (1 - other):
            where = f"{scenes.split}, {'flipped' if flip else 'unflipped'} samples"
            found.append(
                f"{where}: answers agree with their labels in {own:.3f}, "
                f"with mirrored ones in {other:.3f}"
            )
    for down, right in ((SHIFT_PX, 0), (-SHIFT_PX, 0), (0, SHIFT_PX), (0, -SHIFT_PX)):
        here, there = _window(down, right), _window(-down, -right)
        own, other = share(predictions[here], labels[here]), share(predictions[here], labels[there])
        if other > own + ALIKE:
            where = f"{scenes.split}: answers agree with their labels in {own:.3f}"
            found.append(
                f"{where}, with labels moved by {down} px down and {right} px right in {other:.3f}"
            )
    return found


def _count(prediction: np.ndarray, label: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Confusion [K, K]; row: label."""
    counted = label < num_classes
    pairs = label[counted].astype(np.int64) * num_classes + prediction[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _flat(values_VNHW: np.ndarray) -> np.ndarray:
    return values_VNHW.reshape(-1, *values_VNHW.shape[2:])


def _mirror(label_HW: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Left and right exchanged inside the image; padding stays."""
    top, left, bottom, right = box
    mirrored = label_HW.copy()
    mirrored[top:bottom, left:right] = label_HW[top:bottom, left:right][:, ::-1]
    return mirrored


def _window(down: int, right: int) -> tuple[slice, ...]:
    """Of [..., H, W], what is left when the first rows (or the last, where negative) and columns
    are dropped.
    """
    sides = (slice(px, None) if px >= 0 else slice(None, px) for px in (down, right))
    return (slice(None), *sides)
