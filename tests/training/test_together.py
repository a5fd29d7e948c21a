"""Students trained from the same batches, each read once: each learns what it would have learned alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.config.parser import make_config, merge
from kdcache.errors import CacheCorruptError, TrainingError
from kdcache.progress import Silent
from kdcache.training import loop
from kdcache.training.plan import Plan, sharing_key
from kdcache.training.run import open_data, train_run, train_together
from kdcache.training.settings import resolve_config
from tests.support.events import StopAfter

LOSSES = ({"beta": 0.0, "gamma": 0.0}, {"beta": 0.5, "gamma": 0.0}, {"beta": 0.0, "gamma": 0.3})
WEIGHTS = "student_kd_last.pth"


@pytest.fixture
def data(built_root):
    return open_data(built_root, read_manifest(built_root), num_views=2)


@pytest.fixture
def plans(built_root, given, tmp_path):
    """Of the three losses, in folders of a name."""

    def make(name: str, *changes: dict, epochs: int = 2, resume: bool = True) -> list[Plan]:
        made = []
        for number, weights in enumerate(LOSSES):
            own = merge(
                given,
                {"cache": {"path": str(built_root)}, "loss": weights, "train": {"epochs": epochs}},
            )
            for change in changes:
                own = merge(own, change)
            config = resolve_config(built_root, read_manifest(built_root), own)
            made.append(Plan(config, tmp_path / name / str(number), resume=resume))
        return made

    return make


def train_all(plans: list[Plan], data, events=None) -> list:
    return train_together(plans, data, progress=Silent(), events=events)


def read_losses(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.endswith("_s") and k != "together"}
        for line in lines
    ]


def check_same(ours: Plan, alone: Plan) -> None:
    assert read_losses(ours.folder) == read_losses(alone.folder)
    a, b = (torch.load(plan.folder / WEIGHTS, weights_only=True) for plan in (ours, alone))
    for part in ("model_state_dict", "alignment_state_dict"):
        assert a[part].keys() == b[part].keys() and all(
            torch.equal(a[part][key], b[part][key]) for key in a[part]
        )
    assert torch.equal(a["random_state"], b["random_state"])


@pytest.mark.parametrize(
    "change", [{}, {"train": {"flip": 0.5, "crop": 16, "views": "random"}}], ids=["plain", "moved"]
)
def test_each_is_the_student_it_would_be_alone_bit_for_bit(data, plans, change):
    ours, alone = plans("ours", change), plans("alone", change)
    results = train_all(ours, data)
    for number, plan in enumerate(alone):
        result = train_run(plan, data, progress=Silent())
        assert result["miou"] == results[number]["miou"]
        check_same(ours[number], plan)


def test_a_batch_is_read_once_for_all(data, plans, monkeypatch):
    read, read_into = [], CacheReader.read_into

    def note(self, slot, *, array, view, sample, maps=None):
        read.append((self.layout.split, array, view, sample))
        return read_into(self, slot, array=array, view=view, sample=sample, maps=maps)

    monkeypatch.setattr(CacheReader, "read_into", note)
    train_all(plans("ours", epochs=1), data)
    assert len(read) == len(set(read))  # one view a sample in an epoch
    assert {array for split, array, *_ in read if split == "train"} == {
        "image",
        "label",
        "logits",
        "low",
        "mid",
        "high",
    }


def test_one_that_fails_ends_alone_and_the_others_are_what_they_were(data, plans, monkeypatch):
    ours, alone, train_step = plans("ours"), plans("alone"), loop.train_step

    def fail(learner, batch, *, where):
        if learner.loss.beta and where.startswith("epoch 2"):
            raise TrainingError(f"{where}: loss is nan, expected a finite number")
        return train_step(learner, batch, where=where)

    monkeypatch.setattr(loop, "train_step", fail)
    first, second, third = train_all(ours, data)
    assert isinstance(second, TrainingError) and "epoch 2 step 0: loss is nan" in str(second)
    assert len(read_losses(ours[1].folder)) == 1 and not (ours[1].folder / "result.json").exists()
    monkeypatch.undo()
    for number in (0, 2):
        train_run(alone[number], data, progress=Silent())
        check_same(ours[number], alone[number])
    assert first["epochs"] == third["epochs"] == 2


def test_whatever_a_student_of_the_users_raises_ends_it_alone(data, plans, monkeypatch):
    train_step = loop.train_step

    def fail(learner, batch, *, where):
        if learner.loss.beta:
            raise ValueError("Expected more than 1 value per channel\nwhen training")
        return train_step(learner, batch, where=where)

    monkeypatch.setattr(loop, "train_step", fail)
    first, second, third = train_all(plans("ours", epochs=1), data)
    assert isinstance(second, TrainingError) and first["epochs"] == third["epochs"] == 1
    assert (
        "is failing in training (ValueError: Expected more than 1 value per channel); mend it"
        in str(second)
    )


def test_stopped_anywhere_they_go_on_where_each_of_them_was(data, plans):
    ours, alone = plans("ours", epochs=3), plans("alone", epochs=3)

    with pytest.raises(KeyboardInterrupt):
        train_all(ours, data, events=StopAfter(2, name="1"))
    assert [len(read_losses(plan.folder)) for plan in ours] == [2, 2, 1]
    train_all(ours, data)
    for number, plan in enumerate(alone):
        train_run(plan, data, progress=Silent())
        check_same(ours[number], plan)


def test_finished_ones_and_those_that_cannot_be_are_left(data, plans, tmp_path):
    ours = plans("ours", epochs=1)
    before = train_run(ours[0], data, progress=Silent())
    ours[1].folder.mkdir(parents=True)
    (ours[1].folder / "something.txt").write_text("not ours")
    first, second, third = train_all(ours, data)
    assert first == before and "run.dir is in use" in str(second) and third["epochs"] == 1


def test_of_different_lengths_the_longer_ones_go_on(data, plans):
    short, long = plans("short", epochs=1)[0], plans("long", epochs=2)[1]
    one, two = train_all([short, long], data)
    assert (one["epochs"], two["epochs"]) == (1, 2)
    assert [
        json.loads(x)["together"] for x in (long.folder / "metrics.jsonl").read_text().splitlines()
    ] == [2, 1]


def test_a_baseline_before_gives_the_others_their_difference(data, plans):
    base, other, _ = plans("ours", epochs=1)
    first, second = train_all(
        [base, Plan(other.config, other.folder, resume=True, baseline=base.folder)], data
    )
    assert second["baseline_miou"] == first["miou"] and first["baseline_miou"] is None
    assert second["improvement_points"] == pytest.approx(100 * (second["miou"] - first["miou"]))


def test_damage_in_the_cache_ends_all(cache, data, plans, monkeypatch):
    def refuse(self, slot, *, array, view, sample, maps=None):
        raise CacheCorruptError("caches/x", "sample 3 is damaged", cure="repair it")

    monkeypatch.setattr(CacheReader, "read_into", refuse)
    with pytest.raises(CacheCorruptError):
        train_all(plans("ours"), data)


def test_only_runs_with_the_same_batches_have_the_same_key(given):
    config = make_config(given)
    assert sharing_key(config) == sharing_key(
        make_config(given, {"loss": {"beta": 0.1}, "train": {"lr": 0.1, "epochs": 9}})
    )
    for change in (
        {"seed": 1},
        {"batch_size": 5},
        {"flip": 0.5},
        {"crop": 16},
        {"views": "random"},
        {"residency": "disk"},
    ):
        assert sharing_key(config) != sharing_key(make_config(given, {"train": change}))
    assert sharing_key(config) != sharing_key(make_config(given, {"augment": {"views": 1}}))
