"""The wheel that `pip install kdcache` takes has all that both programs need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("kdcache", "cache_teacher", "train_student", "pyproject.toml", "README.md", "LICENSE")
TINY = {
    "dataset.root": "data", "dataset.train_split": "few", "dataset.num_classes": 8,
    "dataset.size": 32, "dataset.val_size": 32, "dataset.download": "false", "augment.views": 1,
    "teacher.weights": "teacher.pth", "fit.out": "teacher.pth", "fit.epochs": 1,
    "cache.path": "cache", "student.pretrained": "false",
    "train.epochs": 1, "run.dir": "runs/kd", "run.baseline": "false",
}  # fmt: skip


def run(python: Path, folder: Path, *words: str) -> str:
    """Run a module in a folder that holds nothing of the project; returns what it prints."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-m", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def installed(tmp_path) -> Path:
    """The Python of an environment with the built wheel, and the other packages of this one."""
    source, env = tmp_path / "source", tmp_path / "env"
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    (wheel,) = tmp_path.glob("kdcache-*.whl")
    subprocess.run([*pip, "--python", env, "install", "--no-deps", wheel], check=True)
    here = {"base": str(env), "platbase": str(env)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=here))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return Path(sysconfig.get_path("scripts", "venv", vars=here)) / Path(sys.executable).name


@pytest.mark.nightly
def test_both_programs_run_from_a_wheel(installed, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    settings = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    run(installed, folder, "cache_teacher", "sample-set", "data")
    run(installed, folder, "cache_teacher", "fit", *settings)
    built = json.loads(run(installed, folder, "cache_teacher", *settings, "--json"))
    assert built["num_samples"] > 0
    trained = json.loads(run(installed, folder, "train_student", *settings, "--json"))
    assert (folder / trained["report"]).stat().st_size > 10_000
