"""Phase two: exact, resumable, refusing what does not fit."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kdcache.cache.layout import shard_key
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.config import LossConfig
from kdcache.config.parser import make_config, merge
from kdcache.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMismatchError,
    SettingsError,
    TrainingError,
)
from kdcache.metrics import compute_miou
from kdcache.precompute.build import build_cache
from kdcache.storage.lock import FolderInUseError, hold_folder
from kdcache.training import loop
from kdcache.training.batches import BatchReader
from kdcache.training.distill import baseline_config, distill
from kdcache.training.learner import build_learner, list_arrays
from kdcache.training.loop import evaluate
from kdcache.training.run_folder import BEFORE, read_run_settings
from kdcache.training.run_identity import find_identity, hyperparameters
from kdcache.training.samples import open_data
from kdcache.training.settings import resolve_config
from tests.support.events import StopAfter

CPU = torch.device("cpu")
CHANNELS = {"low": 256, "mid": 512, "high": 1024}


def train(given: dict, *changes: dict, events=None):
    for change in changes:
        given = merge(given, change)
    return distill(given, root=make_config(given).cache.path, events=events)


def no_baseline(epochs: int, folder: str) -> dict:
    return {"run": {"baseline": False, "dir": folder}, "train": {"epochs": epochs}}


def read_losses(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


def test_same_settings_give_the_same_student_bit_for_bit(cache, given, tmp_path):
    for name in ("a", "b"):
        train(given, no_baseline(2, str(tmp_path / name)))
    a, b = (torch.load(tmp_path / name / "student_kd_last.pth", weights_only=True) for name in "ab")
    assert read_losses(tmp_path / "a") == read_losses(tmp_path / "b")
    assert all(
        torch.equal(value, b["model_state_dict"][key])
        for key, value in a["model_state_dict"].items()
    )
    train(given, no_baseline(2, str(tmp_path / "c")), {"train": {"seed": 1}})
    assert read_losses(tmp_path / "a") != read_losses(tmp_path / "c")


@pytest.mark.parametrize("moment", ["after epoch 2", "in epoch 1"])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(
    cache, given, tmp_path, monkeypatch, moment
):
    train(given, no_baseline(3, str(tmp_path / "whole")))
    halves = merge(given, no_baseline(3, str(tmp_path / "halves")))

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        if moment == "in epoch 1":
            monkeypatch.setattr("kdcache.training.loop.evaluate", stop)
            train(halves)
        train(halves, events=StopAfter(2))
    monkeypatch.undo()
    with pytest.raises(SettingsError, match=r"run.dir is in use.*--run.resume"):
        train(halves)
    train(halves, {"run": {"resume": True}})
    assert read_losses(tmp_path / "whole") == read_losses(tmp_path / "halves")
    a, b = (
        torch.load(tmp_path / n / "student_kd_last.pth", weights_only=True)
        for n in ("whole", "halves")
    )
    for part in ("model_state_dict", "alignment_state_dict"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items())


def test_resuming_with_other_settings_is_refused(cache, given, tmp_path):
    run = merge(given, no_baseline(1, str(tmp_path / "run")))
    train(run)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(
        TrainingError, match="loss.beta is 0.5, expected 0.9; resume with the settings of the run"
    ):
        train(run, {"run": {"resume": True}, "loss": {"beta": 0.9}})


def test_the_teachers_class_needs_the_teacher_and_changes_no_baseline():
    """A run of before records no such setting; its folder and its baseline are still found."""
    manifest = SimpleNamespace(identity_hash="all", pictures_hash="pictures")
    plain = make_config({"student": {"pretrained": False}, "train": {"device": "cpu"}})
    taught = replace(plain, loss=LossConfig(beta=0, gamma=0, pseudo=1, pseudo_threshold=0.5))
    assert taught.loss.uses_teacher and list_arrays(
        build_learner(taught, teacher_channels=CHANNELS)
    ) == ["image", "label", "logits"]
    assert find_identity(manifest, hyperparameters(taught)) == "all"
    baselines = [baseline_config(config) for config in (plain, taught)]
    assert baselines[0] == baselines[1] and not baselines[0].loss.uses_teacher
    facts = hyperparameters(baselines[0])
    assert find_identity(manifest, facts) == "pictures"
    shared = facts | {"train.unlabelled_share": 0.5}
    without = SimpleNamespace(pictures_hash="pictures", listed={})
    assert find_identity(without, shared) != "pictures"  # a cache without such images: no error
    older = {name: value for name, value in facts.items() if "pseudo" not in name}
    assert find_identity(manifest, older) == "pictures" and {**BEFORE, **older} == facts


@pytest.mark.parametrize(
    "change", [{"loss": {"beta": 0.9}}, {"train": {"epochs": 5}}, {"train": {"seed": 3}}]
)
def test_resuming_a_finished_run_with_other_settings_is_refused_before_any_training(
    cache, given, tmp_path, change
):
    run = merge(given, {"run": {"baseline": False}, "train": {"epochs": 1}})
    train(run)
    with pytest.raises(TrainingError, match="expected .*; resume with the settings of the run"):
        train(run, change, {"run": {"resume": True, "baseline": True}})
    assert not list((tmp_path / "runs").glob("baseline-*"))


def test_a_run_folder_held_by_another_process_is_refused(cache, given, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with hold_folder(folder), pytest.raises(FolderInUseError, match="in use by another process"):
        train(given, no_baseline(1, str(folder)))


def test_labels_are_not_read_where_their_weight_is_0(cache, given, tmp_path):
    shutil.rmtree(cache.cache.path / "train" / "label" / "c")
    outcome = train(given, no_baseline(1, str(tmp_path / "run")), {"loss": {"alpha": 0.0}})
    assert "ce" not in read_losses(tmp_path / "run")[0] and outcome.student["epochs"] == 1


def test_a_finished_run_resumed_gives_its_result(cache, given, tmp_path):
    run = merge(given, no_baseline(1, str(tmp_path / "run")))
    first = train(run)
    assert train(run, {"run": {"resume": True}}).student == first.student


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"hyperparameters": 3, "cache_identity": "", "miou": 0}', '{"miou": null}'],
)
def test_a_damaged_result_is_one_line(cache, given, tmp_path, text):
    run = merge(given, no_baseline(1, str(tmp_path / "run")))
    train(run)
    (tmp_path / "run" / "result.json").write_text(text)
    with pytest.raises(
        TrainingError, match=r"result.json: result is unreadable \(.*\); restore it from a"
    ):
        train(run, {"run": {"resume": True}})


def test_the_baseline_is_trained_once_and_reused(cache, given, tmp_path):
    first = train(given, {"train": {"epochs": 1}})
    (folder,) = (tmp_path / "runs").glob("baseline-*")
    before = (folder / "result.json").stat().st_mtime_ns
    second = train(
        given,
        {
            "train": {"epochs": 1},
            "loss": {"beta": 1.0},
            "run": {"dir": str(tmp_path / "runs" / "two")},
        },
    )
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert (
        second.baseline == first.baseline
        and second.student["baseline_miou"] == first.baseline["miou"]
    )
    train(
        given, {"train": {"epochs": 1, "seed": 1}, "run": {"dir": str(tmp_path / "runs" / "three")}}
    )
    assert len(list((tmp_path / "runs").glob("baseline-*"))) == 2


def test_a_baseline_is_shared_by_caches_of_the_same_images_and_labels(cache, given, tmp_path):
    first = train(given, {"train": {"epochs": 1}})
    half = {
        "cache": {"path": str(tmp_path / "half"), "encoding": "half"},
        "run": {"dir": str(tmp_path / "runs" / "half")},
    }
    build_cache(make_config(merge(given, half)))
    second = train(given, half, {"train": {"epochs": 1}})
    assert (
        second.baseline == first.baseline and len(list((tmp_path / "runs").glob("baseline-*"))) == 1
    )
    third = {
        "cache": {"levels": ["high"]},
        "loss": {"temperature": 2.0},
        "run": {"dir": str(tmp_path / "runs" / "third")},
    }
    assert train(given, third, {"train": {"epochs": 1}}).baseline == first.baseline
    assert second.student["cache_identity"] != first.student["cache_identity"]
    assert (
        second.student["pictures_identity"]
        == first.student["pictures_identity"]
        == first.baseline["cache_identity"]
    )
    other = {
        "augment": {"seed": 3},
        "cache": {"path": str(tmp_path / "other")},
        "run": {"dir": str(tmp_path / "runs" / "o")},
    }
    build_cache(make_config(merge(given, other)))
    moved = train(given, other, {"train": {"epochs": 1}}).student
    assert len(list((tmp_path / "runs").glob("baseline-*"))) == 2
    assert moved["pictures_identity"] != first.student["pictures_identity"]
    assert moved["validation_identity"] == first.student["validation_identity"]


def test_baseline_and_student_start_equal_and_see_the_same_batches(
    cache, given, tmp_path, monkeypatch
):
    seen = []
    compute = loop.compute_loss

    def spy(loss, logits, features, batch, targets):
        terms = compute(loss, logits, features, batch, targets)
        seen.append((batch.sample_ids, terms.ce.sum.item()))
        return terms

    monkeypatch.setattr(loop, "compute_loss", spy)
    train(given, {"train": {"epochs": 1}})
    steps = len(seen) // 2
    assert [ids for ids, _ in seen[:steps]] == [ids for ids, _ in seen[steps:]]
    assert seen[0][1] == seen[steps][1] and seen[1][1] != seen[steps + 1][1]


def test_checkpoints_hold_what_is_promised_without_code(cache, given, tmp_path):
    result = train(given, {"train": {"epochs": 1}}).student
    state = torch.load(tmp_path / "runs" / "kd" / "student_kd_best.pth", weights_only=True)
    for name in (
        "model_state_dict",
        "alignment_state_dict",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "random_state",
        "miou",
        "baseline_miou",
        "hyperparameters",
        "cache_identity",
    ):
        assert name in state
    for name in (
        "miou",
        "baseline_miou",
        "teacher_miou",
        "improvement_points",
        "improvement_percent",
        "per_class_iou",
        "params",
        "epochs",
        "seconds",
        "cache_identity",
    ):
        assert name in result
    assert (result["device_type"], result["processes"]) == ("cpu", [1])
    assert result["teacher_miou"] == read_manifest(cache.cache.path).information["teacher_miou"]


def test_a_student_learns_from_the_cache(cache, given, tmp_path):
    train(given, no_baseline(12, str(tmp_path / "run")), {"train": {"lr": 3e-3}})
    losses = read_losses(tmp_path / "run")
    assert losses[-1]["total"] < 0.8 * losses[0]["total"]
    assert losses[-1]["feature"] < losses[0]["feature"]


def test_padding_of_validation_images_does_not_count(cache, given):
    """A student's confusion counts each labelled pixel once."""
    data = open_data(cache.cache.path, read_manifest(cache.cache.path), num_views=1)
    learner = build_learner(cache, teacher_channels=CHANNELS)
    reader = BatchReader(data.val, arrays=["image", "label"], batch_size=2, device=CPU)
    confusion = evaluate(learner, reader, num_classes=8, batch_size=2)
    labelled = sum(int((data.val.read("label", 0, k) != 255).sum()) for k in range(5))
    assert confusion.sum() == labelled and 0 <= compute_miou(confusion) <= 1


