"""What may be installed: bounds on what decides numbers and reads files, the tested releases in."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LISTS = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
NEEDED = [Requirement(text) for texts in LISTS for text in texts]
BOUNDED = ("h5py", "numcodecs", "numpy", "pillow", "torch", "torchvision", "zarr")


def read_tested() -> dict[str, str]:
    """Package -> release, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name.lower(): release for name, release in (line.split("==") for line in lines)}


@pytest.mark.parametrize("name", BOUNDED)
def test_what_reads_files_or_computes_has_an_upper_bound(name):
    (needed,) = [one for one in NEEDED if one.name == name]
    assert any(bound.operator == "<" for bound in needed.specifier)


def test_every_tested_release_is_allowed():
    tested = read_tested()
    refused = [
        f"{one} excludes {tested[one.name.lower()]}"
        for one in NEEDED
        if one.name.lower() in tested and tested[one.name.lower()] not in one.specifier
    ]
    assert not refused


def test_python_is_what_the_classifiers_say():
    names = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert names and all(f"{name}.5" in allowed for name in names)
    assert f"3.{int(names[-1].partition('.')[2]) + 1}.0" not in allowed


def test_the_workflow_tests_every_python_that_is_supported():
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))[
        "jobs"
    ]
    names = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert jobs["linux"]["strategy"]["matrix"]["python"] == names
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    targets = [step.removeprefix("make ") for step in steps if step.startswith("make ")]
    assert targets and all(f"\n{target}: " in makefile for target in targets)
