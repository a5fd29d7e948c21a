"""What several test files need: a folder in VOC layout made by hand, a web server on this machine,
one-line errors.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import voc as torchvision_voc

from kdcache.data.voc import VOC_DIR

VOC = Path("VOCdevkit") / "VOC2012"
ARCHIVE = "tiny.tar"
NOBODY_LISTENS = "http://127.0.0.1:9"  # the discard port: refused at once


def write_voc(
    root: Path,
    splits: Mapping[str, list[str]],
    *,
    hw: tuple[int, int] = (20, 24),
    num_classes: int = 3,
) -> Path:
    """Lists and one distinct image and label per id; returns the folder VOC2012."""
    base = root / VOC
    for folder in (
        "JPEGImages",
        "SegmentationClass",
        "SegmentationClassAug",
        "ImageSets/Segmentation",
    ):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for split, ids in splits.items():
        write_list(base, split, ids)
        for sample_id in ids:
            write_sample(base, sample_id, hw=hw, num_classes=num_classes)
    return base


def write_list(base: Path, split: str, ids: list[str]) -> None:
    (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(
        "".join(f"{i}\n" for i in ids), encoding="utf-8"
    )


def write_sample(base: Path, sample_id: str, *, hw: tuple[int, int], num_classes: int) -> None:
    generator = np.random.default_rng(list(sample_id.encode()))
    Image.fromarray(generator.integers(0, 256, (*hw, 3), np.uint8)).save(
        base / "JPEGImages" / f"{sample_id}.jpg"
    )
    label = generator.integers(0, num_classes, hw).astype(np.uint8)
    label[:2] = 255
    save_label(base / "SegmentationClass" / f"{sample_id}.png", label)


def save_label(path: Path, label_HW: np.ndarray) -> None:
    """An 8-bit palette PNG, as VOC stores labels."""
    picture = Image.frombytes("P", label_HW.shape[::-1], label_HW.tobytes())
    picture.putpalette([channel for k in range(256) for channel in (k, 255 - k, k // 2)])
    picture.save(path)


@contextmanager
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve a folder's files on this machine; gives the address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with run_server(
        ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    ) as address:
        yield address


@contextmanager
def run_server(server: ThreadingHTTPServer) -> Iterator[str]:
    """Let it answer in a thread; gives the address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_at_once(work: Callable[[object], object], items: Iterable[object]) -> list[Exception]:
    """`work` on each item in a thread of its own, all begun together; returns what they raised."""
    items, errors = list(items), []
    start = threading.Barrier(len(items))

    def run(item: object) -> None:
        start.wait()
        try:
            work(item)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def without_aux(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of torchvision's without the auxiliary head, which kdcache does not read."""
    return {name: x for name, x in state.items() if not name.startswith("aux_classifier.")}


def check_one_line(error: pytest.ExceptionInfo | BaseException, *parts: str) -> None:
    """The message is a single line that holds all parts."""
    message = str(error.value if isinstance(error, pytest.ExceptionInfo) else error)
    assert "\n" not in message
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in {message!r}"


def point_torchvision_at(monkeypatch: pytest.MonkeyPatch, url: str, md5: str) -> None:
    entry = {"url": f"{url}/{ARCHIVE}", "filename": ARCHIVE, "md5": md5, "base_dir": str(VOC_DIR)}
    monkeypatch.setitem(torchvision_voc.DATASET_YEAR_DICT, "2012", entry)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.mkdir, (self.trace,)


def write_trap(path: Path, trap: Trap, *, container: str) -> None:
    if container == "pickle":
        path.write_bytes(pickle.dumps({"weight": trap}))
    else:
        torch.save({"weight": trap}, path, _use_new_zipfile_serialization=container == "torch")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""
