"""What the commands of both programs share: arguments, one line per error, exit codes."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from kdcache import seals
from kdcache.config.options import Parser, read_path
from kdcache.disk import FULL
from kdcache.errors import (
    KdcacheError,
    Phrase,
    SettingsError,
    ToldElsewhere,
    describe,
    is_gpu_failure,
    is_of_machine,
    is_out_of_memory,
    one_line,
)
from kdcache.machine.signals import end_on_signals, find_signal
from kdcache.models.own_code import STUDENT, TEACHER, Trust
from kdcache.progress import Output, print_line
from kdcache.storage import Storage, open_given

Command = Callable[[list[str]], int | None]
DAMAGED, CANNOT_RUN, INTERRUPTED = 1, 2, 130
BY_SIGNAL = 128  # and its number: 143 for SIGTERM, 129 for SIGHUP
A_MOMENT_S = 1.0
A_BUG = "a bug; KDCACHE_TRACE=1 shows where, please report it"


def run_program(
    name: str, argv: Sequence[str] | None, *, commands: Mapping[str, Command], otherwise: Command
) -> int:
    """Run the command that the first word names, else `otherwise` with all words.

    Args:
        name: the module of the program, e.g. cache_teacher.
        argv: words behind the program's name (default: those of this process).

    Returns: the exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in commands:
        return run_command(f"{name} {words[0]}", lambda: commands[words[0]](words[1:]))
    if words and not words[0].startswith("-"):
        return run_command(name, lambda: _refuse_command(name, words[0], list(commands)))
    return run_command(name, lambda: otherwise(words))


def _refuse_command(name: str, found: str, commands: list[str]) -> NoReturn:
    near = difflib.get_close_matches(found, commands, n=1)
    expected = Phrase(", ".join(commands) + " or --SECTION.NAME VALUE")
    cure = f"write {near[0]}" if near else f"`python -m {name} --help` lists what there is"
    raise SettingsError(
        describe(f"python -m {name}", field="command", found=found, expected=expected, cure=cure)
    )


def list_commands(commands: Mapping[str, Command]) -> str:
    """For --help: a line per command, with the first sentence of its docstring."""
    lines = [(name, command.__doc__.splitlines()[0]) for name, command in commands.items()]
    return "\n".join(f"  {name:<12}{text[0].lower()}{text[1:].rstrip('.')}" for name, text in lines)


def build_cache_parser(
    prog: str,
    description: str,
    *,
    example: str,
    place: str = "the cache: a folder, s3://BUCKET/KEY or a packed file",
    settings: bool = False,
    json: bool = False,
) -> Parser:
    """The parser of a command on the cache at PATH.

    Args:
        place: what PATH can be, for --help.
    """
    parser = Parser(
        prog=prog, description=description, epilog=f"for example: {example}", settings=settings
    )
    parser.add_argument("path", type=_read_storage, metavar="PATH", help=place)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def add_output(parser: Parser, *, verbose: str | None = None) -> None:
    """Take -q, --json, and -v if there is more to say; see `read_output`.

    Args:
        verbose: what -v prints, for --help.
    """
    only_one = parser.add_mutually_exclusive_group()
    only_one.add_argument("-q", "--quiet", action="store_true", help="print only the result")
    if verbose:
        only_one.add_argument("-v", "--verbose", action="store_true", help=verbose)
    parser.add_argument("--json", action="store_true", help="print only the result, as JSON")


def read_output(args: argparse.Namespace) -> Output:
    """How much this command line asks to be told."""
    return Output(quiet=args.quiet, verbose=getattr(args, "verbose", False), json=args.json)


def add_trust(parser: Parser) -> None:
    """Take --trust-code, and --student.arch where settings are not taken; see `read_trust`."""
    if not parser.settings:
        parser.add_argument(
            "--student.arch", dest="student.arch", metavar="PACKAGE.MODULE:FUNCTION",
            help="the student of yours that was trained: what a run names is imported only if it "
            "is named here, too, and its file has not changed",
        )  # fmt: skip
    parser.add_argument(
        "--trust-code", action="store_true",
        help="import whatever student or teacher is named, also if its file has changed",
    )  # fmt: skip


def read_trust(args: argparse.Namespace) -> Trust:
    """Which code of the user's this command line allows to import."""
    named = (getattr(args, name, None) for name in (STUDENT, TEACHER))
    return Trust(*named, any_code=args.trust_code)


