"""Runs the commands of README.md and docs/ as they are written, on small data: `make readme`;
some minutes on two cores.

In a temporary folder with the project's packages, the shipped configurations cut to one epoch, data
sets generated for demo and CamVid, teachers with random weights, and an S3 server on this machine.
What cannot be run is listed with its reason; Python blocks that begin with `# NAME.py` become
files, others are run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from PIL import Image

from kdcache.data.sample_set import write_sample_set
from kdcache.data.voc import VOC_DIR
from kdcache.models.teacher import build_fcn
from tests.support.pages import GUIDES, ROOT, list_blocks, list_commands, read
from tests.support.s3_server import CREDENTIALS, make_bucket, serve_s3

NOT_RUN = {
    "pip install": "installs packages",
    "tests/integrity": "asks what a teacher knows; this one has random weights (make test runs it "
    "on a cache of its own)",
    "export AWS_PROFILE": "names an account; here the keys are in the environment",
    "#!/bin/bash": "needs a SLURM cluster",
    "COCO_WITH_VOC_LABELS_V1": "downloads weights",
    "python -m cache_teacher$": "downloads VOC 2012, 2 GB",
    "python -m train_student$": "needs the cache of VOC 2012",
    "(data|configs)/ccp": "needs the photographs of Clothing Co-Parsing",
    "make gpu|build/gpu": "needs a GPU; a test takes its steps at tiny sizes",
    "--record": "writes into a page of this project",
}
PHASES = (
    "python -m cache_teacher --config configs/demo.yaml && "
    "python -m train_student --config configs/demo.yaml --run.resume"
)
INSTEAD = {  # an expression, and what stands there on small data
    "make demo": PHASES,
    "s3://BUCKET": "s3://bucket",
    "/scratch/": "scratch/",
    "caches/voc2012": "caches/camvid",
    # few directions hold what a teacher has learnt, not the features of random weights
    "fidelity caches/compact": "fidelity caches/demo",
    # by boto3
    r"aws s3 sync (\S+) s3://(\w+)/(\S+)": r"python -m tests.support.s3_copy \1 \2 \3",
    "(train_student --cache.path .*)": r"\1 --train.epochs 1",  # no config that was cut
    # hours: what would be trained is listed, or a part of it is
    "(tests.study gain .*)": r"\1 --dry-run",
    r"make study-encodings CONFIG=(\S+)": r"python -m tests.study encodings --config \1 "
    "--out build/study-encodings --seeds 0 --arms none,exact",
    "(tests.study encodings .*--views) .*": r"\1 1,2 --seeds 0",
    "(runs/tune .*|runs/chosen .*) --seeds .*": r"\1 --seeds 0",
}


def find_reason(command: str) -> str | None:
    """Why a command is not run, if it is not."""
    return next((reason for words, reason in NOT_RUN.items() if re.search(words, command)), None)


def prepare(folder: Path) -> None:
    """The project as a user has it, with data and teachers that take no time."""
    for name in ("kdcache", "cache_teacher", "train_student", "tests", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for name, ours in (("photos", "JPEGImages"), ("masks", "SegmentationClass")):
        (folder / name).symlink_to(folder / "data" / "camvid" / VOC_DIR / ours)
    (folder / "coloured").mkdir()
    (folder / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.yaml"):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings["train"] = {**settings["train"], "epochs": 1}
        settings["fit"] = {**settings.get("fit", {}), "epochs": 1}
        (folder / "configs" / path.name).write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "teachers").mkdir()
    torch.manual_seed(0)
    for name, file, num_classes in (
        ("demo", "demo.pth", 8),
        ("camvid", "fcn_resnet50_camvid.pt", 11),
    ):
        write_sample_set(folder / "data" / name, num_train=12, num_val=4)
        teacher = build_fcn("fcn_resnet50", num_classes=num_classes, aux_head=True)
        torch.save(teacher.state_dict(), folder / "teachers" / file)
    for path in (folder / "masks").iterdir():
        with Image.open(path) as mask:  # in VOC's colours
            mask.convert("RGB").save(folder / "coloured" / path.name)


def run_all(folder: Path, env: dict[str, str]) -> Iterator[tuple[str, str, float]]:
    """(command, outcome, seconds), page by page; an outcome is "ok", "not run: ..." or what went
    wrong.
    """
    for language, block in (block for page in GUIDES for block in list_blocks(read(page))):
        if language == "python" and (name := re.match(r"# (\w+\.py)\n", block)):
            (folder / name[1]).write_text(block, encoding="utf-8")
        elif language == "python":
            yield _run([sys.executable, "-c", block], block.splitlines()[0], folder, env)
        elif language == "bash":
            for command in list_commands(block):
                reason = find_reason(command)
                yield (
                    (command, f"not run: {reason}", 0.0)
                    if reason
                    else _run_command(command, folder, env)
                )


def _run_command(command: str, folder: Path, env: dict[str, str]) -> tuple[str, str, float]:
    words = command
    for placeholder, ours in INSTEAD.items():
        words = re.sub(placeholder, ours, words)
    return _run(["bash", "-c", words], command, folder, env)


def _run(words: list[str], name: str, folder: Path, env: dict[str, str]) -> tuple[str, str, float]:
    began_s = time.monotonic()
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    outcome = "ok" if done.returncode == 0 else f"exit code {done.returncode}: {''.join(tail)}"
    return name, outcome, time.monotonic() - began_s


def main() -> int:
    """Print each command with what became of it; 1 where one failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as name, serve_s3() as endpoint:
        folder = Path(name)
        prepare(folder)
        make_bucket(endpoint, "bucket")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {
            **os.environ,
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": endpoint,
            "PATH": path,
            "no_proxy": "127.0.0.1",
        }
        for command, outcome, took_s in run_all(folder, env):
            failed += not outcome.startswith(("ok", "not run"))
            print(f"{took_s:6.1f} s  {outcome:<10}  {command.splitlines()[0]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
