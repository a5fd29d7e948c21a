"""The gallery of images without a label: what the teacher says, and nothing about labels."""

import numpy as np
import pytest

from cache_teacher.cli import main
from kdcache.cache.pack import pack_cache
from kdcache.cache.reader import open_split
from kdcache.report.gallery import write_gallery
from tests.support import quick
from tests.support.html_pages import parse

NUM_UNLABELLED = 3


@pytest.fixture
def root(tmp_path, quick_teacher):
    data = quick.write_unlabelled(quick.write_quick_data(tmp_path / "data"), num=NUM_UNLABELLED)
    quick.build_quick(data, tmp_path / "cache", unlabelled="rest")
    return tmp_path / "cache"


@pytest.fixture
def page(root, tmp_path):
    write_gallery(root, tmp_path / "page.html", split="unlabelled", num_samples=50)
    return parse(tmp_path / "page.html")


def test_the_most_uncertain_answer_stands_first(page, root):
    reader, entropies = open_split(root, "unlabelled"), {}
    for number, name in enumerate(reader.sample_ids):
        logits_VKhw = np.stack(
            [reader.decode("logits", view, number) for view in range(reader.num_views)]
        ).astype(np.float64)
        p = np.exp(logits_VKhw) / np.exp(logits_VKhw).sum(1, keepdims=True)
        entropies[name] = -(p * np.log(p)).sum(1).mean()
    shown = [float(article["entropy"]) for article in page.articles]
    assert shown == pytest.approx(sorted(entropies.values(), reverse=True), abs=1e-3)


def test_nothing_is_said_about_labels(page):
    titles = {alt.split(" of ")[0] for alt in page.pictures}
    assert titles == {"image", "teacher", "entropy", "low", "mid", "high"}
    for words in ("teacher error", "What the teacher calls", "no labelled pixel", "worst first"):
        assert words not in page.text
    assert len(page.articles) == NUM_UNLABELLED


def test_a_packed_cache_shows_the_same(page, root, tmp_path):
    pack_cache(root, tmp_path / "cache.h5")
    write_gallery(tmp_path / "cache.h5", tmp_path / "h5.html", split="unlabelled", num_samples=50)
    assert parse(tmp_path / "h5.html").pictures.keys() == page.pictures.keys()


def test_a_cache_without_such_images_says_so(tmp_path, quick_teacher, capfd):
    quick.build_quick(quick.write_quick_data(tmp_path / "data"), tmp_path / "cache")
    out = tmp_path / "page.html"
    words = ["view", str(tmp_path / "cache"), "--split", "unlabelled", "--out", str(out)]
    assert main(words) == 1
    error = capfd.readouterr().err
    *_, line = error.splitlines()
    assert line.startswith("cache_teacher") and not out.exists()
    assert "split is 'unlabelled', expected one of" in error and "dataset.unlabelled" in error