def test_a_flipped_byte_stops_training(cache, given, tmp_path):
    layout = read_manifest(cache.cache.path).layouts["train"]
    place = open_split(cache.cache.path, "train").locate("high", 0, 3)
    path = cache.cache.path / shard_key(layout.array("high"), layout.group(0, 0))
    data = bytearray(path.read_bytes())
    data[place.offset + 100] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        CacheCorruptError,
        match=r"train/high view 0 sample '.*' is damaged.*run `python -m cache_teacher repair",
    ):
        train(given, no_baseline(2, str(tmp_path / "run")))
    train(
        given, no_baseline(1, str(tmp_path / "without")), {"loss": {"gamma": 0.0}}
    )  # high is not read


def test_a_non_finite_loss_names_step_and_samples(cache, given, tmp_path):
    with pytest.raises(
        TrainingError, match=r"epoch 1 step \d: loss is (nan|inf).*samples \S+, .*; lower train.lr"
    ):
        train(given, no_baseline(2, str(tmp_path / "run")), {"train": {"lr": 1e20}})


def test_a_last_batch_of_one_sample_is_trained(cache, given, tmp_path):
    assert (
        train(given, no_baseline(1, str(tmp_path / "run")), {"train": {"batch_size": 3}}).student[
            "epochs"
        ]
        == 1
    )


