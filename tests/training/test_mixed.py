"""Training from samples with and without labels: batches, runs, resuming, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import kdcache
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.config import VOID, LossConfig, TrainConfig
from kdcache.config.parser import make_config, merge
from kdcache.data.sample_set import write_sample_set
from kdcache.errors import CacheIncompleteError, SettingsError
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.precompute.build import build_cache
from kdcache.report.finished import measure_budget
from kdcache.report.run_page import rewrite_report
from kdcache.training import loop
from kdcache.training.checkpoint import read_checkpoint
from kdcache.training.distill import ABOUT_THE_RECIPE, distill
from kdcache.training.run import TrainingEvents
from kdcache.training.run_folder import LAST, read_history
from kdcache.training.samples import LABELLED, JoinedReader
from tests.support.helpers import VOC, check_one_line
from train_student.cli import main as train_student

NUM_LABELLED, NUM_UNLABELLED = 6, 8
RECIPE = {
    "loss": {"gamma": 0.0, "temperature": 1.0, "beta": 1.0, "pseudo": 1.0},
    "train": {"unlabelled_share": 0.5},
}


@pytest.fixture(scope="module")
def mixed_given(base_given, tmp_path_factory) -> dict:
    """Settings of a data set of 14 images, of which the list of training has 6."""
    root = tmp_path_factory.mktemp("mixed")
    write_sample_set(root, num_train=NUM_LABELLED + NUM_UNLABELLED, num_val=5, size_px=48)
    path = root / VOC / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text("\n".join(path.read_text().split()[:NUM_LABELLED]))
    dataset = {"root": str(root), "unlabelled": "rest"}
    return merge(base_given, {"dataset": dataset, "cache": {"levels": ["mid"]}})


@pytest.fixture(scope="module")
def mixed_root(mixed_given, tmp_path_factory) -> Path:
    """A finished cache with an unlabelled split. Read only."""
    root = tmp_path_factory.mktemp("mixed_cache") / "cache"
    build_cache(make_config(merge(mixed_given, {"cache": {"path": str(root)}})))
    return root


@pytest.fixture
def recipe(mixed_given, mixed_root, tmp_path) -> dict:
    """Settings of a run with labelled and unlabelled samples."""
    here = {"cache": {"path": str(mixed_root)}, "run": {"dir": str(tmp_path / "runs" / "kd")}}
    return merge(merge(mixed_given, here), RECIPE)


def open_splits(root: Path) -> tuple[CacheReader, CacheReader]:
    manifest = read_manifest(root)
    return CacheReader(root, manifest, "train"), CacheReader(root, manifest, "unlabelled")


def test_joined_samples_are_those_of_both_splits(mixed_root):
    labelled, unlabelled = open_splits(mixed_root)
    joined = JoinedReader(labelled, unlabelled)
    assert joined.layout.num_samples == NUM_LABELLED + NUM_UNLABELLED == len(joined.sample_ids)
    for sample in range(joined.layout.num_samples):
        own = sample if sample < NUM_LABELLED else sample - NUM_LABELLED
        part = labelled if sample < NUM_LABELLED else unlabelled
        for array in ("image", "logits", "mid", "label"):
            spec = joined.layout.array(array)
            slot = np.full(spec.item_shape, 7, spec.dtype)
            joined.read_into(slot, array=array, view=1, sample=sample)
            if array == "label" and part is unlabelled:
                assert (slot == VOID).all()
            else:
                assert np.array_equal(slot, part.read(array, 1, own))
        mark = np.full(1, 7, np.uint8)
        joined.read_into(mark, array=LABELLED, view=0, sample=sample)
        assert mark[0] == (part is labelled)


def note_batches(monkeypatch) -> list[list[str]]:
    """The sample ids of each step of training from here on."""
    seen, step = [], loop.train_step

    def note(learner, batch, *, where):
        seen.append(batch.sample_ids)
        return step(learner, batch, where=where)

    monkeypatch.setattr(loop, "train_step", note)
    return seen


def test_a_run_and_its_baseline_have_as_many_steps(recipe, mixed_root, monkeypatch):
    seen = note_batches(monkeypatch)
    result = distill(recipe, root=mixed_root)
    unlabelled = set(open_splits(mixed_root)[1].sample_ids)
    baseline, student = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(student) == 2 * -(-(NUM_LABELLED + NUM_UNLABELLED) // 4)  # two epochs
    assert not unlabelled & {sample_id for batch in baseline for sample_id in batch}
    assert all(len(unlabelled & set(batch)) == 2 and len(batch) == 4 for batch in student)
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    entry = json.loads(lines[-1])
    assert {"ce", "kd", "pseudo"} <= set(entry)
    assert entry["total"] == pytest.approx(entry["ce"] + entry["kd"] + entry["pseudo"], rel=1e-6)


def test_a_report_counts_all_rows_of_an_epoch(recipe, mixed_root):
    folder = distill(merge(recipe, {"run": {"baseline": False}}), root=mixed_root).folder
    rewrite_report(folder, num_panels=1)
    budget = measure_budget(read_history(folder, {}), num_samples=4 * 4)  # steps of batches of four
    assert f"{budget.samples_per_s:.1f} samples/s" in (folder / "report.html").read_text()


@pytest.mark.parametrize("order", ["null,0.5", "0.5,null"])
def test_a_grid_reads_unlabelled_images_in_the_runs_that_use_them_alone(
    recipe, mixed_root, tmp_path, monkeypatch, order
):
    runs = {"loss": {"pseudo": 0.0}, "train": {"epochs": 1}, "run": {"dir": str(tmp_path / "runs")}}
    path, seen = tmp_path / "settings.yaml", note_batches(monkeypatch)
    path.write_text(yaml.safe_dump(merge(recipe, runs)))
    grid = ["--grid", f"train.unlabelled_share={order}", "--seeds", "0"]
    assert train_student(["--config", str(path), *grid]) == 0
    unlabelled = set(open_splits(mixed_root)[1].sample_ids)
    counts = sorted((len(batch), len(unlabelled & set(batch))) for batch in seen)
    plain = [(2, 0), (4, 0)]  # a run without a share, and its baseline
    assert counts == sorted([*plain, *plain, *[(4, 0)] * 4, *[(4, 2)] * 4])


def test_a_batch_may_have_more_rows_than_there_are_samples(recipe, mixed_root, monkeypatch):
    seen = note_batches(monkeypatch)
    large = {"augment": {"views": 1}, "train": {"epochs": 1, "batch_size": 32}}
    distill(merge(recipe, large), root=mixed_root)
    assert [len(batch) for batch in seen] == [32, 32]
    (batch,) = kdcache.open_cache(mixed_root).mix(0.25).batches(batch_size=64, device="cpu")
    assert len(batch.ids) == 64 and batch.labelled.sum() == 48


class StopAfterFirst(TrainingEvents):
    def epoch_finished(self, config, history, *, folder):
        if len(history) == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_an_interrupted_run_goes_on_bit_for_bit(recipe, mixed_root, tmp_path, threshold):
    own = {"run": {"baseline": False}, "loss": {"pseudo_threshold": threshold}}
    whole = distill(merge(recipe, own), root=mixed_root)
    cut = merge(merge(recipe, own), {"run": {"dir": str(tmp_path / "cut"), "resume": True}})
    with pytest.raises(KeyboardInterrupt):
        distill(cut, root=mixed_root, events=StopAfterFirst())
    resumed = distill(cut, root=mixed_root)
    assert resumed.student["last_miou"] == whole.student["last_miou"]
    ours, theirs = (
        read_checkpoint(folder / LAST)["model_state_dict"]
        for folder in (resumed.folder, whole.folder)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_a_share_the_unlabelled_split_changes_nothing(recipe, mixed_root, monkeypatch):
    seen = note_batches(monkeypatch)
    plain = merge(recipe, {"train": {"unlabelled_share": None}, "loss": {"pseudo": 0.0}})
    distill(merge(plain, {"run": {"baseline": False}}), root=mixed_root)
    assert [len(batch) for batch in seen] == [4, 2, 4, 2]
    assert {i for batch in seen for i in batch} == set(open_splits(mixed_root)[0].sample_ids)


def test_runs_that_differ_in_the_loss_share_a_baseline(recipe, mixed_root, tmp_path, monkeypatch):
    first = distill(recipe, root=mixed_root)
    seen = note_batches(monkeypatch)
    other = {"loss": {"temperature": 2.0, "pseudo_threshold": 0.3}}
    other["run"] = {"dir": str(tmp_path / "runs" / "other")}
    second = distill(merge(recipe, other), root=mixed_root)
    assert second.baseline_folder == first.baseline_folder and len(seen) == 8


def test_runs_that_differ_in_the_share_share_a_baseline(recipe, mixed_root, tmp_path, monkeypatch):
    first, seen = distill(recipe, root=mixed_root), note_batches(monkeypatch)
    other = {"train": {"unlabelled_share": 0.25}, "run": {"dir": str(tmp_path / "runs" / "other")}}
    second = distill(merge(recipe, other), root=mixed_root)
    assert second.baseline_folder == first.baseline_folder and len(seen) == 8
    alone = merge(recipe, {"loss": {"beta": 0.0, "pseudo": 0.0, "gamma": 0.0}, **other})
    alone = merge(alone, {"run": {"dir": str(tmp_path / "alone"), "baseline": False}})
    labels_only = distill(alone, root=mixed_root)
    assert labels_only.student["last_miou"] == first.baseline["last_miou"]


class Listen(TrainingEvents):
    def __init__(self):
        self.lines = []

    def said(self, text):
        self.lines.append(text)


@pytest.mark.parametrize(("temperature", "hinted"), [(4.0, True), (1.0, False)])
def test_a_run_with_the_first_loss_says_where_the_recipe_is(given, built_root, temperature, hinted):
    events, loss = Listen(), {"gamma": 0.0, "temperature": temperature}
    changes = {"loss": loss, "train": {"epochs": 1}, "run": {"baseline": False}}
    distill(merge(given, changes), root=built_root, events=events)
    assert [line for line in events.lines if "docs/results.md" in line] == (
        [ABOUT_THE_RECIPE] if hinted else []
    )


def test_the_defaults_of_the_loss_stay_those_of_the_first_one():
    first = {"alpha": 1.0, "beta": 0.5, "gamma": 0.3, "temperature": 4.0, "pseudo": 0.0}
    settings, own = LossConfig(), KnowledgeDistillationLoss(channels={"mid": (4, 2)})
    for name, value in first.items():
        assert getattr(settings, name) == getattr(own, name) == value


def test_served_batches_say_which_rows_have_labels(recipe, mixed_root):
    cache = kdcache.open_cache(mixed_root)
    ids = set(cache.train.sample_ids)
    batches = list(cache.mix(0.5).batches(batch_size=4, device="cpu"))
    assert len(batches) == 4
    loss = KnowledgeDistillationLoss(gamma=0.0, pseudo=1.0)
    for batch in batches:
        assert batch.labelled.tolist() == [sample_id in ids for sample_id in batch.ids]
        assert batch.labelled.sum() == 2
        assert (batch.labels[~batch.labelled] == VOID).all()
        terms = loss(torch.zeros_like(batch.logits), {}, batch.labels, **batch.teacher)
        assert terms.pseudo.count == 2 * 32 * 32


def test_what_cannot_be_mixed_is_refused(given, built_root, recipe, mixed_root):
    share = merge(given, {"cache": {"path": str(built_root)}, "train": RECIPE["train"]})
    with pytest.raises(CacheIncompleteError) as error:
        distill(share, root=built_root)
    check_one_line(error, "unlabelled images", "dataset.unlabelled")
    with pytest.raises(SettingsError) as error:
        distill(merge(recipe, {"train": {"unlabelled_share": None}}), root=mixed_root)
    check_one_line(error, "loss.pseudo", "train.unlabelled_share")
    with pytest.raises(SettingsError) as error:
        kdcache.open_cache(built_root).mix(0.5)
    check_one_line(error, "unlabelled_share", "dataset.unlabelled")
    for share in (0, 1.5, float("nan"), "0.5", None):
        with pytest.raises(SettingsError) as error:
            kdcache.open_cache(mixed_root).mix(share)
        check_one_line(error, "unlabelled_share", "above 0 and below 1")


def test_views_that_unlabelled_images_lack_are_refused(mixed_given, mixed_root, recipe, tmp_path):
    root = shutil.copytree(mixed_root, tmp_path / "grown")
    more = {"cache": {"path": str(root)}, "augment": {"views": 3}, "dataset": {"unlabelled": None}}
    build_cache(make_config(merge(mixed_given, more)))
    grown = merge(recipe, {"cache": {"path": str(root)}})
    with pytest.raises(CacheIncompleteError) as error:
        distill(merge(grown, {"augment": {"views": 3}}), root=root)
    check_one_line(error, "views of unlabelled images is 2, expected 3", "dataset.unlabelled")
    assert distill(merge(grown, {"run": {"baseline": False}}), root=root).student["epochs"] == 2
    assert kdcache.open_cache(root).mix(0.5).num_views == 2


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, 0.05, 0.96, float("nan")])
def test_a_share_that_leaves_no_rows_of_a_kind_is_refused(share):
    with pytest.raises(SettingsError) as error:
        TrainConfig(batch_size=8, unlabelled_share=share)
    check_one_line(error, "train.unlabelled_share", "1 to 7 of 8 rows")
