"""Every figure in one run: `python -m tests.bench`; the table goes to stdout, everything to
build/bench.json.

python -m tests.bench --only read_ratio,training     parts, or figures (their whole part runs)
python -m tests.bench --quick                        tiny sizes: does everything run? the numbers
mean nothing python -m tests.bench --markdown build/bench.json    tables for BENCHMARKS.md
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import shutil
import sys
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path

from kdcache.config.parser import read_settings
from kdcache.errors import one_line
from tests.bench import machine, table
from tests.bench.figures import SPECS, Figure, find_parts, skip_figure
from tests.bench.sizes import FULL, QUICK, Bench

# Children with a peak to measure come last, when no other part's memory is in use.
PARTS = {
    "reading": "reading.measure",
    "rivals": "rivals.measure",
    "coded": "coded.measure",
    "staging": "staging.measure",
    "packing": "packing.measure",
    "loss": "loss.measure",
    "training": "training.measure",
    "training_batch32": "training.measure_batch32",
    "gpu": "gpu.measure",
    "kernels": "gpu.measure_kernels",
    "phase_one": "phase_one.measure",
    "scaling": "scaling.measure",
    "encodings": "encodings.measure",
    "opening": "opening.measure",
    "sealing": "sealing.measure",
    "growth": "growth.measure",
}
"""Part -> its module and function, imported when it is measured: a part whose packages are missing
costs its own figures only."""


def main(argv: list[str]) -> int:
    """Measure what was asked for; 1 where a part failed."""
    options = _parse(argv)
    if options.markdown:
        return _print_markdown(options.markdown)
    names = find_parts(options.only)
    document = {
        "date": str(date.today()),
        "quick": options.quick,
        "machine": machine.read_machine(),
    }
    document |= {"versions": machine.read_versions(), "elapsed_s": {}, "figures": {}}
    options.dir.mkdir(parents=True, exist_ok=True)
    logging.getLogger("kdcache").setLevel(
        logging.ERROR
    )  # a teacher with random weights is warned of, build after build
    failed = False
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-") as folder:
        bench = Bench(
            Path(folder), QUICK if options.quick else FULL, options.quick, _read_real(options.real)
        )
        for name in names:
            began_s = time.perf_counter()
            figures, error = _run_part(bench, name)
            failed |= error
            document["elapsed_s"][name] = round(time.perf_counter() - began_s, 1)
            document["figures"] |= {figure.spec.key: figure.to_dict() for figure in figures}
            _show(name, figures, document["elapsed_s"][name])
    found = document["figures"]
    document["figures"] = {spec.key: found[spec.key] for spec in SPECS if spec.key in found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1))
    print(f"{sum(document['elapsed_s'].values()):.0f} s in all; {options.out}")
    if options.quick:
        print("a quick run: it shows that every part works, its numbers mean nothing")
    return int(failed)


def _read_real(path: Path | None) -> dict | None:
    return read_settings(path) if path else None


def _print_markdown(path: Path) -> int:
    try:
        print(table.render_markdown(json.loads(path.read_text())), end="")
    except (OSError, ValueError, KeyError) as error:
        reason = one_line(error)
        print(
            f"{path}: it is no file of this program's ({reason}); run `make bench` first",
            file=sys.stderr,
        )
        return 2
    return 0


def _run_part(bench: Bench, name: str) -> tuple[list[Figure], bool]:
    """A part's figures; one that fails costs its own figures only."""
    try:
        module, function = PARTS[name].split(".")
        measure = getattr(importlib.import_module(f"tests.bench.{module}"), function)
        return measure(bench), False
    except Exception as error:
        traceback.print_exc()
        reason = f"failed: {one_line(error)}"
        return [skip_figure(spec.key, reason) for spec in SPECS if spec.part == name], True
    finally:
        for left in bench.folder.iterdir():
            if left.name != "store" and left.is_dir():  # the store is read by several parts
                shutil.rmtree(left)


def _show(name: str, figures: list[Figure], elapsed_s: float) -> None:
    print(f"{name}, {elapsed_s:.0f} s", flush=True)
    for figure in figures:
        print(f"  {table.format_figure(figure)}", flush=True)
        if figure.spec.key == "rivals" and figure.value is not None:
            print("\n".join(table.format_rivals(figure.details["gb_s"])), flush=True)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", metavar="NAME[,NAME]", help="parts, or figures with all of their part"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: build/bench.json, or bench-part.json for less",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("build"),
        help="where temporary data go, 2 GB, with a GPU 10 (default: build)",
    )
    parser.add_argument(
        "--real",
        type=Path,
        metavar="CONFIG",
        help="settings of a real teacher, for the encodings' figures",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="render that bench.json and measure nothing"
    )
    options = parser.parse_args(argv)
    whole = not (
        options.quick or options.only
    )  # a part must not replace the measurements that are kept
    options.out = options.out or Path("build/bench.json" if whole else "build/bench-part.json")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
