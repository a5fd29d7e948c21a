"""One worker of phase one: `RANK=0 WORLD_SIZE=2 python -m tests.bench.scaling_child SETTINGS.json`.

Prints `ready` once it has its plan, begins at a line on stdin, and prints when it began and ended,
[s, s] of the machine's clock.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from kdcache.config.parser import make_config
from kdcache.precompute import build


def main(path: str) -> None:
    """Build the cache of these settings, or this worker's part of it."""
    logging.getLogger("kdcache").setLevel(
        logging.ERROR
    )  # a teacher with random weights is warned of
    times_s: list[float] = []
    original = build.write_missing

    def timed(*args: object) -> object:
        print("ready", flush=True)
        sys.stdin.readline()
        times_s.append(time.monotonic())
        try:
            return original(*args)
        finally:
            times_s.append(time.monotonic())

    build.write_missing = timed
    build.build_cache(make_config(json.loads(Path(path).read_text())))
    print(json.dumps(times_s))


if __name__ == "__main__":
    main(sys.argv[1])