def test_a_cache_that_lost_a_record_is_refused(cache, given):
    (cache.cache.path / "commits" / "train-v0001-g00001.json").unlink()
    with pytest.raises(
        CacheIncompleteError,
        match="lost shard groups, 5 of 6 shard groups of train.*run `python -m cache_teacher "
        "repair",
    ):
        train(given)
    train(given, {"augment": {"views": 1}, "train": {"epochs": 1}, "run": {"baseline": False}})


REFUSED = {
    "augment.seed": {"augment": {"seed": 3}},
    "dataset.size": {"dataset": {"size": 64}},
    "dataset.num_classes": {"dataset": {"num_classes": 9, "class_names": None}},
    "teacher.precision": {"teacher": {"precision": "bfloat16"}},
    "teacher.layers.mid": {"teacher": {"layers": {"mid": "layer3"}}},
    "dataset.val_split": {"dataset": {"val_split": "train"}},
}


@pytest.mark.parametrize("field", REFUSED)
def test_settings_that_differ_from_the_cache_are_refused(cache, given, field):
    with pytest.raises(
        CacheMismatchError, match=f"{field} is .*expected .*change the settings or cache.path"
    ):
        train(given, REFUSED[field])


def test_another_teachers_file_is_refused_and_an_absent_one_is_not_missed(cache, given, tmp_path):
    state = torch.load(cache.teacher.weights, weights_only=True)
    state["classifier.4.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CacheMismatchError, match="teacher.weights_sha256"):
        train(given, {"teacher": {"weights": str(tmp_path / "other.pth")}})
    gone = {
        "teacher": {"weights": str(tmp_path / "gone.pth")},
        "dataset": {"root": str(tmp_path / "nowhere")},
    }
    train(given, gone, no_baseline(1, str(tmp_path / "run")))


def test_the_cache_path_alone_is_enough(cache, tmp_path):
    given = {"cache": {"path": str(cache.cache.path)}, "student": {"pretrained": False}}
    result = train(given, no_baseline(1, str(tmp_path / "run"))).student
    assert list(result["per_class_iou"])[1] == "horizontal"


def test_more_views_than_cached_and_features_that_are_not_there_are_refused(cache, given):
    with pytest.raises(CacheIncompleteError, match="is 2, expected 5"):
        train(given, {"augment": {"views": 5}})
    with pytest.raises(
        SettingsError, match=r"loss.gamma is 0.3, expected 0 where cache.levels is empty"
    ):
        train(given, {"cache": {"levels": []}})


def test_devices_and_precisions_the_machine_lacks_are_refused(cache, given):
    with pytest.raises(
        SettingsError, match=r"train.device is 'cuda:99', expected auto or one of cpu"
    ):
        train(given, {"train": {"device": "cuda:99"}})


def test_a_student_learns_from_layer4_at_stride_8(given, tmp_path):
    fine = {
        "teacher": {"layers": {"high": "layer4"}, "high_stride": 8},
        "cache": {"levels": ["high"]},
        "train": {"epochs": 1},
    }
    config = make_config(given, fine)
    build_cache(config)
    manifest = read_manifest(config.cache.path)
    assert manifest.layouts["train"].array("high").item_shape == (128, 4, 4)  # of the small teacher
    assert manifest.identity["train"]["teacher"]["high_stride"] == 8
    train(given, {**no_baseline(1, str(tmp_path / "run")), "cache": {"levels": ["high"]}})
    assert read_losses(tmp_path / "run")[0]["feature"] > 0
    same = {"cache": {"levels": ["high"]}, "teacher": {"high_stride": 8}}
    assert resolve_config(config.cache.path, manifest, same).teacher.layers.high == "layer4"
    with pytest.raises(CacheMismatchError, match="teacher.high_stride is 8, expected 16"):
        resolve_config(config.cache.path, manifest, merge(same, {"teacher": {"high_stride": 16}}))


def test_settings_of_a_run_are_typed_when_they_are_read(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {lr: '1e-3', epochs: '3'}")
    assert read_run_settings(tmp_path) == {"train": {"lr": 0.001, "epochs": 3}}
