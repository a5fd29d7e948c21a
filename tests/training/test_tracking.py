"""Trackers show what metrics.jsonl has, follow a resumed run, and never end one."""

from __future__ import annotations

import json
import logging
import sys
import warnings

import pytest

from kdcache.config.parser import make_config, merge
from kdcache.errors import SettingsError
from kdcache.training import planned_run, tracking
from kdcache.training.distill import distill
from kdcache.training.tracking import Guarded, check_tracker, choose_tracker
from tests.support.events import StopAfter
from tests.support.helpers import check_one_line

ALONE = {"run": {"baseline": False, "track": "tensorboard"}}


@pytest.fixture
def train(built_root, given):
    """Train with changed settings; gives the run's folder."""

    def act(*changes: dict, events=None):
        own = given
        for change in changes:
            own = merge(own, change)
        distill(own, root=built_root, events=events)
        return make_config(own).run.dir

    return act


def read_events(folder) -> dict[str, list[tuple[int, float]]]:
    """Name -> (epoch, value) of what TensorBoard would show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
    return {
        name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def read_history(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_shows_every_number_of_every_epoch(train):
    folder = train(ALONE)
    events, history = read_events(folder), read_history(folder)
    assert {
        "loss/total",
        "loss/ce",
        "loss/kd",
        "loss/feature",
        "val/miou",
        "lr",
        "time/step_s",
    } <= set(events)
    for name, term in (
        ("loss/kd", "kd"),
        ("val/miou", "miou"),
        ("time/data_wait_s", "data_wait_s"),
    ):
        assert events[name] == [(line["epoch"], pytest.approx(line[term])) for line in history]
    assert any(name.startswith("val_iou/") for name in events)


def test_a_resumed_run_shows_each_epoch_once(train, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        lose_the_second_checkpoint(patch)
        train(ALONE, {"train": {"epochs": 3}}, events=StopAfter(2))
    folder = train(ALONE, {"train": {"epochs": 3}, "run": {"resume": True}})
    assert [epoch for epoch, _ in read_events(folder)["val/miou"]] == [1, 2, 3]


def lose_the_second_checkpoint(monkeypatch) -> None:
    """Its numbers were shown, then the power was cut."""
    save = planned_run.save_epoch

    def lose(learner, *, history, **rest):
        if len(history) < 2:
            save(learner, history=history, **rest)

    monkeypatch.setattr(planned_run, "save_epoch", lose)


def test_auto_is_tensorboard_where_it_is_installed(tmp_path, monkeypatch):
    assert choose_tracker("none", tmp_path, first=1, facts={}) is None
    assert choose_tracker("auto", tmp_path, first=1, facts={}).name == "TensorBoard"
    monkeypatch.setattr(tracking, "is_installed", lambda package: False)
    assert choose_tracker("auto", tmp_path, first=1, facts={}) is None
    check_tracker("auto")
    with pytest.raises(SettingsError) as error:
        check_tracker("wandb")
    check_one_line(
        error,
        "run.track is 'wandb', expected wandb to be installed; `pip install 'kdcache[wandb]'`",
    )


def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(train, monkeypatch, caplog):
    class Broken:
        def log(self, epoch, numbers):
            raise OSError("no route to host\nand more")

        close = None  # what failed is left alone

    monkeypatch.setattr(tracking, "TensorBoard", lambda folder, first: Broken())
    with caplog.at_level(logging.WARNING, logger="kdcache"):
        folder = train(ALONE)
    assert len(read_history(folder)) == 2 and (folder / "result.json").is_file()
    said = [message for message in caplog.messages if "TensorBoard" in message]
    assert said == [
        "TensorBoard: not possible here (no route to host); the run goes on without, metrics.jsonl "
        "has all numbers"
    ]


def test_one_that_cannot_be_made_is_not_closed(caplog):
    def refuse():
        raise RuntimeError("no such service")

    guarded = Guarded(refuse, "W&B")
    guarded.log(1, {"a": 1.0})
    guarded.log(2, {"a": 1.0})
    guarded.close()
    assert sum("no such service" in message for message in caplog.messages) == 1


def test_wandb_gets_the_numbers_and_goes_on_under_the_same_id(tmp_path, monkeypatch):
    made, logged, ended = [], [], []

    class Run:
        def log(self, numbers, step):
            logged.append((step, numbers))

        def finish(self):
            ended.append(True)

    def init(**options):
        made.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", type("wandb", (), {"init": staticmethod(init)}))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for first in (1, 2, 1):
        tracker = choose_tracker(
            "wandb", tmp_path / "runs" / "a", first=first, facts={"loss.beta": 0.5}
        )
        tracker.log(first, {"val/miou": 0.25})
        tracker.close()
    assert logged == [(first, {"val/miou": 0.25}) for first in (1, 2, 1)] and ended == [True] * 3
    assert (
        made[0] == made[1]
        and made[0]["id"] != made[2]["id"]
        and made[0]["resume"] == "allow"
        and made[0]["reinit"] == "create_new"
    )
    assert (
        made[0]["project"] == "kdcache"
        and made[0]["name"] == "a"
        and made[0]["config"] == {"loss.beta": 0.5}
    )
