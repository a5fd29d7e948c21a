"""Everything that only a GPU can tell, in one file that makes page text: `make gpu`.

python -m tests.gpu --root data/camvid --out build/gpu    tests, speeds, a study at 360x480
python -m tests.gpu --out build/gpu --minutes 9           at most so long; the same command goes on
python -m tests.gpu --out build/try --quick               tiny sizes, also on a CPU: does it run?

Each step leaves NAME.json and NAME.log in --out; one that has its result is skipped. What went
wrong is tried again when nothing else is left. Then print the tables:
`python -m tests.bench --markdown build/gpu/gpu.json`. A machine without network needs no .venv:
`make gpu GPU_PYTHON=python3`, with what pyproject.toml names on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
import yaml

from kdcache.config.parser import merge
from kdcache.data.sample_set import CLASS_NAMES, write_sample_set
from kdcache.machine.devices import REPEATABLE, WORKSPACE
from kdcache.machine.process import find_driver
from tests.bench import machine
from tests.bench.figures import SPECS
from tests.study.gain.results import read_lines

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_cuda.py", "tests/precompute/test_pipeline.py")  # all that are marked `cuda`
RESULTS = "study/report/results.jsonl"
STUDY = ROOT / "tests/study/gain_camvid_full.yaml"
PARTS = {  # of the bench -> minutes on an H100, a guess
    "training": 3, "gpu": 3, "phase_one": 3, "training_batch32": 3, "kernels": 1, "loss": 1,
    "reading": 1,
}  # fmt: skip
REPEATS = {WORKSPACE: REPEATABLE[0]}  # for kernels alone, since other figures may feel it
GRACE_S = 30.0  # for a step that is told to end


@dataclass(frozen=True)
class Step:
    """A command, and what becomes of its files.

    Args:
        words: of the interpreter. minutes: a guess: with less time left it is not begun.
        file: what it writes. read: what the document holds of that.
        goes_on: whether it takes up what it has left when it was stopped.
    """

    name: str
    words: Sequence[str | Path]
    minutes: float
    file: Path
    read: Callable[[Path], dict]
    goes_on: bool = False
    env: dict[str, str] = field(default_factory=dict)


def main(argv: list[str]) -> int:
    """Take the steps that are left; 0 if all is there, 1 if something is missing or has failed."""
    options = _parse(argv)
    if not (options.quick or torch.cuda.is_available()):
        print("no CUDA device; --quick tries the steps on the CPU", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    return run_steps(make_steps(options), options)


def make_steps(options: argparse.Namespace) -> list[Step]:
    """All of them, the most important first."""
    out, quick = options.out, ["--quick"] if options.quick else []
    root, study = _make_small(out) if options.quick else (options.root, STUDY)
    report = out / "cuda.xml"
    words = ["-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", *TESTS]
    words.append(f"--junitxml={report}")
    tests = Step("tests", words, 3, report, read_report)
    speeds = []
    for part, minutes in PARTS.items():
        file = out / f"bench-{part}.json"
        words = ["-m", "tests.bench", "--only", part, "--dir", out, "--out", file, *quick]
        env = REPEATS if part == "kernels" else {}
        speeds.append(Step(part, words, minutes, file, read_figures, env=env))
    words = ["-m", "tests.study", "gain", "--config", study, "--root", root]
    words += ["--out", out / "study", "--jobs", 1 if options.quick else 4]
    gain = Step("study", words, 7, out / RESULTS, lambda path: {}, goes_on=True)
    return [tests, *speeds[:3], gain, *speeds[3:]]


def run_steps(steps: Sequence[Step], options: argparse.Namespace) -> int:
    """Take each step without a result while there is time, then write the document."""
    ends_s = time.monotonic() + 60 * options.minutes
    known = {step.name: _read_result(options.out, step) for step in steps}
    fresh = [step for step in steps if known[step.name] is None]
    again = [step for step in steps if known[step.name] and "failed" in known[step.name]]
    for number, step in enumerate([*fresh, *again]):
        left_s = ends_s - time.monotonic()
        if number and left_s < 60 * step.minutes and not (step.goes_on and left_s > 60):
            continue  # a shorter one may fit
        result = run_step(step, options.out, limit_s=left_s)
        if result:
            known[step.name] = result
            (options.out / f"{step.name}.json").write_text(json.dumps(result, indent=1))
        write_document(known, options)
    write_document(known, options)
    left = [name for name, result in known.items() if result is None]
    failed = [name for name, result in known.items() if result and "failed" in result]
    for names, what in ((left, "left, the same command goes on"), (failed, "failed, see its log")):
        if names:
            print(f"{', '.join(names)}: {what}")
    print(options.out / "gpu.json")
    return int(bool(left or failed))


def run_step(step: Step, out: Path, *, limit_s: float) -> dict | None:
    """Run its command; returns what it gave, None if the time was over."""
    command = [sys.executable, *map(str, step.words)]
    began_s = time.monotonic()
    if not step.goes_on:
        step.file.unlink(missing_ok=True)  # of a run that has failed
    with (out / f"{step.name}.log").open("w") as log:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **step.env}
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            code = child.wait(limit_s if limit_s < float("inf") else None)
        except subprocess.TimeoutExpired:
            _end(child)
            print(f"{step.name}: no time left, stopped", flush=True)
            return None
        except KeyboardInterrupt:
            _end(child)
            raise
    result = {"elapsed_s": round(time.monotonic() - began_s, 1), **_read(step)}
    if code:
        result["failed"] = f"exit code {code}"
    print(f"{step.name}: {result['elapsed_s']:.0f} s, {result.get('failed', 'done')}", flush=True)
    return result


def _end(child: subprocess.Popen) -> None:
    """As by Ctrl-C, and for good if that does not help."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _read(step: Step) -> dict:
    try:
        return {"found": step.read(step.file)}
    except (OSError, ValueError, KeyError, ElementTree.ParseError):
        return {"found": {}}  # its log says why


