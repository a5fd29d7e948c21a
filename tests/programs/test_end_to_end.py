"""Both programs, as a user starts them, on a tiny sample set."""

import json
import subprocess
import sys

import pytest
import torch
import yaml

from kdcache.config.parser import merge


@pytest.fixture
def given(given, real_teacher_file) -> dict:
    """With the real teacher, as a user has it."""
    return merge(given, {"teacher": {"weights": str(real_teacher_file)}})


def run(module: str, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *argv], capture_output=True, text=True, timeout=300
    )


def test_both_programs_run_from_a_yaml_file_to_a_result(given, tmp_path):
    config_file = tmp_path / "tiny.yaml"
    config_file.write_text(yaml.safe_dump(given))
    cached = run("cache_teacher", "--config", str(config_file))
    assert cached.returncode == 0, cached.stderr
    assert " on val, " in cached.stdout and " on training views" in cached.stdout

    trained = run("train_student", "--config", str(config_file), "--loss.beta", "0.7")
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "runs" / "kd"
    result = json.loads((folder / "result.json").read_text())
    assert result["epochs"] == 2 and 0 <= result["miou"] <= 1
    assert result["improvement_points"] == 100 * (result["miou"] - result["baseline_miou"])
    assert yaml.safe_load((folder / "config.yaml").read_text())["loss"]["beta"] == 0.7
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    checkpoint = torch.load(folder / "student_kd_last.pth", weights_only=True)
    assert checkpoint["cache_identity"] == result["cache_identity"]
    assert set(checkpoint["alignment_state_dict"]) == {"low.weight", "mid.weight", "high.weight"}

    info = run("cache_teacher", "info", given["cache"]["path"], "--json")
    splits = json.loads(info.stdout)["splits"]
    assert splits["train"]["groups_committed"] == splits["train"]["groups"] == 2 * 3
    assert splits["val"]["groups_committed"] == 2


def test_training_never_imports_the_teacher(given, tmp_path):
    config_file = tmp_path / "tiny.yaml"
    config_file.write_text(yaml.safe_dump(given))
    assert run("cache_teacher", "--config", str(config_file)).returncode == 0
    script = f"""
import sys, torchvision.models.segmentation.fcn as fcn
def refuse(*a, **k): raise AssertionError("an FCN was built")
fcn.FCN.__init__ = refuse
from train_student.cli import main
words = ["--config", {str(config_file)!r}, "--run.baseline", "false", "--train.epochs", "1"]
assert main(words) == 0
assert "kdcache.models.teacher" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
