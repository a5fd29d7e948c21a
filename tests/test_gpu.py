"""`make gpu`: its steps, one after the other, resumed and stopped; and all of it at tiny sizes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import gpu
from tests.bench.__main__ import PARTS
from tests.bench.__main__ import main as bench
from tests.bench.figures import find_parts

ROOT = Path(__file__).parents[1]


def make_step(folder: Path, name: str, code: str, **more) -> gpu.Step:
    """A step of a line of Python, which may write into `file`."""
    file = folder / f"{name}.found"
    script = folder / f"{name}_step.py"
    script.write_text(f"import sys, time\nfile = {str(file)!r}\n{code}\n")
    return gpu.Step(name, [script], 0.01, file, lambda path: json.loads(path.read_text()), **more)


def count(text: str) -> str:
    return f"open(file, 'w').write({text!r}); open(file + '.runs', 'a').write('x')"


@pytest.fixture
def options(tmp_path):
    return gpu._parse(["--out", str(tmp_path), "--quick"])


def test_a_step_with_a_result_is_skipped_and_a_failed_one_is_tried_again(options, tmp_path, capsys):
    figure = {"deterministic_step": {"value": 1.5}}
    steps = [
        make_step(tmp_path, "loss", count('{"loss_pixels": 1}') + "; sys.exit(3)"),
        make_step(tmp_path, "kernels", count(json.dumps(figure))),
    ]
    assert gpu.run_steps(steps, options) == 1
    assert "loss: failed, see its log" in capsys.readouterr().out
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["figures"] == {"loss_pixels": 1, **figure}
    assert set(document["elapsed_s"]) == {"loss", "kernels"}
    steps[0] = make_step(tmp_path, "loss", count("{}"))
    assert gpu.run_steps(steps, options) == 0
    runs = {step.name: step.file.with_suffix(".found.runs").read_text() for step in steps}
    assert runs == {"loss": "xx", "kernels": "x"}


def test_what_a_failed_attempt_has_left_is_not_taken_for_a_result(options, tmp_path):
    step = make_step(tmp_path, "loss", "sys.exit(1)")
    step.file.write_text('{"loss_pixels": {}}')
    assert gpu.run_step(step, tmp_path, limit_s=60)["found"] == {}


def test_when_the_time_is_over_a_step_is_stopped_and_the_next_call_goes_on(
    options, tmp_path, capsys
):
    wait = (
        f"open(file + '.begun', 'a').write('x')\ntry:\n  time.sleep(60)\nfinally:\n  {count('{}')}"
    )
    steps = [make_step(tmp_path, "loss", wait), make_step(tmp_path, "kernels", count("{}"))]
    options.minutes = 3 / 60
    assert gpu.run_steps(steps, options) == 1
    said = capsys.readouterr().out
    assert "loss: no time left, stopped" in said and "kernels, loss" not in said
    assert "loss, kernels: left, the same command goes on" in said
    assert (tmp_path / "loss.found").exists()  # it was interrupted, not killed
    assert not (tmp_path / "loss.json").exists()
    steps[0], options.minutes = make_step(tmp_path, "loss", count("{}")), 1
    assert gpu.run_steps(steps, options) == 0


def test_without_a_gpu_only_a_quick_run_is_made(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu")]) == 2
    assert capsys.readouterr().err.startswith("no CUDA device; --quick")


def test_every_figure_of_a_gpu_and_every_cuda_test_is_in_it():
    assert set(find_parts("gpu_busy,benchmark_step,online_speedup_batch32")) <= set(gpu.PARTS)
    assert set(gpu.PARTS) <= set(PARTS)
    assert PARTS.keys() == set(find_parts(None))
    marked = re.compile(r"^(@|    )pytest\.mark\.cuda\b", re.MULTILINE)
    files = (path for path in ROOT.glob("tests/**/*.py") if marked.search(path.read_text()))
    assert {path.relative_to(ROOT).as_posix() for path in files} == set(gpu.TESTS)


def test_tests_are_counted_and_those_that_failed_are_named(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n"
        "@pytest.fixture\ndef c(): raise OSError\ndef test_c(c): pass\n"
        "def test_d(): pytest.skip('')\n"
    )
    report = tmp_path / "report.xml"
    words = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *words, str(tmp_path / "test_three.py")]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
    found = gpu.read_report(report)
    assert found == {"passed": 1, "failed": 2, "skipped": 1, "names": ["test_b", "test_c"]}


@pytest.mark.nightly
def test_a_quick_run_takes_every_step_and_makes_page_text(tmp_path, capsys):
    command = [sys.executable, "-m", "tests.gpu", "--quick", "--out", str(tmp_path / "gpu")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    file = tmp_path / "gpu" / "gpu.json"
    document = json.loads(file.read_text())
    assert document["tests"]["failed"] == document["tests"]["passed"] == 0  # none without a GPU
    assert document["tests"]["skipped"] > 20
    assert {line["arm"] for line in document["study"]} == {"labels", "recipe"}
    assert set(document["elapsed_s"]) == {"tests", "study", *gpu.PARTS}
    assert document["figures"]["kd_tax"]["value"] > 0
    assert document["figures"]["gpu_busy"]["verdict"] == "skipped"
    assert bench(["--markdown", str(file)]) == 0
    text = capsys.readouterr().out
    assert "Tests that need CUDA: 0 passed, 0 failed" in text and "| `kd_tax` |" in text
    assert "camvid_full, 3 steps:" in text and "The teacher's own mIoU" in text
