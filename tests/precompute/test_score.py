"""What is said about a teacher from its mIoU on val and on the training views."""

import pytest

from kdcache.cache.manifest import read_manifest
from kdcache.config.parser import make_config
from kdcache.precompute.score import find_likenesses, find_val_scale, find_warning
from kdcache.storage import open_storage


def make_camvid(**augment):
    size = {"size": [144, 192], "num_classes": 11, "class_names": None}
    return make_config({"dataset": size, "augment": augment})


@pytest.mark.parametrize(
    ("augment", "found"),
    [
        (
            {"scale_min": 0.35, "scale_max": 0.9},
            [
                "augment.color_jitter 0 (is 0.3)",
                "augment.scale_min 0.4 (is 0.35)",
                "augment.scale_max 0.8 (is 0.9)",
            ],
        ),
        ({"scale_min": 0.4, "scale_max": 0.7, "color_jitter": 0.0}, []),
        (
            {"scale_min": 0.2, "scale_max": 0.7, "color_jitter": 0},
            ["augment.scale_min 0.4 (is 0.2)"],
        ),
    ],
)  # fmt: skip
def test_what_differs_from_val_is_named(augment, found):
    assert find_likenesses(make_camvid(**augment), val_scale=0.4) == found


@pytest.mark.parametrize(
    ("scales", "val_scale", "found"),
    [
        ((0.4, 0.7), 1.0, {"scale_min": 1, "scale_max": 2}),
        ((0.4, 1.2), 1.0, {"scale_min": 1}),
        ((3.0, 4.0), 1.0, {"scale_min": 1, "scale_max": 2}),
        ((1.0, 4.0), 1.0, {"scale_max": 2}),
    ],
)
def test_what_is_named_can_be_set_together(scales, val_scale, found):
    own = {"color_jitter": 0, "scale_min": scales[0], "scale_max": scales[1]}
    lines = find_likenesses(make_camvid(**own), val_scale=val_scale)
    said = {line.split()[0].removeprefix("augment."): float(line.split()[1]) for line in lines}
    assert said == found
    make_camvid(**{**own, **said})


def test_views_smaller_than_val_are_named():
    config = make_config({"dataset": {"size": 64, "val_size": 96}, "augment": {"color_jitter": 0}})
    assert find_likenesses(config, val_scale=2.0) == [
        "augment.scale_min 2 (is 0.5)",
        "dataset.size [96, 96] (is [64, 64])",
    ]


def test_a_teacher_as_good_on_the_views_is_not_warned_about():
    assert find_warning(0.55, 0.51, config=make_camvid(), val_scale=0.4) is None
    assert find_warning(0.55, 0.70, config=make_camvid(), val_scale=0.4) is None


def test_a_warning_names_settings_and_another_fit():
    like = make_camvid(scale_min=0.4, scale_max=0.7, color_jitter=0.0)
    assert find_warning(0.55, 0.4, config=like, val_scale=0.4) == (
        "mIoU is 0.400 on the training views, 0.550 on val: it teaches worse than it can; "
        "fit it on these views (`python -m cache_teacher fit`)"
    )
    assert "; try augment.color_jitter 0 (is 0.3), augment.scale_max 0.8 (is 2), or fit" in (
        find_warning(0.55, 0.4, config=make_camvid(scale_min=0.4), val_scale=0.4)
    )


def test_a_teacher_close_to_chance_is_told_before_its_views():
    assert "close to chance for 11 classes" in find_warning(
        0.1, 0.0, config=make_camvid(), val_scale=0.4
    )


def test_how_large_val_is_shown_stands_in_its_records(cache):
    root = open_storage(cache.cache.path)
    assert find_val_scale(root, read_manifest(root)) == 1.0