def read_count(least: int, most: int | None = None) -> Callable[[str], int]:
    """For the `type` of an argument: a whole number from `least` to `most`."""

    def read(text: str) -> int:
        if text.isdecimal() and least <= int(text) <= (2**31 - 1 if most is None else most):
            return int(text)
        range_ = f", {least} or more" if most is None else f" from {least} to {most}"
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a whole number{range_}")

    return read


def read_number(least: float, most: float) -> Callable[[str], float]:
    """For the `type` of an argument: a number from `least` to `most`."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if least <= (number := float(text)) <= most:
                return number
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a number from {least} to {most}")

    return read


def read_new_path(text: str) -> Path:
    """For the `type` of an argument: a file or folder to write on this machine."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"is {text!r}, expected a path of this machine; write there, then copy it"
        )
    return read_path(text)


def _read_storage(text: str) -> Storage:
    try:
        return open_given(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@contextmanager
def cannot_run_as_2(where: Path, *, doing: str) -> Iterator[None]:
    """Turn what prevents a check into exit code 2, in one line: it must not look like a finding.

    Args:
        where: what is checked.
        doing: the check as a participle for the message, e.g. "verified".
    """
    try:
        yield
    except KdcacheError as error:
        error.exit_code = CANNOT_RUN
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, OSError) or is_of_machine(error)):
            raise
        reason = one_line(error)
        unable = KdcacheError(f"{where}: cannot be {doing} ({reason}); mend that and try again")
        unable.exit_code = CANNOT_RUN
        raise unable from None


def run_command(name: str, work: Callable[[], int | None]) -> int:
    """Do the work; 0 done, 1 failed or damaged, 2 wrong usage or settings, 130 interrupted, 143
    and 129 ended by SIGTERM and SIGHUP.

    Whatever ends it is one line; with KDCACHE_TRACE=1 in the environment a traceback comes first.

    A KeyboardInterrupt may say itself what is kept.
    """
    for stream in (sys.stdout, sys.stderr):  # paths may hold bytes that are no text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _show_warnings()
    seals.forget_told()
    with end_on_signals():
        try:
            return _end_in_a_line(name, work)
        except KeyboardInterrupt:  # it came while another end was told
            return _tell_interrupted(name)


def _end_in_a_line(name: str, work: Callable[[], int | None]) -> int:
    """Do the work; whatever ends it is a line and an exit code."""
    try:
        return work() or 0
    except ToldElsewhere as error:
        # a launcher that sees one process end stops all, perhaps before the one with the message
        with suppress(KeyboardInterrupt):  # torchrun ends the others once the first has ended
            time.sleep(A_MOMENT_S)
        return error.exit_code
    except KeyboardInterrupt as stop:
        return _tell_interrupted(name, str(stop))
    except BrokenPipeError:  # the reader of our output has gone: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if find_signal() and not isinstance(error, KdcacheError):  # others were ended before us
            return _tell_interrupted(name)
        if os.environ.get("KDCACHE_TRACE") == "1":
            traceback.print_exc()
        print_line(f"{name}: {_explain(error)}", file=sys.stderr)
        return error.exit_code if isinstance(error, KdcacheError) else 1


def _tell_interrupted(name: str, told: str = "") -> int:
    """Say so; returns the exit code."""
    by = find_signal()
    interrupted = f"interrupted by {by.name}" if by else "interrupted"
    print_line(f"{name}: {interrupted}; {told or 'what is finished is kept'}", file=sys.stderr)
    return BY_SIGNAL + by if by else INTERRUPTED


def _explain(error: Exception) -> str:
    """One line about what has ended a command."""
    if isinstance(error, KdcacheError):
        return str(error)
    if is_out_of_memory(error):
        return (
            f"out of memory ({one_line(error)}); lower teacher.batch_size, train.batch_size or "
            "fit.batch_size, or set train.residency disk"
        )
    if is_gpu_failure(error):
        return (
            f"the GPU or its driver has failed ({one_line(error)}); what is finished is kept: look "
            "at nvidia-smi and run it again, or take the CPU (train.device or teacher.device cpu)"
        )
    if isinstance(error, UnicodeEncodeError):  # of the name of a file, where all is ASCII
        return f"{error.object!r}: letters that this locale cannot write; set PYTHONUTF8=1"
    if isinstance(error, OSError):  # disk full, permissions: what no check at the edge can foresee
        where, why = error.filename or "a file", error.strerror or error
        cure = "make room and run it again" if error.errno in FULL else "mend that and start again"
        return f"{where}: {why}; {cure}"
    return f"{one_line(error, named=True)}: {A_BUG}"


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
        print_line(self.format(record), file=sys.stderr)
