"""The cache: what is written is what was asked for, any reader reads it, and nothing else passes
for it.
"""

from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr

from kdcache.cache.layout import shard_key
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.config.parser import make_config, merge
from kdcache.data.pictures import read_sample
from kdcache.data.views import apply, draw
from kdcache.data.voc import read_split
from kdcache.errors import CacheIncompleteError, CacheMismatchError, TeacherError
from kdcache.metrics import compute_miou, count_confusion
from kdcache.models.teacher import Teacher, build_teacher
from kdcache.precompute.build import build_cache
from tests.support.quick import snapshot


def open_train(config, **kwargs):
    return open_split(config.cache.path, "train", **kwargs)


def test_stored_views_and_answers_are_those_of_data_set_and_teacher(cache):
    samples = read_split(cache.dataset, "train").samples
    teacher, _ = build_teacher(
        cache.teacher, num_classes=8, levels=["low", "mid", "high"], device=torch.device("cpu")
    )
    reader, sample = open_train(cache), samples[8]  # in the short last group: 8, 9
    image, label = read_sample(cache.dataset, sample)
    view = draw(cache.augment, sample_id=sample.id, view=1, image_hw=label.shape, size_hw=(32, 32))
    image, label = apply(view, image, label)
    assert np.array_equal(reader.read("image", 1, 8), image)
    assert np.array_equal(reader.read("label", 1, 8), label)
    answer = teacher(torch.from_numpy(np.stack([image, image])))
    for name in ("logits", "low", "mid", "high"):
        expected = answer[name][0].numpy()
        np.testing.assert_allclose(
            reader.read(name, 1, 8), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max()
        )
    record, _ = reader.find_record(1, 8)
    assert record.sample_ids == [s.id for s in samples[8:10]]
    assert tuple(record.views[0]["crop_tl"]) == view.crop_tl and record.views[0][
        "image_box"
    ] == list(view.image_box)


def test_zarr_and_tensorstore_read_what_our_reader_reads(cache):
    root, reader = cache.cache.path, open_train(cache)
    for name in ("image", "label", "logits", "low", "mid", "high"):
        stored = zarr.open_array(root / "train" / name, mode="r")
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(root / "train" / name)},
        }
        other = tensorstore.open(spec, open=True).result()
        for view, sample in ((0, 0), (1, 3), (1, 9)):
            ours = reader.read(name, view, sample)
            assert np.array_equal(ours, stored[view, sample])
            assert np.array_equal(
                ours.view(np.uint8), np.asarray(other[view, sample].read().result()).view(np.uint8)
            )


def test_building_again_touches_nothing(cache):
    before = snapshot(cache.cache.path)
    assert build_cache(cache).num_samples == 0
    assert snapshot(cache.cache.path) == before


@pytest.mark.parametrize("calls", [1, 4])
def test_interrupted_build_goes_on_and_ends_with_the_same_bytes(
    cache, given, tmp_path, monkeypatch, calls
):
    other = make_config(merge(given, {"cache": {"path": str(tmp_path / "other")}}))
    answer, left = Teacher.__call__, [calls + 1]  # one call is the probe

    def stop_midway(self, images):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return answer(self, images)

    monkeypatch.setattr(Teacher, "__call__", stop_midway)
    with pytest.raises(KeyboardInterrupt):
        build_cache(other)
    monkeypatch.undo()
    half = snapshot(other.cache.path)
    assert sum(name.startswith("commits/") for name in half) == calls
    with pytest.raises(CacheIncompleteError, match=r"half-built, \d of 6 shard groups"):
        open_train(other)
    build_cache(other)
    whole = snapshot(other.cache.path)
    assert whole == snapshot(cache.cache.path)
    assert all(whole[name] == data for name, data in half.items())


def test_a_torn_leftover_without_record_is_written_anew(cache):
    root, before = cache.cache.path, snapshot(cache.cache.path)
    layout = read_manifest(root).layouts["train"]
    torn = root / shard_key(layout.array("low"), layout.group(0, 1))
    torn.write_bytes(torn.read_bytes()[:1000])
    (root / "commits" / "train-v0000-g00001.json").unlink()
    build_cache(cache)
    assert snapshot(root) == before


def test_more_views_are_added_and_fewer_change_nothing(cache, given):
    before = snapshot(cache.cache.path)
    build_cache(make_config(merge(given, {"augment": {"views": 3}})))
    after = snapshot(cache.cache.path)
    assert all(
        after[name] == data for name, data in before.items() if not name.endswith("zarr.json")
    )
    assert open_train(cache).num_views == 3
    build_cache(make_config(merge(given, {"augment": {"views": 1}})))
    assert read_manifest(cache.cache.path).layouts["train"].num_views == 3


