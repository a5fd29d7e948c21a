"""What both programs do around their work: one line for an error, an exit code, warnings on stderr."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from kdcache.errors import KdcacheError, Phrase, SettingsError, ToldElsewhere, describe, one_line

DAMAGED, CANNOT_RUN, INTERRUPTED = 1, 2, 130
A_MOMENT_S = 1.0


class OneLineParser(argparse.ArgumentParser):
    """Errors of one line, raised as SettingsError: for use within `run_command`, which names the command."""

    def error(self, message: str) -> NoReturn:
        """Raises SettingsError."""
        raise SettingsError(f"{message}; --help explains it")


def check_command(prog: str, argv: Sequence[str], commands: Iterable[str]) -> None:
    """Raises SettingsError where the first word is no setting: a command mistyped, perhaps."""
    if not argv or argv[0].startswith("-"):
        return
    near = difflib.get_close_matches(argv[0], commands, n=1)
    expected = Phrase(", ".join(commands) + " or --SECTION.NAME VALUE")
    cure = f"write {near[0]}" if near else f"`{prog} --help` lists what there is"
    raise SettingsError(
        describe(prog, field="command", found=argv[0], expected=expected, cure=cure)
    )


@contextmanager
def cannot_run_as_2(where: Path, *, doing: str) -> Iterator[None]:
    """What keeps a check from being made must not look like what it may find: exit code 2, in one line.

    Args:
        doing: for the message, "verified".
    """
    try:
        yield
    except KdcacheError as error:
        error.exit_code = CANNOT_RUN
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, OSError) or _is_out_of_memory(error)):
            raise
        reason = one_line(error)
        unable = KdcacheError(f"{where}: cannot be {doing} ({reason}); mend that and try again")
        unable.exit_code = CANNOT_RUN
        raise unable from None


def run_command(name: str, work: Callable[[], int | None]) -> int:
    """Do the work; 0 done, 1 failed or damaged, 2 wrong usage or settings, 130 interrupted.

    A KeyboardInterrupt may say itself what is kept.
    """
    for stream in (sys.stdout, sys.stderr):  # paths may hold bytes that are no text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _show_warnings()
    try:
        return work() or 0
    except ToldElsewhere as error:
        time.sleep(
            A_MOMENT_S
        )  # a launcher ends all when one has ended, and so may end the one that is about to say it
        return error.exit_code
    except KdcacheError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print(f"{name}: interrupted; {str(stop) or 'what is finished is kept'}", file=sys.stderr)
        return INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = one_line(error)
        print(
            f"{name}: out of memory ({reason}); lower teacher.batch_size, train.batch_size or fit.batch_size, "
            "or set train.residency disk",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:  # who read our words has gone: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # disk full, permissions: what no check at the edge can foresee
        print(
            f"{name}: {error.filename or 'a file'}: {error.strerror or error}; mend that and start again",
            file=sys.stderr,
        )
        return 1


def _is_out_of_memory(error: Exception) -> bool:
    """torch's allocator for CPUs has no error of its own."""
    torch = sys.modules.get("torch")  # importing it takes seconds, and only it raises its errors
    kinds = (MemoryError, torch.OutOfMemoryError) if torch else (MemoryError,)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _show_warnings() -> None:
    logger = logging.getLogger("kdcache")
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


class _StderrHandler(logging.Handler):
    """Writes to what stderr is at that moment, not to what it was at the first command."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)
