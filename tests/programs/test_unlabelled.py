"""Every command of phase one on a cache with unlabelled images."""

import json
import shutil
from pathlib import Path

import pytest

import cache_teacher.cli
from kdcache.cache.manifest import read_manifest
from kdcache.config.parser import make_config
from kdcache.forecast.forecast import forecast_cache
from kdcache.precompute.build import build_cache
from kdcache.report.cache_text import describe_cache
from kdcache.report.phase_one_text import format_forecast
from tests.support import quick
from tests.support.packed_kinds import KINDS, read_files, read_samples

NUM_GROUPS = 9


@pytest.fixture(autouse=True)
def _quick(quick_teacher, monkeypatch):
    """The stand-in teacher, which phase one does not compare with a real one at its end."""
    monkeypatch.setattr("cache_teacher.building._measure_fidelity", lambda *_: None)


@pytest.fixture
def root(bare_data, tmp_path) -> Path:
    quick.build_quick(bare_data, tmp_path / "cache", unlabelled="rest")
    return tmp_path / "cache"


def build(data: Path, root: Path, *, views: int = 2, **cache: object) -> Path:
    given = quick.quick_given(data, root, views=views, unlabelled="rest")
    build_cache(make_config(given, {"cache": cache}))
    return root


def run(*argv: object) -> None:
    assert cache_teacher.cli.main([str(word) for word in argv]) == 0


@pytest.mark.parametrize("kind", ["raw", "mixed"])
def test_a_packed_cache_holds_them_and_becomes_the_same_folder_again(bare_data, tmp_path, kind):
    root, out = build(bare_data, tmp_path / "cache", **KINDS[kind]), tmp_path / "x.h5"
    run("export", root, out)
    for split in read_manifest(root).layouts:
        assert read_samples(out, split) == read_samples(root, split)
    run("verify", out, "--data")
    run("info", out)
    run("import", out, tmp_path / "again")
    assert read_files(tmp_path / "again") == read_files(root)


def test_some_levels_and_views_are_those_of_a_cache_that_asks_for_no_more(bare_data, tmp_path):
    root, out = build(bare_data, tmp_path / "cache"), tmp_path / "x.h5"
    run("export", root, out, "--levels", "mid", "--views", 1)
    run("import", out, tmp_path / "again")
    smaller = build(bare_data, tmp_path / "smaller", views=1, levels=["mid"])
    assert quick.snapshot(tmp_path / "again") == quick.snapshot(smaller)
    assert read_manifest(tmp_path / "again").identity == read_manifest(smaller).identity


def test_fewer_views_of_them_than_of_train_are_packed_as_they_are(bare_data, root, tmp_path):
    quick.build_quick(bare_data, root, views=3)
    run("export", root, tmp_path / "x.h5", "--levels", "low")
    layouts = read_manifest(tmp_path / "x.h5").layouts
    assert {split: layout.num_views for split, layout in layouts.items()} == {
        "train": 3,
        "val": 1,
        "unlabelled": 2,
    }


def test_info_shows_them(root, capsys):
    run("info", root)
    shown = capsys.readouterr().out
    assert "unlabelled: 3 samples x 2 views, 4/4 shard groups, complete" in shown
    run("info", root, "--json")
    arrays = json.loads(capsys.readouterr().out)["splits"]["unlabelled"]["arrays"]
    assert list(arrays) == ["image", "logits", "low", "mid", "high"]


def test_verify_finds_damage_among_them_by_name_and_repair_mends_it(root, capsys):
    whole = quick.snapshot(root)
    path = root / "unlabelled/mid/c/1/0/0/0/0"
    path.write_bytes(path.read_bytes()[::-1])
    (root / "unlabelled/low/zarr.json").unlink()
    assert cache_teacher.cli.main(["verify", str(root), "--data"]) == 1
    shown = capsys.readouterr().out
    assert "unlabelled/low/zarr.json" in shown and "unlabelled/mid/c/1/0" in shown
    run("repair", root)
    assert quick.snapshot(root) == whole
    run("verify", root, "--data")


