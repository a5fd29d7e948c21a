"""`python -m train_student export|predict RUN`: take a trained student away, ask it about images."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from kdcache.command import DAMAGED, OneLineParser

PROG = "python -m train_student"
FORMATS = ("onnx", "safetensors", "executorch")


def export(argv: list[str]) -> None:
    """Write a run's student in another format."""
    parser = OneLineParser(
        prog=f"{PROG} export",
        epilog=f"for example: {PROG} export runs/student_kd --to onnx",
        description="Write the best student of the run in RUN as student.onnx, student.safetensors or student.pte beside its "
        "checkpoint. onnx and executorch take bytes (uint8 RGB [N, H, W, 3]), normalise inside, give logits [N, K, H, W], and "
        "keep their name only where they say what PyTorch says, on up to 100 images.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a run whose first epoch is done"
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=FORMATS,
        help="each is an extra: `pip install 'kdcache[onnx]'`",
    )
    parser.add_argument(
        "--images", nargs="+", type=Path, default=[], metavar="PATH",
        help="images, or folders of them, to compare on (default: the validation images of the run's cache)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    from kdcache.deploy.export import export_student, import_format
    from kdcache.deploy.pictures import find_images
    from kdcache.deploy.student import load_student

    import_format(args.to)  # what is missing is said before anything takes time
    student = load_student(args.run)
    export_student(
        student, to=args.to, find_images=partial(find_images, student, args.images), say=print
    )


def predict(argv: list[str]) -> int:
    """Ask a run's student about images; exit code 1 where one of them could not be read."""
    parser = OneLineParser(
        prog=f"{PROG} predict",
        epilog=f"for example: {PROG} predict runs/student_kd photos --out predictions",
        description="Ask the best student of the run in RUN for the classes of images, or of folders of them. Writes "
        "masks/NAME.png (class numbers in VOC's colours, as large as the image), overlays/NAME.png and index.html. Pixels are "
        "taken as they are stored: EXIF orientation is not applied, transparency left out, of several frames the first taken. "
        "Images of more than 89,478,485 pixels are refused.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a run whose first epoch is done"
    )
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image, or folder of images"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write into (default: RUN/predictions)"
    )
    parser.add_argument(
        "--size", type=_read_size, metavar="N|original",
        help="what the student sees: larger images are shrunk to fit N x N pixels, smaller ones padded; original shrinks none "
        "(default: the size of the run's validation, at which it was scored)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    from kdcache.deploy.predict import predict_pictures
    from kdcache.deploy.student import load_student
    from kdcache.report.predictions import write_predictions

    student, out = load_student(args.run), args.out or args.run / "predictions"
    done, errors = predict_pictures(
        student, args.images, out=out, size=args.size, say=print, complain=_complain
    )
    if done:
        page = write_predictions(done, student, folder=out)
        print(f"{page}: {len(done)} images" + (f", {len(errors)} refused" if errors else ""))
    return DAMAGED if errors else 0


def _complain(error: Exception) -> None:
    print(f"train_student predict: {error}", file=sys.stderr)


def _read_size(text: str) -> int | str:
    if text == "original" or (
        text.isdecimal() and int(text) % 16 == 0 and 32 <= int(text) <= 16384
    ):
        return text if text == "original" else int(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither original nor a multiple of 16 from 32 to 16384"
    )
