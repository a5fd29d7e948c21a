"""The gallery of a cache: it shows what the cache holds, and a wrong order of classes at once.

Letters: N samples, K classes, H, W height and width, C channels.
"""

import base64
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.analysis import scan
from kdcache.cache.layout import Group
from kdcache.cache.pack import pack_cache
from kdcache.cache.reader import CacheReader, open_split
from kdcache.cache.writer import GroupContents, write_group
from kdcache.config.parser import make_config, merge
from kdcache.data.sample_set import CLASS_NAMES, write_sample_set
from kdcache.metrics import VOID
from kdcache.precompute import group as shard_group
from kdcache.precompute.build import build_cache
from kdcache.report import gallery_samples
from kdcache.report.classes import DARK_VOID, NUM_HEATS
from kdcache.report.gallery import Gallery, write_gallery
from kdcache.storage import open_storage
from tests.support import quick
from tests.support.html_pages import Page, parse

NUM_CLASSES = len(CLASS_NAMES)
NASTY = [
    '<b>hinter & "grund"</b>',
    "車 </table><script>alert(1)</script>",
    *(f"كلمة {k}" for k in range(2, 8)),
]
RANKS = {"low": 2, "mid": 3, "high": 4}
GOLDEN = Path(__file__).parents[1] / "golden"


def show(root: object, out: Path, *, split: str = "val", num_samples: int = 50) -> Page:
    write_gallery(open_storage(root), out, split=split, num_samples=num_samples)
    return parse(out)


