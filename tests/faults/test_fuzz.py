"""Files of every kind with random damage: each command that reads one ends well or in one line, in
10 seconds and without a gigabyte; nothing is written elsewhere, and nothing is run.

`make nightly` damages each file 100 times, `make exhaustive` 2,000; a failure names the number
of its damage.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdcache.training.run_folder import BEST, LAST, METRICS, RESULT, SETTINGS
from tests.support.effort import FULL, QUICK
from tests.support.odd_world import LOOKING, check_command, make_world, seal_text

ALL = "all"
DAMAGES = {QUICK: 12, FULL: 100, ALL: 2_000}
MOST_S, MOST_KB = 10.0, 1_000_000
WORDS = [
    b"null", b"NaN", b"1e999", b"-1", b"9" * 400, b'""', b"[]", b"{}", b"true", b"\x00",
    b"\xff\xfe",
    b"../../../outside", b"/etc/passwd", b"\x1b[2J", b"[" * 3_000, b'{"a":' * 500, b"&a [*a, *a]",
    b"!!python/object/apply:os.system [touch outside]", b"!!bool x", b"1:" * 200 + b"1.5",
    rb"\u0000", rb"\ud800", b"n" * 90_000, b"torch.hub:load", b"os:system", b"\r\n",
]  # fmt: skip
RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class File:
    """A file of the world, the commands that read it, and how a damaged text is sealed again."""

    key: str
    commands: tuple[str, ...]
    reseal: Callable[[bytes], bytes] | None = None


PREDICT = "predict run/kd {} --out out"
FILES = {
    "manifest": File("cache/manifest.json", (*LOOKING, "gc cache --dry-run", "train"), seal_text),
    "record": File(
        "cache/commits/train-v0000-g00000.json",
        (*LOOKING, "view cache --out page.html --split train"),
        seal_text,
    ),
    "metadata": File("cache/train/logits/zarr.json", ("verify cache", "info cache")),
    "packed": File("packed.h5", ("info packed.h5", "verify packed.h5 --data")),
    "result": File(f"run/kd/{RESULT}", ("compare run --csv t.csv --html t.html", "report run/kd")),
    "metrics": File(f"run/kd/{METRICS}", ("compare run", "report run/kd")),
    "settings": File(f"run/kd/{SETTINGS}", ("compare run", PREDICT.format("photo.png"))),
    "checkpoint": File(f"run/kd/{BEST}", (PREDICT.format("photo.png"), "report run/kd")),
    "last checkpoint": File(f"half/kd/{LAST}", ("go on",)),
    "state of a fit": File("fit/t.pth.state", ("fit",)),
    "own settings": File("given.yaml", ("build", "train")),
    "grid": File("grid.yaml", ("grid",)),
    "list": File("data/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", ("build",)),
    "label": File("data/VOCdevkit/VOC2012/SegmentationClass/sample_train_0000.png", ("build",)),
    "photograph": File("photo.jpg", (PREDICT.format("photo.jpg"),)),
    "PNG": File("photo.png", (PREDICT.format("photo.png"),)),
}


def damage(data: bytes, draw: random.Random) -> bytes:
    """One to three random changes: bits, slices, words that mean something to a parser."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + int(draw.expovariate(1 / 40)))
        part, kind = data[start:stop], draw.randrange(7)
        if kind == 0 and data:
            place = draw.randrange(len(data))
            flipped = bytes([data[place] ^ 1 << draw.randrange(8)])
            data = data[:place] + flipped + data[place + 1 :]
        elif kind == 1:
            data = data[:start] + data[stop:]
        elif kind == 2:
            data = data[:start] + part * draw.choice((2, 3, 50)) + data[stop:]
        elif kind == 3:
            data = data[:start] + draw.choice(WORDS) + data[stop:]
        elif kind == 4:
            data = data[:start] + draw.randbytes(len(part)) + data[stop:]
        elif kind == 5:
            data = data[:start]
        else:
            data = data[:start] + bytes(len(part)) + data[stop:]
    return data


class Watch:
    """What a command runs, and what it opens for writing outside of a folder.

    An audit hook stays for as long as the process lives, so there is one, and it mostly sleeps.
    """

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if self.inside is None:
            return
        if event in RUNS:
            self.seen.append(f"{event} {args[:1]}")
        elif event == "open" and isinstance(args[0], (str, bytes)) and (args[2] or 0) & WRITES:
            path = Path(os.fsdecode(args[0])).absolute()
            if not (path.is_relative_to(self.inside) or path.is_relative_to("/dev")):
                self.seen.append(f"writes {path}")

    @contextmanager
    def over(self, inside: Path) -> Iterator[None]:
        self.inside, self.seen = inside, []
        try:
            yield
        finally:
            self.inside = None


WATCH = Watch()


@pytest.fixture(scope="module")
def world(quick_data, tmp_path_factory) -> Path:
    return make_world(quick_data, tmp_path_factory.mktemp("fuzz") / "world")


def make_damaged(file: File, whole: bytes, number: int) -> bytes:
    draw = random.Random(f"{file.key} {number}")
    changed = damage(whole, draw)
    return file.reseal(changed) if file.reseal and draw.random() < 0.7 else changed


def check_limits(work: Callable[[], object], here: Path) -> list[str]:
    """Do it; what it did that nothing may do."""
    began_s, before_kb = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with WATCH.over(here):
        work()
    took_s = time.monotonic() - began_s
    more_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    slow = [f"took {took_s:.1f} s"] if took_s > MOST_S else []
    return WATCH.seen + slow + ([f"took {more_kb} kB"] if more_kb > MOST_KB else [])


@pytest.mark.parametrize(
    "effort",
    [
        QUICK,
        pytest.param(FULL, marks=pytest.mark.nightly),
        pytest.param(ALL, marks=[pytest.mark.exhaustive, pytest.mark.timeout(7200)]),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_or_one_line(world, tmp_path, monkeypatch, capsys, name, effort):
    file, here, failed, codes = FILES[name], tmp_path / "here", [], set()
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))  # for weights that damaged settings name
    whole = (world / file.key).read_bytes()
    for number in range(DAMAGES[effort]):
        if number % 20 == 0:  # commands leave runs and pages behind
            monkeypatch.chdir(tmp_path)
            shutil.rmtree(here, ignore_errors=True)
            shutil.copytree(world, here)
            monkeypatch.chdir(here)
        command = file.commands[number % len(file.commands)]
        (here / file.key).write_bytes(make_damaged(file, whole, number))
        try:
            found = check_limits(lambda: codes.add(check_command(command, capsys)), here)  # noqa: B023
        except AssertionError as error:
            found = [str(error)[:400]]
        failed += [f"damage {number}, {command}: {what}" for what in found]
        assert len(failed) < 20, "\n".join(failed)
    monkeypatch.chdir(tmp_path)
    assert not failed, "\n".join(failed)
    assert codes & {1, 2} or effort == QUICK
