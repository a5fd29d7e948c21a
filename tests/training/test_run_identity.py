"""Runs of before stay what they are when a setting is added, and when one is removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from kdcache.analysis.runs import read_run
from kdcache.cache.manifest import MANIFEST, read_manifest
from kdcache.config.parser import make_config, merge
from kdcache.errors import KdcacheError, SettingsError, TrainingError
from kdcache.models.stored_state import load_tensors, save_tensors
from kdcache.seals import seal_json
from kdcache.training.checkpoint import read_checkpoint
from kdcache.training.distill import distill
from kdcache.training.run_folder import (
    BEFORE,
    BEST,
    LAST,
    RESULT,
    SETTINGS,
    read_result,
    read_run_settings,
)
from kdcache.training.run_identity import hyperparameters
from tests.support import quick
from tests.support.events import StopAfter
from tests.support.helpers import check_one_line

FIRST = {
    "student": {"pretrained", "aspp_channels"},
    "loss": {"alpha", "beta", "gamma", "temperature"},
    "train": {"epochs", "batch_size", "lr", "seed", "precision"},
    "augment": {"views"},
    "cache": {"levels"},
}
"""Hyperparameters that the first runs have recorded; never more than these."""
IDLE = {"channel": 0.0, "channel_temperature": 4.0, "project": "teacher"}
"""Removed settings of section loss, as they stand in runs that did not use them."""


def test_a_setting_that_older_runs_do_not_record_has_the_value_they_were_trained_with():
    """Else no run of before can be resumed, and their baselines are trained again."""
    recorded = {f"{section}.{name}" for section, names in FIRST.items() for name in names}
    now = set(hyperparameters(make_config({"train": {"device": "cpu"}})))
    assert now - recorded == set(BEFORE), (
        "BEFORE in kdcache/training/run_folder.py and the hyperparameters differ: give each new "
        "setting in BEFORE the value that does what was done before there was it; one that moves "
        "no number is taken out in hyperparameters() of run_identity.py"
    )


@pytest.fixture(scope="module")
def ended(quick_data, tmp_path_factory) -> tuple[Path, Path]:
    """A quick cache, and a run of two epochs from it with its baseline. Read only."""
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        quick.build_quick(quick_data, folder / "cache")
    train(folder / "cache", folder / "runs" / "kd", baseline=True)
    return folder / "cache", folder / "runs"


@pytest.fixture
def runs(ended, tmp_path) -> Path:
    """A copy of the folder of the run and its baseline."""
    return Path(shutil.copytree(ended[1], tmp_path / "runs"))


def train(root: Path, folder: Path, *, events=None, **run):
    student = {"pretrained": False, "aspp_channels": 16}
    sizes = {"epochs": 2, "batch_size": 2, "device": "cpu"}
    run = {"dir": str(folder), "track": "none", **run}
    return distill({"student": student, "train": sizes, "run": run}, root=root, events=events)


def record(folder: Path, **removed: object) -> None:
    """Write removed settings of the loss into the files of a run, as the kdcache of then did."""
    facts = {f"loss.{name}": value for name, value in removed.items()}
    settings = yaml.safe_load((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(yaml.safe_dump(merge(settings, {"loss": removed})))
    for path in (path for path in (folder / BEST, folder / LAST) if path.is_file()):
        state, _ = load_tensors(path)
        save_tensors(path, merge(state, {"hyperparameters": facts}))
    if (folder / RESULT).is_file():
        rewrite(folder / RESULT, {"hyperparameters": facts})


def rewrite(path: Path, changes: dict) -> None:
    """Change a sealed document."""
    document = json.loads(path.read_text())
    del document["sha256"]
    path.write_bytes(seal_json(merge(document, changes)))


def test_a_run_with_removed_settings_that_did_nothing_is_resumed_bit_for_bit(ended, runs, tmp_path):
    root, (baseline,) = ended[0], runs.glob("baseline-*")
    cut = runs / "cut"
    with pytest.raises(KeyboardInterrupt):
        train(root, cut, baseline=False, events=StopAfter(1))
    for folder in (cut, baseline, runs / "kd"):
        record(folder, **IDLE)
    train(root, cut, resume=True)
    assert [path.name for path in runs.glob("baseline-*")] == [baseline.name]
    ours, theirs = (read_result(runs / name) for name in ("cut", "kd"))
    assert ours["hyperparameters"] == theirs["hyperparameters"]
    assert ours["miou"] == theirs["miou"] and ours["baseline_miou"] == theirs["baseline_miou"]
    a, b = (read_checkpoint(runs / name / LAST) for name in ("cut", "kd"))
    assert a["hyperparameters"] == b["hyperparameters"]
    for part in ("model_state_dict", "alignment_state_dict"):
        assert all((value == b[part][key]).all() for key, value in a[part].items())
    assert read_run(runs / "kd").facts == read_run(ended[1] / "kd").facts  # compared as one row


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ({"channel": 3.0}, "loss.channel is 3.0, expected 0.0, as it was removed in 0.2.0"),
        ({"project": "student"}, "loss.project is 'student', expected 'teacher', as it was"),
        ({"channel": [[1]]}, "loss.channel is [[1]], expected 0.0, as it was removed in 0.2.0"),
    ],
)
def test_a_run_that_used_a_removed_setting_is_refused_by_name(ended, runs, removed, words):
    run = runs / "kd"
    record(run, **removed)
    for read, name, kind in (
        (read_run_settings, SETTINGS, SettingsError),
        (read_result, RESULT, TrainingError),
        (lambda folder: read_checkpoint(folder / LAST), LAST, TrainingError),
    ):
        with pytest.raises(kind) as error:
            read(run)
        check_one_line(error, f"{run / name}: {words}", "; use the kdcache that trained it")
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(KdcacheError, match="removed in 0.2.0"):
        train(ended[0], run, resume=True)
    (run / RESULT).unlink()
    with pytest.raises(KdcacheError, match="removed in 0.2.0"):
        train(ended[0], run, resume=True)
    assert all(data == before[path] for path, data in before.items() if path.name != RESULT)


def test_a_cache_is_read_whatever_loss_its_maker_had(ended, tmp_path):
    """Only sections that say something about a cache are read of its manifest."""
    root = Path(shutil.copytree(ended[0], tmp_path / "cache"))
    loss = {"channel": 3.0, "project": "student"}
    rewrite(root / MANIFEST, {"information": {"settings": {"loss": loss}}})
    assert read_manifest(root).identity_hash == read_manifest(ended[0]).identity_hash
    assert train(root, tmp_path / "run", baseline=False).student["epochs"] == 2