def build(data: Path, root: Path, *, roll: int = 0, void: int | None = None, **given: dict) -> Path:
    """A cache whose teacher sees the labels.

    Its best class at each cell is the label of the cell's middle, `roll` classes further.

    Args:
        void: the number of a sample of each group whose label is void.
    """

    def doctor(
        root: Path, manifest: object, group: Group, *, contents: GroupContents, lease: object
    ) -> object:
        label_NHW, logits_NKHW = contents.arrays["label"], contents.arrays["logits"]
        middle_NHW = label_NHW[:, 4::8, 4::8].astype(int)
        logits_NKHW[:] = 3.5 * (
            np.arange(NUM_CLASSES)[:, None, None] == ((middle_NHW + roll) % NUM_CLASSES)[:, None]
        )
        logits_NKHW[:, 1] += np.random.default_rng(group.start).uniform(0, 0.5, middle_NHW.shape)
        if void is not None:
            label_NHW[void : void + 1] = VOID
        return write_group(open_storage(root), manifest, group, contents=contents, lease=lease)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        patch.setattr(shard_group, "write_group", doctor)
        build_cache(make_config(merge(quick.quick_given(data, root), given)))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six training and nine validation images of 48x48. Read only."""
    root = tmp_path_factory.mktemp("data")
    write_sample_set(root, num_train=6, num_val=9, size_px=48)
    return root


@pytest.fixture(scope="module")
def root(data, tmp_path_factory) -> Path:
    """Validation images in views of 48x64, training views of 32x48, all levels. Read only."""
    return build(
        data,
        tmp_path_factory.mktemp("cache") / "seen",
        dataset={"size": [32, 48], "val_size": [48, 64]},
    )


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "gallery.html"


def answer(reader: CacheReader, view: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's classes [H, W] and the entropy of its softmax [h, w], computed otherwise."""
    logits_KHW = reader.read("logits", view, number).astype(np.float64)
    p_KHW = np.exp(logits_KHW) / np.exp(logits_KHW).sum(0)
    height, width = reader.layout.array("label").item_shape
    scores = [
        Image.fromarray(k.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        for k in logits_KHW
    ]
    return np.argmax([np.asarray(k) for k in scores], 0), -(p_KHW * np.log(p_KHW)).sum(0)


def measure(reader: CacheReader, number: int) -> tuple[float, float]:
    """Teacher error and mean entropy of a sample whose images fill whole cells."""
    wrong = labelled = 0
    entropies = []
    for view in range(reader.num_views):
        _, _, bottom, right = scan.read_view(reader, number, view)["image_box"]
        label = reader.read("label", view, number)
        classes, entropy = answer(reader, view, number)
        wrong += int(((label != VOID) & (classes != label)).sum())
        labelled += int((label != VOID).sum())
        entropies.append(entropy[: -(-bottom // 8), : -(-right // 8)].mean())
    return wrong / labelled, float(np.mean(entropies))


def average(image_HW3: np.ndarray) -> np.ndarray:
    """Over cells of 8x8."""
    height, width, _ = image_HW3.shape
    return image_HW3.astype(float).reshape(height // 8, 8, width // 8, 8, 3).mean((1, 3))


def test_page_needs_nothing_but_itself_and_runs_only_its_own_script(root, out):
    page, html = show(root, out), out.read_text()
    assert page.tags.count("script") == 1 and not {
        "link",
        "iframe",
        "object",
        "embed",
        "base",
    } & set(page.tags)
    assert page.links and all(link.startswith("data:image/") for link in page.links)
    assert "@import" not in html and "http://" not in html and "https://" not in html
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search('Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'") and policy.endswith(
        f"script-src 'sha256-{digest}'"
    )
    assert " onclick" not in html and "innerHTML" not in script
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html
    assert not list(out.parent.glob("*.partial"))


def test_every_name_the_script_uses_is_in_the_page(root, out):
    show(root, out)
    html, script = out.read_text().split("<script>")
    for id in ("gallery", "controls", "shown", "bound"):
        assert f'id="{id}"' in html and f'"{id}"' in script
    assert all(f'name="{name}"' in html for name in ("of", "least", "order"))
    orders = re.findall(r"^  (\w+): ", script, re.MULTILINE)
    assert orders and all(f'<option value="{order}">' in html for order in orders)
    assert '<form id="controls" hidden' in html  # without a script there is nothing to choose with


@pytest.mark.parametrize("split", ["val", "train"])
def test_pictures_are_what_is_cached(root, out, split):
    page, reader = show(root, out, split=split), open_split(root, split)
    for number, id in enumerate(reader.sample_ids):
        for view in range(reader.num_views):
            name = id if split == "val" else f"{id}, view {view}"
            _, _, bottom, right = scan.read_view(reader, number, view)["image_box"]
            label, shown = reader.read("label", view, number), page.pictures[f"label of {name}"]
            assert np.array_equal(np.where(shown == DARK_VOID, VOID, shown), label)
            assert {VOID, DARK_VOID} <= set(shown[label == VOID])  # hatched
            classes, entropy = answer(reader, view, number)
            shown = page.pictures[f"teacher of {name}"]
            assert (
                np.mean(shown[:bottom, :right] == classes[:bottom, :right]) > 0.999
            )  # but for ties
            assert (shown[bottom:] >= DARK_VOID).all() and (shown[:, right:] >= DARK_VOID).all()
            heat = page.pictures[f"entropy of {name}"] / (NUM_HEATS - 1) * np.log(NUM_CLASSES)
            np.testing.assert_allclose(
                heat, entropy, atol=0.51 * np.log(NUM_CLASSES) / (NUM_HEATS - 1)
            )
            image = reader.read("image", view, number)
            assert (
                np.abs(average(page.pictures[f"image of {name}"]) - average(image)).max() < 16
            )  # WebP blurs colours
    kinds = 4 if split == "val" else 7
    assert len(page.pictures) == 1 + kinds * len(reader.sample_ids) * reader.num_views


def test_energy_is_the_root_mean_square_on_a_scale_of_the_level(root, out):
    page, reader = show(root, out, split="train"), open_split(root, "train")
    for level in RANKS:
        energies = {
            (view, number): np.sqrt(
                (reader.read(level, view, number).astype(np.float64) ** 2).mean(0)
            )
            for view in range(reader.num_views)
            for number in range(reader.layout.num_samples)
        }
        most = np.quantile(np.concatenate([energy.ravel() for energy in energies.values()]), 0.99)
        assert f"{level}: energy of the features 0 {most:.3g}" in page.text
        for (view, number), energy in energies.items():
            heat = page.pictures[f"{level} of {reader.sample_ids[number]}, view {view}"] / (
                NUM_HEATS - 1
            )
            np.testing.assert_allclose(
                heat, np.minimum(energy / most, 1), atol=0.51 / (NUM_HEATS - 1)
            )


def test_directions_are_called_directions(data, tmp_path, out):
    root = build(
        data,
        tmp_path / "compact",
        cache={"encoding": {"low": "lowrank", "mid": "int8"}, "rank": RANKS},
    )
    page, reader = show(root, out, split="train"), open_split(root, "train")
    assert "low: share of the features' direction kept (lengths are not) 0 1" in page.text
    assert (
        "mid: energy of the features" in page.text
        and "logits float16, low lowrank, mid int8, high float16" in page.text
    )
    lengths = np.sqrt((reader.decode("low", 1, 2) ** 2).sum(0))
    heat = page.pictures[f"low of {reader.sample_ids[2]}, view 1"] / (NUM_HEATS - 1)
    np.testing.assert_allclose(heat, np.minimum(lengths, 1), atol=0.51 / (NUM_HEATS - 1))


@pytest.mark.parametrize("split", ["val", "train"])
def test_samples_fall_from_the_largest_to_the_smallest_error(root, out, split):
    page, reader = show(root, out, split=split), open_split(root, split)
    errors = [float(article["error"]) for article in page.articles]
    assert errors == sorted(errors, reverse=True) and len(set(errors)) > 1
    assert [int(article["rank"]) for article in page.articles] == list(
        range(reader.layout.num_samples)
    )
    for article, heading in zip(page.articles, page.headings, strict=True):
        error, entropy = measure(reader, int(article["number"]))
        assert heading == reader.sample_ids[int(article["number"])]
        assert float(article["error"]) == pytest.approx(100 * error, abs=0.1)
        assert float(article["entropy"]) == pytest.approx(entropy, abs=1e-3)
        said = re.search(rf"{heading} teacher error (\d+\.\d) %, entropy (\d\.\d\d)", page.text)
        assert [float(text) for text in said.groups()] == pytest.approx(
            [100 * error, entropy], abs=0.11
        )


def test_half_are_the_worst_and_half_the_best(root, out):
    everything, page = show(root, out), show(root, out, num_samples=5)
    numbers = [article["number"] for article in everything.articles]
    assert [article["number"] for article in page.articles] == numbers[:3] + numbers[-2:]
    assert (
        "The 3 with the largest and the 2 with the smallest teacher error of 9 samples looked at"
        in page.text
    )
    assert "All samples looked at" in everything.text


def test_a_large_split_is_looked_at_evenly_and_says_so(root, out, monkeypatch):
    monkeypatch.setattr(scan, "MOST_LOOKS", 4)
    assert write_gallery(root, out, split="val", num_samples=2) == Gallery(
        2, 4, 9, [], out.stat().st_size
    )
    page = parse(out)
    assert "shown 2 of 4 looked at, of 9" in page.text
    assert "smallest teacher error of 4 evenly spaced samples looked at" in page.text
    assert {int(article["number"]) for article in page.articles} <= {0, 2, 4, 6}
    monkeypatch.setattr(
        scan, "MOST_SCORES", 1
    )  # as of huge images: those that are shown are looked at all the same
    assert write_gallery(root, out, split="train", num_samples=3).num_looked_at == 3


def test_samples_know_the_classes_of_label_and_answer(root, out):
    page, reader = show(root, out), open_split(root, "val")
    for article in page.articles:
        number = int(article["number"])
        _, _, bottom, right = scan.read_view(reader, number, 0)["image_box"]
        there = {
            *reader.read("label", 0, number).flat,
            *answer(reader, 0, number)[0][:bottom, :right].flat,
        } - {VOID}
        assert {int(k) for k in article["classes"].split()} == there


def test_the_right_order_of_classes_is_not_warned_of(root, out):
    page = show(root, out)
    assert (
        f"The teacher calls each of the {NUM_CLASSES} labelled classes mostly by its own name."
        in page.text
    )
    assert "≠" not in page.text and "something else" not in page.text


def test_rows_are_shares_of_a_label(root, out):
    page, reader = show(root, out), open_split(root, "val")
    pairs = [
        (reader.read("label", 0, number).ravel(), answer(reader, 0, number)[0].ravel())
        for number in range(reader.layout.num_samples)
    ]
    labels, answers = np.concatenate(pairs, 1)
    counts_KK = np.zeros((256, NUM_CLASSES))
    np.add.at(counts_KK, (labels, answers), 1)
    counts_KK = counts_KK[:NUM_CLASSES]
    shares_KK = counts_KK / counts_KK.sum(1, keepdims=True)
    heat_KK = page.pictures["confusion of teacher and labels"] / (NUM_HEATS - 1)
    np.testing.assert_allclose(heat_KK, shares_KK, atol=0.51 / (NUM_HEATS - 1) + 1e-3)
    for k, name in enumerate(CLASS_NAMES):
        number = r"(\d+\.\d)"
        row = re.search(rf" {name} {number} {number} {number} {name} , {number} %", page.text)
        of_labels, of_answers, right, mostly = (float(text) / 100 for text in row.groups())
        assert of_labels == pytest.approx(counts_KK[k].sum() / counts_KK.sum(), abs=1e-3)
        assert of_answers == pytest.approx(counts_KK[:, k].sum() / counts_KK.sum(), abs=1e-3)
        assert right == mostly == pytest.approx(shares_KK[k, k], abs=1e-3)


def test_a_wrong_order_of_classes_is_seen_at_once(data, tmp_path, out):
    root = build(data, tmp_path / "wrong", roll=1)
    assert write_gallery(root, out, split="val", num_samples=3).misnamed == list(CLASS_NAMES)
    page = parse(out)
    assert (
        "8 of 8 labelled classes mostly called something else : "
        "background → horizontal ; horizontal → vertical" in page.text
    )
    assert "labels and teacher have their classes in different orders" in page.text
    assert page.text.count("≠") == NUM_CLASSES
    confusion_KK = page.pictures["confusion of teacher and labels"]
    assert np.array_equal(confusion_KK.argmax(1), np.roll(np.arange(NUM_CLASSES), -1))


def test_a_teacher_that_knows_one_class_is_another_fault(quick_data, tmp_path, out, quick_teacher):
    root = tmp_path / "one"
    quick.build_quick(quick_data, root)  # its scores rise with the number of the class
    page = show(root, out)
    assert "mostly called something else" in page.text and "in different orders" not in page.text
    assert "the teacher has not learned them" in page.text


def test_each_view_says_what_was_drawn(root, out):
    page, reader = show(root, out, split="train"), open_split(root, "train")
    for number in range(reader.layout.num_samples):
        for view in range(reader.num_views):
            facts = scan.read_view(reader, number, view)
            (high, wide), (top, left) = facts["resized_hw"], facts["crop_tl"]
            height, width = facts["image_box"][2:]
            text = f"resized to {wide} x {high}, crop at {left}, {top}" + (
                ", flipped" if facts["flip"] else ""
            )
            text += "" if (height, width) == (32, 48) else f", padded from {width} x {height}"
            assert (
                f"{text}; brightness {facts['brightness']:.2f}, contrast {facts['contrast']:.2f}"
                in page.text
            )
    assert "image of 48 x 48, padded from 48 x 48" in show(root, out).text


def test_a_sample_without_labels_is_shown_first(data, tmp_path, out):
    root = build(data, tmp_path / "void", void=1)
    page = show(root, out, num_samples=6)
    without = [article["rank"] for article in page.articles if article["error"] == "100.00"]
    assert without == ["0", "1", "2"] and page.text.count("no labelled pixel") == 3
    assert "nan" not in out.read_text().split("<img")[0].lower()


def test_a_cache_without_levels_shows_what_is_there(data, tmp_path, out):
    page = show(build(data, tmp_path / "bare", cache={"levels": []}), out, split="train")
    assert {alt.split(" of ")[0] for alt in page.pictures} == {
        "image",
        "label",
        "teacher",
        "entropy",
        "confusion",
    }
    assert "energy" not in page.text


def test_names_are_text_not_html(data, tmp_path, out):
    page = show(build(data, tmp_path / "a <b>cache", dataset={"class_names": NASTY}), out)
    assert page.tags.count("script") == 1 and "b>hinter" not in page.tags
    assert all(page.text.count(name) >= 3 for name in NASTY)  # table, key, filter
    assert "a <b>cache, val" in page.text


@pytest.mark.parametrize("num_classes", [2, 150])
def test_few_and_many_classes(quick_data, tmp_path, out, quick_teacher, num_classes):
    names = [f"{k} " + "Oberweserdampfschifffahrtsgesellschaft" * 9 for k in range(num_classes)]
    data = quick.write_quick_data(tmp_path / "data")
    for path in data.rglob("SegmentationClass/*.png"):
        label = np.asarray(Image.open(path))
        few = np.where(label == VOID, VOID, label.astype(int) * 19 % num_classes).astype(np.uint8)
        Image.fromarray(few).save(path)
    given = {"dataset": {"num_classes": num_classes, "class_names": names}}
    build_cache(make_config(merge(quick.quick_given(data, tmp_path / "cache"), given)))
    page = show(tmp_path / "cache", out, split="train")
    assert f"{num_classes} classes class % of labels" in page.text
    assert ("<details open><summary>" in out.read_text()) == (num_classes == 2)
    assert max(map(len, page.text.split())) < 80  # cut, so that no column bursts


def test_pictures_of_many_views_are_smaller():
    assert [gallery_samples.choose_size(num_views) for num_views in (1, 50, 100, 200, 4000)] == [
        320,
        320,
        226,
        160,
        160,
    ]


def test_large_pictures_shrink_and_class_maps_keep_their_classes(root, out, monkeypatch):
    monkeypatch.setattr(gallery_samples, "LONGEST_PX", 24)
    monkeypatch.setattr(gallery_samples, "LEAST_PX", 16)
    page, reader = show(root, out, split="train"), open_split(root, "train")
    for number, id in enumerate(reader.sample_ids):
        shown = page.pictures[f"label of {id}, view 1"]
        assert shown.shape == (16, 24) and page.pictures[f"image of {id}, view 1"].shape == (
            16,
            24,
            3,
        )
        assert set(shown.flat) - {DARK_VOID, VOID} <= set(reader.read("label", 1, number).flat)
        assert max(page.pictures[f"low of {id}, view 1"].shape) <= 12


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("split", ["val", "train"])
def test_caches_of_every_released_format_have_a_gallery(version, split, out):
    page = show(GOLDEN / version, out, split=split)
    assert len(page.articles) == (2 if split == "val" else 3)


def test_a_packed_cache_has_the_same_gallery(root, tmp_path, out):
    pack_cache(root, tmp_path / "seen")
    folder, file = (
        show(root, out, split="train"),
        show(tmp_path / "seen", tmp_path / "file.html", split="train"),
    )
    assert folder.articles == file.articles and list(folder.pictures) == list(file.pictures)
    assert all(
        np.array_equal(picture, file.pictures[alt]) for alt, picture in folder.pictures.items()
    )