CHANGES = {
    "augment.seed": {"augment": {"seed": 1}},
    "augment.flip": {"augment": {"flip": 0.25}},
    "dataset.size": {"dataset": {"size": 48}},
    "teacher.layers.high": {"teacher": {"layers": {"high": "layer4"}}},
    "teacher.layers.low": {"cache": {"levels": ["mid", "high"]}},
    "cache.shard_samples": {"cache": {"shard_samples": 5}},
    "dataset.sha256": {"dataset": {"train_split": "val", "val_split": "train"}},
}


@pytest.mark.parametrize("field", CHANGES)
def test_building_over_another_cache_is_refused_and_changes_nothing(cache, given, field):
    before = snapshot(cache.cache.path)
    with pytest.raises(
        CacheMismatchError, match=f"{field} is .*expected .*rebuild it in another folder"
    ):
        build_cache(make_config(merge(given, CHANGES[field])))
    assert snapshot(cache.cache.path) == before


def test_building_with_another_teacher_is_refused(cache, given, tmp_path):
    state = torch.load(cache.teacher.weights, weights_only=True)
    state["classifier.4.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(
        CacheMismatchError,
        match="teacher.weights_sha256 is '[0-9a-f]{12}', expected '[0-9a-f]{12}'",
    ):
        build_cache(
            make_config(merge(given, {"teacher": {"weights": str(tmp_path / "other.pth")}}))
        )


def test_paths_batch_size_and_views_are_not_identity(cache, given, tmp_path):
    moved = tmp_path / "moved.pth"
    moved.write_bytes(Path(cache.teacher.weights).read_bytes())
    change = {"teacher": {"weights": str(moved), "batch_size": 3}, "augment": {"views": 1}}
    assert build_cache(make_config(merge(given, change))).num_samples == 0


def test_a_value_that_float16_cannot_hold_stops_and_names_sample_and_layer(config, given, tmp_path):
    state = torch.load(config.teacher.weights, weights_only=True)
    state["classifier.4.bias"][2] = 1e6
    torch.save(state, tmp_path / "huge.pth")
    first_val = read_split(config.dataset, "val").samples[0].id
    with pytest.raises(
        TeacherError, match=f"sample '{first_val}': teacher's logits reaches 1e\\+06"
    ):
        build_cache(make_config(merge(given, {"teacher": {"weights": str(tmp_path / "huge.pth")}})))


def test_larger_validation_images_are_scaled_down_with_a_warning(given, caplog):
    config = make_config(merge(given, {"dataset": {"val_size": 32}}))
    build_cache(config)
    assert "5 validation images are larger than dataset.val_size" in caplog.text
    label = open_split(config.cache.path, "val").read("label", 0, 0)
    assert label.shape == (32, 32)


def test_an_implausible_teacher_is_warned_about(config, caplog):
    build_cache(config)
    assert "close to chance for 8 classes; check teacher.weights" in caplog.text


def test_a_teacher_that_is_worse_on_the_training_views_is_warned_about(cache, caplog, monkeypatch):
    right = {"val": 40, "train": 10}  # of 50 pixels a class

    def count(reader, *, num_classes, progress):
        hits = right[reader.layout.split]
        classes = torch.eye(num_classes, dtype=torch.int64)
        return hits * classes + (50 - hits) * classes.roll(1, 0)

    monkeypatch.setattr("kdcache.precompute.score.count_answers", count)
    score = build_cache(cache).score
    assert score.val_miou == pytest.approx(40 / 60) and score.train_miou == pytest.approx(10 / 90)
    assert (
        "mIoU is 0.111 on the training views, 0.667 on val: it teaches worse than it can; "
        "try augment.color_jitter 0 (is 0.3), " in caplog.text
    )
    assert read_manifest(cache.cache.path).information["teacher_train_miou"] == score.train_miou


def test_the_score_is_that_of_the_cached_answers(cache):
    reader = open_train(cache)
    confusion = torch.zeros(8, 8, dtype=torch.int64)
    for sample in range(10):
        logits = torch.from_numpy(reader.read("logits", 0, sample)).float()[None]
        full = torch.nn.functional.interpolate(
            logits, size=(32, 32), mode="bilinear", align_corners=False
        )
        label = torch.from_numpy(reader.read("label", 0, sample))[None]
        confusion += count_confusion(full.argmax(1), label, num_classes=8)
    assert read_manifest(cache.cache.path).information["teacher_train_miou"] == compute_miou(
        confusion
    )


def test_logits_only_cache_has_no_levels(given):
    config = make_config(merge(given, {"cache": {"levels": []}}))
    build_cache(config)
    assert [a.name for a in read_manifest(config.cache.path).layouts["train"].arrays] == [
        "image",
        "label",
        "logits",
    ]