def test_gc_removes_what_a_killed_run_left_among_them(bare_data, root, capsys):
    before = quick.snapshot(root)
    quick.build_quick(bare_data, root, views=3, unlabelled="rest")
    manifest = root / "manifest.json"
    litter = [root / "unlabelled/low/c/0/0/0/0/0.partial", root / "unlabelled/zarr.json.partial"]
    for path in litter:
        path.write_text("torn")
    run("gc", root)
    assert not any(path.exists() for path in litter) and manifest.exists()
    assert before.keys() <= quick.snapshot(root).keys()


def test_the_gallery_shows_images_without_a_label(root, capsys, tmp_path):
    page = tmp_path / "x.html"
    argv = ["view", str(root), "--split", "unlabelled", "--out", str(page)]
    assert cache_teacher.cli.main(argv) == 0
    assert "3 samples shown" in capsys.readouterr().out and "bare_0001" in page.read_text()


@pytest.mark.parametrize("encoding", ["float16", "half"])
def test_plan_counts_them_exactly(bare_data, tmp_path, encoding):
    given = quick.quick_given(bare_data, tmp_path / "cache", unlabelled="rest")
    config = make_config(given, {"cache": {"encoding": encoding, "codec": "raw"}})
    facts = forecast_cache(config)
    assert facts["splits"]["unlabelled"]["num_missing"] == 6 and facts["time"]["unlabelled_s"] > 0
    text = format_forecast(facts)
    assert "unlabelled: 3 images x 2 views" in text and "unlabelled views " in text
    assert facts["compared"]["here_bytes"] == facts["size"]["array_bytes"]
    build_cache(config)
    found = {
        (split, name): array["bytes"]
        for split, shown in describe_cache(config.cache.path)["splits"].items()
        for name, array in shown["arrays"].items()
    }
    assert found == {
        (split, name): array["bytes"]
        for split, shown in facts["splits"].items()
        for name, array in shown["arrays"].items()
    }


def test_plan_of_adding_them_says_what_is_missing(bare_data, tmp_path):
    quick.build_quick(bare_data, tmp_path / "cache")
    given = quick.quick_given(bare_data, tmp_path / "cache", unlabelled="rest")
    splits = forecast_cache(make_config(given))["splits"]
    assert {split: shown["num_missing"] for split, shown in splits.items()} == {
        "train": 0,
        "val": 0,
        "unlabelled": 6,
    }


def test_plan_without_the_setting_leaves_them_out_of_what_is_missing(bare_data, root):
    config = make_config(quick.quick_given(bare_data, root, views=3))
    splits = forecast_cache(config)["splits"]
    assert (splits["train"]["num_missing"], splits["unlabelled"]["num_missing"]) == (3, 0)


def test_the_manifest_lost_phase_one_keeps_their_groups(bare_data, root):
    before = quick.snapshot(root)
    (root / "manifest.json").unlink()
    run(*_options(bare_data, root), "--dataset.unlabelled", "rest")
    assert quick.snapshot(root) == before
    assert read_manifest(root).complete_views == {"train": 2, "val": 1, "unlabelled": 2}


def test_phase_one_adds_them_to_a_finished_cache(bare_data, root, tmp_path, capsys):
    labelled = tmp_path / "labelled"
    quick.build_quick(bare_data, labelled)
    run(*_options(bare_data, labelled), "--dataset.unlabelled", "rest")
    assert quick.snapshot(labelled) == quick.snapshot(root)
    shutil.rmtree(root)
    code = cache_teacher.cli.main([*_options(bare_data, root), "--dataset.unlabelled", "val"])
    assert code == 1 and not root.exists()
    assert "no image of val" in capsys.readouterr().err.splitlines()[-1]


def _options(data: Path, root: Path) -> list[str]:
    """Words of the command line that builds the quick cache."""
    given = quick.quick_given(data, root)
    chosen = {"cache.path": root, "dataset.root": data}
    for section, name in (
        ("dataset", "num_classes"),
        ("dataset", "size"),
        ("dataset", "val_size"),
        ("dataset", "download"),
        ("augment", "views"),
        ("teacher", "device"),
        ("teacher", "batch_size"),
        ("cache", "shard_samples"),
    ):
        chosen[f"{section}.{name}"] = given[section][name]
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
