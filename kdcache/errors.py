"""Every error a user can meet. Each is one line: where, which field, found, expected, the cure."""

import errno
import os
import re
import reprlib
import sys
from collections.abc import Container
from functools import partial

_USER = re.compile(r"([A-Za-z0-9+.-]://)[^/\s]*@")  # no repeat before it: a long word takes no time
MEND = "mend that and run the same command again"  # what the system refused
MOST_SHOWN = 2_000  # characters of a value in a message
FORBIDDEN = (errno.EACCES, errno.EPERM)
_REFUSED = {
    *(*FORBIDDEN, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}


class KdcacheError(Exception):
    """Base of all errors that a command turns into one line on stderr and `exit_code`."""

    exit_code = 1


class SettingsError(KdcacheError, ValueError):
    """A setting is unknown, of the wrong type, out of range, or asks for what the machine lacks."""

    exit_code = 2


class DataError(KdcacheError, ValueError):
    """The data set is not what the VOC folder layout or the settings promise."""


class TeacherError(KdcacheError, ValueError):
    """The teacher's weights are missing, damaged or not for this data set."""


class TrainingError(KdcacheError, RuntimeError):
    """Training cannot go on: non-finite loss, folder of another run, damaged checkpoint."""


class OtherRunError(TrainingError):
    """A run folder holds a run of other settings, or from another cache."""


class ToldElsewhere(KdcacheError):
    """Another process of this run reports the error; this one ends silently with its exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run says what is wrong; look for its line")
        self.exit_code = exit_code


class CacheError(KdcacheError):
    """Base of what can be wrong with a cache."""


class CacheMismatchError(CacheError, ValueError):
    """The cache answers another question: its identity differs from the settings."""


class CacheIncompleteError(CacheError):
    """Shard groups are missing: phase one has not finished."""


class CacheCorruptError(CacheError):
    """Stored bytes, sizes or documents are not those committed: `what` is wrong at path `where`."""

    def __init__(self, where: object, what: str, *, cure: str) -> None:
        super().__init__(f"{where}: {what}; {cure}")
        self.where, self.what, self.cure = where, what, cure

    def __reduce__(self) -> tuple:
        """So that it can come from another process."""
        return partial(type(self), cure=self.cure), (self.where, self.what)


class OtherCacheError(CacheCorruptError):
    """A sound commit record, but of another identity."""


def describe(where: object, *, field: str, found: object, expected: object, cure: str) -> str:
    """One line for an error: ``caches/voc: teacher is 'a', expected 'b'; rebuild it``."""
    return f"{where}: {field} is {show(found)}, expected {show(expected)}; {cure}"


def refuse(field_name: str, found: object, expected: str) -> SettingsError:
    """The error for a setting whose value is not what `expected` says."""
    return SettingsError(
        describe(
            "settings",
            field=field_name,
            found=found,
            expected=Phrase(expected),
            cure=f"change {field_name}",
        )
    )


def find_cure(error: object, otherwise: str, *, codes: Container[int] = _REFUSED) -> str:
    """The cure for a file that could not be read: what the system refused may be sound.

    Args:
        otherwise: the cure for a damaged file. codes: of errors after which a file may be sound.
    """
    refused = isinstance(error, OSError) and error.errno in codes
    return MEND if refused else otherwise


def is_forbidden(what: str) -> bool:
    """Whether words about a file hold the system's, that it may not be read: it may be sound."""
    return any(f"({os.strerror(code)})" in what for code in FORBIDDEN)


def one_line(error: object, *, named: bool = False) -> str:
    """The message of an error from other code, as one line of up to 120 characters.

    Args:
        named: give the error's type and the first line of its message, for errors from user code.
    """
    text, kind = str(error).strip(), type(error).__name__
    text = " ".join((text.partition("\n")[0] if named else text).split())[:120]
    return f"{kind}: {text}" if named and text else text or kind


OUT_OF_MEMORY = (
    "can't allocate memory",  # of torch's allocator for CPUs
    "CUDA error: out of memory",  # of the driver, beside torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED",  # of libraries with memory of their own
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch says in a plain RuntimeError if memory is missing."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or of a GPU is missing, whoever says so."""
    torch = sys.modules.get("torch")  # importing it takes seconds, and only it raises its errors
    kinds = (MemoryError, torch.OutOfMemoryError) if torch else (MemoryError,)
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    return isinstance(error, kinds) or said


def is_gpu_failure(error: BaseException) -> bool:
    """Whether a GPU, its driver or a library on it has refused: one that is busy, too old for this
    torch, or broken. Code that gives it odd numbers fails an assert there, and is to blame itself.
    """
    words = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS", "NCCL error")
    said = any(word in str(error) for word in words) and "device-side assert" not in str(error)
    return isinstance(error, RuntimeError) and said


def is_of_machine(error: BaseException) -> bool:
    """Whether the machine is to blame and not the code: memory is missing, or a GPU refuses."""
    return is_out_of_memory(error) or is_gpu_failure(error)


def hide_passwords(text: str) -> str:
    """Text in which addresses have no user and password.

    >>> hide_passwords("http://me:secret@host:9000/x is away")
    'http://***@host:9000/x is away'
    """
    return _USER.sub(r"\1***@", text)


class Phrase(str):
    """A found or expected fact that is a description, shown without quotes."""


_SHORT = reprlib.Repr()  # a list can hold itself, or one list a billion times
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 3, 10, 10, 10
_SHORT.maxstring = _SHORT.maxlong = 80


def show_value(value: object, *, most: int = 80) -> str:
    """A value of a document for a message: short, also if it is huge or cannot be written out."""
    if value is None:
        return "null"
    if not isinstance(value, str | bytes | int | float | list | tuple | dict):
        return f"a {type(value).__name__}"
    try:
        if isinstance(value, str | bytes):
            return repr(value[:most])
        return _SHORT.repr(value)[: most + 2]
    except (ValueError, RecursionError):  # Python writes no whole number of more than 4300 digits
        return f"a {type(value).__name__} too large to show"


def show(value: object) -> str:
    """A value as a message shows it: a Phrase as it is, all else as Python writes it."""
    try:
        text = str(value) if isinstance(value, Phrase) else repr(value)
    except (ValueError, RecursionError):
        return show_value(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
