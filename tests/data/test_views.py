"""Views: drawn again they are the same, image and label stay together, padding is what it says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageEnhance, ImageOps

from kdcache.config import AugmentConfig
from kdcache.data.views import MEAN_RGB, SCHEME, VOID, ViewParameters, apply, draw, fit_inside

# class -> the colour its pixels are painted in; void is white
COLOURS = np.full((256, 3), 255, np.uint8)
COLOURS[:6] = [
    (10, 10, 10),
    (230, 20, 20),
    (20, 220, 30),
    (25, 30, 235),
    (220, 210, 20),
    (30, 200, 210),
]


def draw_view(
    config: AugmentConfig | None = None, *, sample_id: str = "2007_000032", view: int = 0, **sizes
) -> ViewParameters:
    sizes = {"image_hw": (281, 500), "size_hw": (256, 320), **sizes}
    return draw(config or AugmentConfig(), sample_id=sample_id, view=view, **sizes)


def paint(
    *, hw: tuple[int, int] = (60, 72), cell_px: int = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """An image that shows its label: square cells of a class each, some void."""
    cells = np.random.default_rng(seed).choice(
        [0, 1, 2, 3, 4, 5, VOID], (hw[0] // cell_px, hw[1] // cell_px)
    )
    label = np.kron(cells, np.ones((cell_px, cell_px), int)).astype(np.uint8)
    return COLOURS[label], label


def inner_pixels(label_HW: np.ndarray, *, reach_px: int = 2) -> np.ndarray:
    """Where all labels within `reach_px` rows and columns agree: no border is near enough to mix
    colours.
    """
    padded = np.pad(label_HW.astype(int), reach_px, constant_values=-1)
    around = sliding_window_view(padded, (2 * reach_px + 1, 2 * reach_px + 1))
    return (around == label_HW[..., None, None]).all((2, 3))


NO_JITTER = AugmentConfig(color_jitter=0.0)


# --- the draw


def test_draw_is_pinned():
    """Who changes the draw must give SCHEME a new name: caches built before hold other views.

    The name is in the seed of the draw, too: with a new one all these numbers are others.
    """
    view = draw_view(AugmentConfig(seed=3), view=1, image_hw=(281, 500), size_hw=(128, 128))
    assert view == ViewParameters(
        resized_hw=(330, 587),
        crop_tl=(47, 432),
        size_hw=(128, 128),
        flip=False,
        brightness=0.7731060353687585,
        contrast=1.0995902490003762,
        saturation=0.8126122923548035,
    )
    assert SCHEME == "philox-1"


def test_same_view_drawn_twice_is_equal():
    assert draw_view(view=5) == draw_view(view=5)


def test_order_of_drawing_does_not_matter():
    places = [(sample, view) for sample in ("a", "b", "c") for view in range(4)]
    forward = {(s, v): draw_view(sample_id=s, view=v) for s, v in places}
    backward = {(s, v): draw_view(sample_id=s, view=v) for s, v in reversed(places)}
    assert forward == backward
    assert len({(v.resized_hw, v.crop_tl, v.brightness) for v in forward.values()}) == len(places)


def test_draw_neither_uses_nor_moves_numpys_hidden_generator():
    np.random.seed(1)
    untouched = np.random.random()
    np.random.seed(1)
    first, after = draw_view(), np.random.random()
    assert after == untouched
    assert draw_view() == first  # the hidden generator is elsewhere by now


@pytest.mark.parametrize(
    "other",
    [
        draw_view(view=1),
        draw_view(sample_id="2007_000033"),
        draw_view(AugmentConfig(seed=1)),
        draw_view(AugmentConfig(seed=2**63 - 1)),
        draw_view(sample_id="2007_00003", view=2),
    ],
)
def test_views_samples_and_seeds_differ(other: ViewParameters):
    same = draw_view()
    assert (other.brightness, other.contrast, other.saturation) != (
        same.brightness,
        same.contrast,
        same.saturation,
    )
    assert other.resized_hw != same.resized_hw


def test_number_of_views_does_not_change_a_view():
    assert draw_view(AugmentConfig(views=2), view=1) == draw_view(AugmentConfig(views=50), view=1)


def test_scale_stays_in_its_range_and_fills_it():
    config = AugmentConfig(scale_min=0.5, scale_max=2.0)
    scales = []
    for n in range(300):
        view = draw_view(config, sample_id=f"s{n}", image_hw=(400, 600))
        scales.append(view.resized_hw[0] / 400)
        # the aspect ratio, but for rounding
        assert abs(view.resized_hw[1] / 600 - scales[-1]) < 0.003
    assert 0.498 <= min(scales) < 0.55 and 1.95 < max(scales) <= 2.002
    assert 1.15 < np.mean(scales) < 1.35


def test_equal_scale_limits_fix_the_size():
    assert draw_view(
        AugmentConfig(scale_min=0.5, scale_max=0.5), image_hw=(100, 60)
    ).resized_hw == (50, 30)


def test_crop_boxes_are_integers_inside_the_resized_image():
    tops = set()
    for n in range(300):
        view = draw_view(sample_id=f"s{n}", size_hw=(160, 320))
        top, left = view.crop_tl
        box_top, box_left, height, width = view.image_box
        numbers = (*view.resized_hw, top, left, *view.image_box, *view.size_hw)
        assert all(type(number) is int for number in numbers)
        assert top >= 0 and top + height <= view.resized_hw[0]
        assert left >= 0 and left + width <= view.resized_hw[1]
        assert (box_top, box_left) == (0, 0)
        assert height == min(160, view.resized_hw[0]) and width == min(320, view.resized_hw[1])
        tops.add(top)
    assert len(tops) > 50


def test_every_crop_position_occurs():
    config = AugmentConfig(scale_min=1, scale_max=1)
    found = {
        draw_view(config, sample_id=f"s{n}", image_hw=(18, 17), size_hw=(16, 16)).crop_tl
        for n in range(200)
    }
    assert found == {(top, left) for top in range(3) for left in range(2)}


@pytest.mark.parametrize(("probability", "expected"), [(0.0, {False}), (1.0, {True})])
def test_flip_of_probability_zero_or_one_is_never_or_always(
    probability: float, expected: set[bool]
):
    assert {draw_view(AugmentConfig(flip=probability), view=v).flip for v in range(100)} == expected


def test_flip_of_probability_one_quarter_is_about_a_quarter():
    flips = [draw_view(AugmentConfig(flip=0.25), view=v).flip for v in range(400)]
    assert 60 < sum(flips) < 140


def test_jitter_factors_stay_in_their_range_and_differ_from_each_other():
    views = [draw_view(AugmentConfig(color_jitter=0.4), view=v) for v in range(200)]
    factors = np.array([(v.brightness, v.contrast, v.saturation) for v in views])
    assert 0.6 <= factors.min() < 0.65 and 1.35 < factors.max() <= 1.4
    assert abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]).max() < 0.3
    still = draw_view(NO_JITTER)
    assert (still.brightness, still.contrast, still.saturation) == (1.0, 1.0, 1.0)


# --- the pixels


@pytest.mark.parametrize("size_hw", [(48, 48), (32, 80), (160, 160)])
def test_image_and_label_stay_aligned(size_hw: tuple[int, int]):
    image, label = paint()
    seen = set()
    for number in range(24):
        view = draw(
            NO_JITTER, sample_id="painted", view=number, image_hw=label.shape, size_hw=size_hw
        )
        view_image, view_label = apply(view, image, label)
        _, _, height, width = view.image_box
        inside = np.zeros(size_hw, bool)
        inside[:height, :width] = inner_pixels(view_label[:height, :width])
        assert inside.sum() > 0.08 * height * width
        away = np.abs(view_image[inside].astype(int) - COLOURS[view_label[inside]])
        assert away.max() <= 6
        seen.add(view.flip)
    assert seen == {True, False}


def test_alignment_test_would_notice_an_image_that_is_flipped_alone():
    image, label = paint()
    view = draw_view(
        AugmentConfig(color_jitter=0, flip=1, scale_min=1, scale_max=1),
        image_hw=label.shape,
        size_hw=(48, 64),
    )
    view_image, view_label = apply(view, image, label)
    inside = inner_pixels(view_label)
    assert np.abs(view_image[:, ::-1][inside].astype(int) - COLOURS[view_label[inside]]).max() > 100


def test_view_at_scale_one_is_the_crop_itself():
    image, label = paint(hw=(60, 72))
    view = ViewParameters(
        resized_hw=(60, 72),
        crop_tl=(7, 20),
        size_hw=(32, 48),
        flip=False,
        brightness=1.0,
        contrast=1.0,
        saturation=1.0,
    )
    view_image, view_label = apply(view, image, label)
    np.testing.assert_array_equal(view_image, image[7:39, 20:68])
    np.testing.assert_array_equal(view_label, label[7:39, 20:68])


def test_flip_mirrors_the_crop_and_keeps_padding_at_right_and_bottom():
    image, label = paint(hw=(24, 36))
    view = ViewParameters(
        resized_hw=(24, 36),
        crop_tl=(0, 0),
        size_hw=(32, 48),
        flip=True,
        brightness=1.0,
        contrast=1.0,
        saturation=1.0,
    )
    view_image, view_label = apply(view, image, label)
    np.testing.assert_array_equal(view_image[:24, :36], image[:, ::-1])
    np.testing.assert_array_equal(view_label[:24, :36], label[:, ::-1])


def test_padding_is_void_and_mean_colour_whatever_the_jitter():
    image, label = paint()
    view = draw(
        AugmentConfig(color_jitter=0.9, scale_max=0.6),
        sample_id="p",
        view=0,
        image_hw=label.shape,
        size_hw=(64, 80),
    )
    view_image, view_label = apply(view, image, label)
    _, _, height, width = view.image_box
    outside = np.ones((64, 80), bool)
    outside[:height, :width] = False
    assert height < 64 and width < 80
    assert (view_label[outside] == 255).all()
    assert (view_image[outside] == MEAN_RGB).all()
    assert MEAN_RGB == (124, 116, 104)  # ImageNet's mean in 0..255, rounded


def test_labels_are_never_mixed_into_new_classes():
    image, label = paint()
    assert 255 in label
    for number in range(20):
        view = draw_view(view=number, image_hw=label.shape, size_hw=(64, 64))
        _, view_label = apply(view, image, label)
        assert set(np.unique(view_label)) <= {*np.unique(label), 255}
        assert view_label.dtype == np.uint8


def test_void_is_kept_as_255():
    image, label = paint()
    view = draw_view(
        AugmentConfig(scale_min=1, scale_max=1, flip=0), image_hw=label.shape, size_hw=(48, 64)
    )
    top, left = view.crop_tl
    _, view_label = apply(view, image, label)
    np.testing.assert_array_equal(view_label == 255, label[top : top + 48, left : left + 64] == 255)


def apply_by_the_page(view: ViewParameters, image: np.ndarray) -> np.ndarray:
    """docs/format.md, "Views", step by step with Pillow."""
    picture = Image.fromarray(image).resize(view.resized_hw[::-1], Image.Resampling.BILINEAR)
    (top, left), (_, _, height, width) = view.crop_tl, view.image_box
    picture = picture.crop((left, top, left + width, top + height))
    picture = ImageEnhance.Brightness(picture).enhance(view.brightness)
    picture = ImageEnhance.Contrast(picture).enhance(view.contrast)
    picture = ImageEnhance.Color(picture).enhance(view.saturation)
    picture = ImageOps.mirror(picture) if view.flip else picture
    page = np.full((*view.size_hw, 3), (124, 116, 104), np.uint8)
    page[:height, :width] = picture
    return page


@pytest.mark.parametrize("size_hw", [(48, 48), (64, 96)])
def test_pixels_of_a_view_are_those_that_the_format_describes(size_hw: tuple[int, int]):
    image, label = paint()
    flips = set()
    for number in range(12):
        view = draw_view(view=number, image_hw=label.shape, size_hw=size_hw)
        flips.add(view.flip)
        found, expected = apply(view, image, label)[0], apply_by_the_page(view, image)
        assert np.array_equal(found, expected), (
            "apply moves pixels: caches built before hold others. Give SCHEME a new name and "
            "describe it in docs/format.md, Views, and here"
        )
    assert flips == {True, False}


def test_the_format_describes_this_scheme():
    page = (Path(__file__).parents[2] / "docs/format.md").read_text(encoding="utf-8")
    assert f"## Views: scheme `{SCHEME}`\n" in page and f"`{SCHEME}/SEED/ID`" in page


def test_apply_is_pure():
    image, label = paint()
    before = image.copy(), label.copy()
    view = draw_view(image_hw=label.shape, size_hw=(48, 48))
    first, second = apply(view, image, label), apply(view, image, label)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_jitter_changes_the_image_and_not_the_label():
    image, label = paint()
    plain = draw_view(NO_JITTER, image_hw=label.shape, size_hw=(48, 48))
    coloured = draw_view(AugmentConfig(color_jitter=0.5), image_hw=label.shape, size_hw=(48, 48))
    assert (plain.resized_hw, plain.crop_tl, plain.flip) == (
        coloured.resized_hw,
        coloured.crop_tl,
        coloured.flip,
    )
    np.testing.assert_array_equal(apply(plain, image, label)[1], apply(coloured, image, label)[1])
    assert not np.array_equal(apply(plain, image, label)[0], apply(coloured, image, label)[0])


def test_brightness_multiplies_the_image():
    image, label = np.full((20, 20, 3), 100, np.uint8), np.zeros((20, 20), np.uint8)
    view = ViewParameters(
        resized_hw=(20, 20),
        crop_tl=(0, 0),
        size_hw=(16, 16),
        flip=False,
        brightness=1.2,
        contrast=1.0,
        saturation=1.0,
    )
    assert set(np.unique(apply(view, image, label)[0])) == {120}


# --- validation samples


@pytest.mark.parametrize("hw", [(48, 64), (47, 64), (48, 1), (30, 41)])
def test_validation_image_that_fits_is_padded_without_resampling(hw: tuple[int, int]):
    generator = np.random.default_rng(0)
    image, label = (
        generator.integers(0, 256, (*hw, 3), np.uint8),
        generator.integers(0, 6, hw).astype(np.uint8),
    )
    padded_image, padded_label, inside_hw = fit_inside(image, label, size_hw=(48, 64))
    assert (padded_image.shape, padded_label.shape, inside_hw) == ((48, 64, 3), (48, 64), hw)
    np.testing.assert_array_equal(padded_image[: hw[0], : hw[1]], image)
    np.testing.assert_array_equal(padded_label[: hw[0], : hw[1]], label)
    outside = np.ones((48, 64), bool)
    outside[: hw[0], : hw[1]] = False
    assert (padded_label[outside] == 255).all() and (padded_image[outside] == MEAN_RGB).all()


@pytest.mark.parametrize(
    ("hw", "inside_hw"), [((96, 60), (48, 30)), ((48, 128), (24, 64)), ((96, 256), (24, 64))]
)
def test_larger_validation_image_shrinks_with_its_label(
    hw: tuple[int, int], inside_hw: tuple[int, int]
):
    image, label = paint(hw=hw, cell_px=math.gcd(*hw))
    padded_image, padded_label, found_hw = fit_inside(image, label, size_hw=(48, 64))
    assert found_hw == inside_hw
    inside = inner_pixels(padded_label[: inside_hw[0], : inside_hw[1]], reach_px=1)
    pixels = padded_image[: inside_hw[0], : inside_hw[1]][inside].astype(int)
    assert (
        inside.any()
        and np.abs(pixels - COLOURS[padded_label[: inside_hw[0], : inside_hw[1]][inside]]).max()
        <= 6
    )
    assert (padded_label[inside_hw[0] :] == 255).all() and (
        padded_label[:, inside_hw[1] :] == 255
    ).all()


@pytest.mark.parametrize("side_px", [49, 98, 103, 107])
def test_shrunk_validation_image_fills_the_side_that_limits_it(side_px: int):
    """16 / 49 * 49 is 15.999... in float64."""
    image, label = np.zeros((side_px, side_px, 3), np.uint8), np.zeros((side_px, side_px), np.uint8)
    assert fit_inside(image, label, size_hw=(16, 16))[2] == (16, 16)