def _read_result(out: Path, step: Step) -> dict | None:
    path = out / f"{step.name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def read_figures(path: Path) -> dict:
    """Key -> figure of a file of the bench."""
    return json.loads(path.read_text())["figures"]


def read_report(path: Path) -> dict:
    """Numbers of tests, and the names of those that failed, from a JUnit file."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    total, failed, errors, skipped = (
        int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")
    )
    bad = [
        case.get("name") for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]  # fmt: skip
    passed = total - failed - errors - skipped
    return {"passed": passed, "failed": failed + errors, "skipped": skipped, "names": bad}


def write_document(known: dict[str, dict | None], options: argparse.Namespace) -> None:
    """What there is of all steps, in the form of bench.json."""
    there = {name: result for name, result in known.items() if result}
    figures = {key: value for name in PARTS for key, value in _find(there, name).items()}
    document = {
        "date": str(date.today()),
        "quick": options.quick,
        "machine": {**machine.read_machine(), "driver": find_driver()},
        "versions": machine.read_versions(),
        "elapsed_s": {name: result["elapsed_s"] for name, result in there.items()},
        "figures": {spec.key: figures[spec.key] for spec in SPECS if spec.key in figures},
        "tests": _find(there, "tests"),
        "study": read_lines(options.out / RESULTS),  # also of a study that has not ended
    }
    (options.out / "gpu.json").write_text(json.dumps(document, indent=1))


def _find(there: dict[str, dict], name: str) -> dict:
    return there.get(name, {}).get("found", {})


def _make_small(out: Path) -> tuple[Path, Path]:
    """A data set and the study of a few seconds, with the same arms and teachers."""
    write_sample_set(out / "data", num_train=10, num_val=4, size_px=48)
    given = yaml.safe_load(STUDY.read_text())
    for teacher in given["teachers"].values():
        teacher["fit"] = {"fit": {"epochs": 1, "batch_size": 4}}
    data = {"num_classes": len(CLASS_NAMES), "class_names": list(CLASS_NAMES), "size": 48}
    given["settings"] = merge(
        given["settings"],
        {"dataset": data, "student": {"aspp_channels": 16}, "train": {"batch_size": 4}},
    )
    given |= {"every": [2], "budgets": [3]}
    arms = list(given["arms"])
    block = {"every": [2], "arms": arms, "budgets": [3], "teachers": ["all"], "seeds": 1}
    given["grids"] = {"report": [block]}
    path = out / "study.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return out / "data", path


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data/camvid"), metavar="FOLDER",
        help="CamVid in VOC layout (default: data/camvid)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu"), metavar="FOLDER", help="default: build/gpu"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), metavar="N", help="default: until it is done"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, also without a GPU")
    options = parser.parse_args(argv)
    options.out, options.root = options.out.absolute(), options.root.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
