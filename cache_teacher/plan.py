"""`python -m cache_teacher plan`: what phase one will take, before it is run."""

from __future__ import annotations

import json
import signal

from cache_teacher.maintain import PROG
from cache_teacher.options import read_count, read_number, take_options
from kdcache.config.parser import build_parser, make_config, read_given
from kdcache.progress import Console

OPTIONS = {"--workers": None, "--bandwidth": None, "--per-hour": None}


def plan(argv: list[str]) -> None:
    """Bytes, time, free disk and worth of the cache of these settings."""
    parser = build_parser(
        prog=f"{PROG} plan [--workers N] [--bandwidth MB_PER_S] [--per-hour PRICE] [--json]",
        description="Say what the cache of these settings will weigh and take, from a few samples that are really made beside "
        "cache.path and removed again: at least two shard groups of about 16 (0.5 GB at 512x512), more only where the disk has "
        "plenty of room. Nothing of a cache that is there is touched. --workers N, --bandwidth (MB/s that all of them together "
        "can write) and --per-hour (price of one) say what it means for workers like this one. --json is for scripts.",
    )
    options, words = take_options(argv, OPTIONS)
    fleet = _read_fleet(options)
    config = make_config(read_given(parser, [word for word in words if word != "--json"]))
    from kdcache.analysis.fidelity import FEW_SAMPLES
    from kdcache.forecast.fleet import Fleet, find_work, spread
    from kdcache.forecast.forecast import forecast_cache
    from kdcache.report.forecast import format_forecast

    before = signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as Ctrl-C: what was made is removed
    try:
        facts = forecast_cache(config, num_compared=FEW_SAMPLES, progress=Console())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing is kept") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if options != OPTIONS:
        facts["fleet"] = spread(find_work(facts), Fleet(**fleet))
    print(json.dumps(facts, indent=2) if "--json" in argv else format_forecast(facts))


def _read_fleet(options: dict[str, str | None]) -> dict:
    """Arguments of `Fleet`. Raises SettingsError."""
    return {
        "workers": 1 if options["--workers"] is None else read_count(options, "--workers", least=1),
        "bandwidth_mb_s": read_number(options, "--bandwidth"),
        "per_hour": read_number(options, "--per-hour"),
    }
