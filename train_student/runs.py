"""What can be done with trained runs: report, compare, export, predict."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from kdcache.command import DAMAGED, add_trust, read_count, read_trust
from kdcache.config.options import Parser, override, read_path
from kdcache.progress import print_line, print_text

PROG = "python -m train_student"
FORMATS = ("onnx", "safetensors", "executorch")
MOST_PANELS = 50


def report(argv: list[str]) -> None:
    """Write the report of a finished run again."""
    parser = Parser(
        prog=f"{PROG} report",
        description="Write report.html of a finished run again.",
        epilog=f"for example: {PROG} report runs/student_kd --panels 50",
    )
    parser.add_argument("run", type=read_path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--panels", type=read_count(1, MOST_PANELS), metavar="N",
        help=f"validation samples to show, 1 to {MOST_PANELS} (default: as many as at a run's end)",
    )  # fmt: skip
    parser.add_argument(
        "--cache.path", dest="path", metavar="PATH",
        help="where its cache is now (default: where it was)",
    )  # fmt: skip
    parser.add_argument(
        "--train.device", dest="device", metavar="DEVICE",
        help="device to run on (default: the one that trained)",
    )  # fmt: skip
    add_trust(parser)
    args = parser.parse_args(argv)
    from kdcache.report.panels import NUM_PANELS
    from kdcache.report.run_page import rewrite_report

    words = {"cache.path": args.path, "train.device": args.device}
    given = override({}, {name: word for name, word in words.items() if word})
    asked = {"num_panels": args.panels or NUM_PANELS, "trust": read_trust(args)}
    print_line(rewrite_report(args.run, given, **asked))


def compare(argv: list[str]) -> None:
    """Put finished runs side by side, over seeds."""
    parser = Parser(
        prog=f"{PROG} compare",
        description="Compare finished runs: those with the same settings but the seed are a row, "
        "with mean and deviation; each has its difference from the baseline with the same "
        "settings, seed by seed, with a 95 % interval. Runs that are not finished and other "
        "folders are named and left out; runs of different validation data are refused (exit code "
        "2).",
        epilog=f"for example: {PROG} compare runs/grid --csv runs/grid.csv --html runs/grid.html",
    )
    parser.add_argument(
        "paths", nargs="+", type=read_path, metavar="PATH",
        help="folder of a run, or a folder that holds some",
    )  # fmt: skip
    for ending, what in ((".csv", "a line a run"), (".html", "one page")):
        parser.add_argument(
            f"--{ending[1:]}", type=partial(_read_out, ending=ending), metavar="FILE",
            help=f"write {what}; a file of that name is replaced",
        )  # fmt: skip
    args = parser.parse_args(argv)
    from kdcache import disk
    from kdcache.analysis.comparison import compare_runs
    from kdcache.report.comparison_page import format_page
    from kdcache.report.comparison_text import format_comparison, format_csv

    comparison = compare_runs(args.paths)
    forms = {args.csv: format_csv, args.html: format_page}
    asked = [path for path in forms if path is not None]
    for path in asked:  # before anything is printed: a reader may stop early, as `| head` does
        disk.replace_file(path, forms[path](comparison).encode("utf-8", "backslashreplace"))
    print_text(format_comparison(comparison))
    for path in asked:
        print_line("")
        print_line(f"{path}: written")


def export(argv: list[str]) -> None:
    """Write a run's student as ONNX, safetensors or ExecuTorch."""
    parser = Parser(
        prog=f"{PROG} export",
        description="Write the best student of the run in RUN as student.onnx, student.safetensors "
        "or student.pte beside its checkpoint. onnx and executorch take bytes (uint8 RGB "
        "[N, H, W, 3]), normalise inside, give logits [N, K, H, W], and keep their name only if "
        "they agree with PyTorch on up to 100 images.",
        epilog=f"for example: {PROG} export runs/student_kd --to onnx",
    )
    _add_run(parser)
    parser.add_argument(
        "--to", required=True, choices=FORMATS,
        help="each is an extra: `pip install 'kdcache[onnx]'`",
    )  # fmt: skip
    parser.add_argument(
        "--images", nargs="+", type=read_path, default=[], metavar="PATH",
        help="images, or folders of them, to compare on (default: the validation images of the "
        "run's cache)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    from kdcache.deploy.export import export_student, import_format
    from kdcache.deploy.predict import find_images
    from kdcache.deploy.student import load_student

    import_format(args.to)  # what is missing is said before anything takes time
    student = load_student(args.run, trust=read_trust(args))
    export_student(
        student, to=args.to, find_images=partial(find_images, student, args.images), say=print_text
    )


def predict(argv: list[str]) -> int:
    """Ask a run's student about images."""
    parser = Parser(
        prog=f"{PROG} predict",
        description="Ask the best student of the run in RUN for the classes of images, or of "
        "folders of them. Writes masks/NAME.png (class numbers in VOC's colours, as large as the "
        "image), overlays/NAME.png and index.html. Pixels are taken as they are stored: EXIF "
        "orientation is not applied, transparency is dropped, of several frames the first is "
        "taken. Images of more than 8192 x 8192 pixels are refused, and other formats than JPEG, "
        "PNG, BMP, TIFF and WebP. Exit code 1: some image could not be read.",
        epilog=f"for example: {PROG} predict runs/student_kd photos --out predictions",
    )
    _add_run(parser)
    parser.add_argument(
        "images", nargs="+", type=read_path, metavar="IMAGE", help="image, or folder of images"
    )
    parser.add_argument(
        "--out", type=read_path, metavar="DIR",
        help="folder to write into (default: RUN/predictions)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=_read_size, metavar="N|original",
        help="what the student sees: larger images are shrunk to fit N x N pixels, smaller ones "
        "padded; original shrinks none (default: the size of the run's validation, at which it was "
        "scored)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    from kdcache.deploy.predict import predict_pictures
    from kdcache.deploy.student import load_student
    from kdcache.report.panels import write_predictions

    student = load_student(args.run, trust=read_trust(args))
    out = args.out or args.run / "predictions"
    done, errors = predict_pictures(
        student, args.images, out=out, size=args.size, say=print_line, complain=_complain
    )
    if done:
        page = write_predictions(done, student, folder=out)
        print_line(f"{page}: {len(done)} images" + (f", {len(errors)} refused" if errors else ""))
    return DAMAGED if errors else 0


def _add_run(parser: Parser) -> None:
    parser.add_argument(
        "run", type=read_path, metavar="RUN", help="folder of a run whose first epoch is done"
    )
    add_trust(parser)


def _complain(error: Exception) -> None:
    print_line(f"train_student predict: {error}", file=sys.stderr)


def _read_out(text: str, ending: str) -> Path:
    path = read_path(text)
    if path.suffix != ending:  # the file is replaced: not a checkpoint by mistake
        raise argparse.ArgumentTypeError(f"is {text!r}, which does not end in {ending}")
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"is {text!r}, expected a file name in a folder that is there"
        )
    return path


def _read_size(text: str) -> int | str:
    if text == "original":
        return text
    if text.isdecimal() and int(text) % 16 == 0 and 32 <= int(text) <= 16384:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"is {text!r}, expected original or a multiple of 16 from 32 to 16384"
    )
