"""Packs a cache and unpacks it again: `python -m tests.bench.packing_child ROOT FOLDER`; prints a
line of JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from kdcache.cache.pack import pack_cache
from kdcache.cache.unpack import unpack_cache
from kdcache.storage import open_storage
from tests.bench.copying import time_s
from tests.bench.machine import read_status_mb


def main(root: str, folder: str) -> None:
    """Measure in a new folder, which is removed."""
    place = Path(folder)
    place.mkdir()
    file, before_mb = open_storage(place / "x.h5"), read_status_mb("VmHWM")
    packed_s = time_s(lambda: pack_cache(Path(root), file.file))
    size_mb, anon_mb, peak_mb = (
        file.file.stat().st_size / 1e6,
        read_status_mb("RssAnon"),
        read_status_mb("VmHWM"),
    )
    unpacked_s = time_s(lambda: unpack_cache(file, place / "back"))
    shutil.rmtree(place)
    print(
        json.dumps(
            {
                "export_mb_s": size_mb / packed_s,
                "import_mb_s": size_mb / unpacked_s,
                "peak_mb": peak_mb,
                "before_mb": before_mb,
                "anon_mb": anon_mb,
                "size_mb": size_mb,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
