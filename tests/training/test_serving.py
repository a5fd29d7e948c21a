"""`kdcache.open_cache` serves batches to a loop of the user's: the same that training sees, and the
user's to keep.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import kdcache
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.config.parser import merge
from kdcache.errors import CacheError, SettingsError
from kdcache.metrics import compute_miou, count_confusion
from kdcache.models.inputs import normalize_images
from kdcache.progress import Silent
from kdcache.training import loop
from kdcache.training.planned_run import PlannedRun
from kdcache.training.run import train_run
from kdcache.training.samples import open_data
from kdcache.training.settings import resolve_config
from tests.support.helpers import check_one_line


@pytest.fixture
def opened(built_root):
    return kdcache.open_cache(str(built_root))


def test_a_cache_is_a_context_and_its_parts_have_a_length(built_root):
    with kdcache.open_cache(built_root) as cache:
        assert (len(cache.train), len(cache.val)) == (10, 5)
        assert sum(len(batch.ids) for batch in cache.val.batches(batch_size=2, device="cpu")) == 5


def test_numbers_of_numpy_are_numbers(opened):
    for kind in (np.int64, np.uint8, np.int32):
        given = {"batch_size": kind(4), "epoch": kind(1), "seed": kind(2)}
        ours = next(opened.train.batches(**given, device="cpu"))
        theirs = next(opened.train.batches(batch_size=4, epoch=1, seed=2, device="cpu"))
        assert ours.ids == theirs.ids and torch.equal(ours.images, theirs.images)
        sample = opened.train.reader.read("logits", kind(1), kind(2))
        assert np.array_equal(sample, opened.train.reader.read("logits", 1, 2))
    for wrong in (np.float64(4), np.int64(0), "4", None, 4.0):
        with pytest.raises(SettingsError, match="batch_size is .*, expected a whole number, 1 or"):
            opened.train.batches(batch_size=wrong, device="cpu")


def test_it_says_what_the_cache_holds(opened, built_root):
    assert (opened.num_classes, opened.class_names[0]) == (8, "background")
    assert opened.teacher_channels == {"low": 256, "mid": 512, "high": 1024}
    assert (opened.train.num_samples, opened.train.num_views, opened.val.num_samples) == (10, 2, 5)
    assert opened.train.answers == ("logits", "low", "mid", "high") and opened.val.answers == (
        "logits",
    )
    assert opened.identity == read_manifest(built_root).identity_hash


def test_batches_are_what_is_stored_and_can_be_kept(opened, built_root):
    reader, kept = (
        open_split(built_root, "train"),
        list(opened.train.batches(batch_size=4, device="cpu")),
    )
    assert [len(batch.ids) for batch in kept] == [4, 4, 2]
    found = 0
    for batch in kept:
        for row, sample_id in enumerate(batch.ids):
            sample = reader.sample_ids.index(sample_id)
            views = [reader.read("image", view, sample) for view in (0, 1)]
            view = [
                torch.equal(normalize_images(torch.from_numpy(v)[None])[0], batch.images[row])
                for v in views
            ].index(True)
            assert np.array_equal(batch.labels[row].numpy(), reader.read("label", view, sample))
            assert np.array_equal(batch.logits[row].numpy(), reader.decode("logits", view, sample))
            for level in ("low", "mid", "high"):
                assert np.array_equal(
                    batch.features[level][row].numpy(), reader.decode(level, view, sample)
                )
            found += 1
    assert found == 10 and batch.labels.dtype == torch.int64 and batch.images.dtype == torch.float32


def test_a_loop_of_ones_own_has_the_losses_of_a_run(
    opened, built_root, given, tmp_path, monkeypatch
):
    config = resolve_config(
        built_root, read_manifest(built_root), merge(given, {"cache": {"path": str(built_root)}})
    )
    theirs, train_step = [], loop.train_step

    def note(learner, batch, *, where):
        theirs.append(train_step(learner, batch, where=where).total.item())
        return loop.compute_step(learner, batch)

    monkeypatch.setattr(loop, "train_step", note)
    torch.manual_seed(config.train.seed)
    student = kdcache.LightweightSegmentationModel(8, pretrained=False, aspp_channels=16)
    channels = {"low": (256, 16), "mid": (512, 24), "high": (1024, 48)}
    loss = kdcache.KnowledgeDistillationLoss(channels=channels)
    torch.manual_seed(config.train.seed)
    student.to(memory_format=torch.channels_last)
    batch = next(iter(opened.train.batches(batch_size=4, seed=config.train.seed, device="cpu")))
    logits, features = student(batch.images, return_features=True, full_size=False)
    ours = loss(logits, features, batch.labels, **batch.teacher).total
    ours.backward()
    data = open_data(built_root, read_manifest(built_root), num_views=2)
    train_run(PlannedRun(config, tmp_path / "run", resume=False), data, progress=Silent())
    assert ours.item() == theirs[0] and student.classifier.weight.grad is not None


def test_what_is_not_asked_for_is_not_read(opened):
    batch = next(iter(opened.train.batches(batch_size=2, answers=["mid"], device="cpu")))
    assert set(batch.features) == {"mid"} and batch.teacher["teacher_NKHW"] is None
    with pytest.raises(KeyError, match="logits"):
        print(batch.logits)
    assert next(iter(opened.train.batches(batch_size=2, answers=[], device="cpu"))).answers == {}


def test_epochs_and_seeds_decide_the_order_and_validation_has_one(opened):
    def ids(**options):
        return [
            i
            for batch in opened.train.batches(batch_size=3, answers=[], device="cpu", **options)
            for i in batch.ids
        ]

    assert (
        ids() == ids()
        and ids(epoch=1) != ids()
        and ids(seed=1) != ids()
        and sorted(ids()) == sorted(ids(epoch=1))
    )
    val = [i for batch in opened.val.batches(batch_size=3, device="cpu") for i in batch.ids]
    assert val == list(opened.val.sample_ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"answers": ["depth"]}, "answers is 'depth', expected some of logits, low, mid, high"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epoch": -1}, "epoch is -1, expected a whole number, 0 or more"),
        ({"epoch": 0.5}, "epoch is 0.5"),
        ({"answers": "depth"}, "answers is 'depth'"),
        ({"device": "cuda:99"}, "device is 'cuda:99'"),
    ],
)
def test_what_cannot_be_served_is_one_line(opened, options, words):
    with pytest.raises(SettingsError) as error:
        opened.train.batches(**{"batch_size": 2, "device": "cpu", **options})
    check_one_line(error, words)


def test_no_cache_is_one_line(tmp_path):
    with pytest.raises(CacheError) as error:
        kdcache.open_cache(tmp_path / "none")
    check_one_line(error, str(tmp_path / "none"))


class Guess(nn.Module):
    """Names the class that the brightness of a pixel says, at half the size."""

    def forward(self, images):
        small = images[:, :1, ::2, ::2]
        return torch.cat([small * k for k in range(8)], dim=1), {}


def test_evaluate_segmentation_counts_every_labelled_pixel_once(opened):
    student = Guess().train()
    result = kdcache.evaluate_segmentation(
        student, opened.val.batches(batch_size=2, device="cpu"), num_classes=8
    )
    (whole,) = opened.val.batches(batch_size=5, device="cpu")
    scores = nn.functional.interpolate(
        student(whole.images)[0], whole.labels.shape[-2:], mode="bilinear"
    )
    confusion = count_confusion(scores.argmax(1), whole.labels, num_classes=8)
    assert torch.equal(result.confusion_KK, confusion) and result.miou == compute_miou(confusion)
    assert confusion.sum() == (whole.labels != 255).sum() and student.training
    pairs = [(whole.images[:2], whole.labels[:2]), (whole.images[2:], whole.labels[2:])]
    assert (
        kdcache.evaluate_segmentation(lambda x: student(x)[0], pairs, num_classes=8).miou
        == result.miou
    )


def test_evaluate_segmentation_leaves_each_part_in_its_mode():
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    student[1].eval()
    pairs, before = (
        [(torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))],
        student[1].running_mean.clone(),
    )
    kdcache.evaluate_segmentation(student, pairs, num_classes=4)
    assert student.training and student[0].training and not student[1].training
    student[1].train()
    student.training = False  # its parts are not
    kdcache.evaluate_segmentation(student, pairs, num_classes=4)
    assert student[1].training and torch.equal(student[1].running_mean, before)
    with pytest.raises(SettingsError) as error:
        kdcache.evaluate_segmentation(student, pairs, num_classes=3)
    check_one_line(error, "num_classes is 3, expected 4, the channels of the student's scores")
