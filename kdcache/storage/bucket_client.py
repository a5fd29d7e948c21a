"""Objects in a bucket, by obstore: reading, conditional puts, and errors in plain words.

obstore and not fsspec: it has conditional puts, which a commit needs, and it fetches ranges without
the interpreter's lock. Every error becomes an OSError, so that code which handles errors of a disk
handles these, too.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import numpy as np

from kdcache.disk import MOST_DOCUMENT_BYTES, check_document
from kdcache.errors import SettingsError, hide_passwords

_LIMITS = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "15min"}
# by obstore, with growing pauses, after 5xx, 429 and lost connections
_RETRIES = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
PAUSES_S = (1.0, 5.0, 25.0, None)
MOST_PUT_BYTES = 5 * 10**9  # in one put: S3 takes 5 GB, Azure 5000 MiB
Result = TypeVar("Result")
Tag = tuple[str | None, str | None]
"""(ETag, version number) of an object; None for what the store does not have."""
log = logging.getLogger("kdcache")


class NoAnswerError(OSError):
    """The object store failed in a way that a retry may mend."""


class AlreadyThereError(FileExistsError):
    """The condition of a put failed: the object exists, or is no longer the expected version."""


@dataclass(frozen=True, order=True)
class BucketObject:
    """A key of a bucket, whether there is an object or not.

    bucket: with its scheme, "s3://NAME". key: without / at either end.
    """

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"

    def exists(self) -> bool:
        """Whether there is an object of this key. Raises OSError."""
        return self.find_tag() is not None

    def read_bytes(self, *, most_bytes: int = MOST_DOCUMENT_BYTES) -> bytes:
        """Read the whole object. Raises FileNotFoundError, UnfitFileError, OSError."""

        def read(bucket: object) -> bytes:
            answer = bucket.get(self.key)
            check_document(answer.meta["size"], most_bytes=most_bytes)
            return bytes(answer.bytes())

        return ask(self, read)

    def find_identity(self) -> None:
        """Unknown: it would be a request of its own."""

    def read_into(self, offset: int, slots: list[np.ndarray]) -> int:
        """Fill contiguous arrays in turn, from an offset in bytes, by one request.

        Returns: the bytes read. Raises: FileNotFoundError, OSError.
        """
        views = [memoryview(slot.reshape(-1).view(np.uint8)) for slot in slots]
        wanted = sum(map(len, views))
        data = memoryview(
            ask(self, lambda bucket: bucket.get_range(self.key, start=offset, length=wanted))
        )
        start = 0
        for view in views:
            part = data[start : start + len(view)]
            view[: len(part)] = part
            start += len(part)
        return len(data)

    def size(self) -> int:
        """Size in bytes. Raises FileNotFoundError, OSError."""
        return ask(self, lambda bucket: bucket.head(self.key)["size"])

    def find_tag(self) -> Tag | None:
        """The current version; None if there is no object. Raises OSError."""
        if not self.key:  # the bucket itself
            return None
        try:
            return _get_tag(ask(self, lambda bucket: bucket.head(self.key)))
        except FileNotFoundError:
            return None

    def put(self, data: bytes) -> None:
        """Write the object unconditionally. Raises OSError."""
        check_size(self, data)
        ask(self, lambda bucket: bucket.put(self.key, data, use_multipart=False))

    def create(self, data: bytes) -> Tag:
        """Write the object if there is none; returns its tag. Raises AlreadyThereError, OSError."""
        return self._put_if(data, "create")

    def replace(self, data: bytes, *, tag: Tag) -> Tag:
        """Replace the object if it still is this version; returns the new tag.

        Raises AlreadyThereError, FileNotFoundError, OSError.
        """
        facts = zip(("e_tag", "version"), tag, strict=True)
        return self._put_if(data, {name: part for name, part in facts if part is not None})

    def _put_if(self, data: bytes, mode: str | dict) -> Tag:
        def put(bucket: object) -> dict:
            return bucket.put(self.key, data, mode=mode, use_multipart=False)

        check_size(self, data)
        return _get_tag(ask(self, put, conflict=AlreadyThereError))

    def remove(self) -> None:
        """Remove the object if it exists. Raises OSError."""
        with suppress(FileNotFoundError):
            ask(self, lambda bucket: bucket.delete(self.key))


def _get_tag(facts: dict) -> Tag:
    return facts["e_tag"], facts["version"]


@cache
def open_bucket(address: str) -> object:
    """The client of a bucket, made once.

    Credentials come from the usual places of the platform: environment, profile, the machine's
    role. Raises SettingsError if obstore is not installed or refuses the address.
    """
    try:
        from obstore.store import from_url
    except ImportError:
        raise _refuse_missing(address, "obstore") from None
    options = (
        {"credential_provider": _find_credentials(address)} if address.startswith("s3:") else {}
    )
    try:
        return from_url(
            address,
            client_options={**_LIMITS, "allow_http": _asks_for_http()},
            retry_config=_RETRIES,
            **options,
        )
    except Exception as error:  # of obstore's own kinds, which have no common name for this
        raise SettingsError(
            f"{address}: bucket cannot be opened ({_shorten(error)}); mend cache.path"
        ) from None


def _asks_for_http() -> bool:
    """Whether the address of the store is one of plain http: nothing else may go unencrypted."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
    return any(os.environ.get(name, "").startswith("http://") for name in names)


def _refuse_missing(address: str, package: str) -> SettingsError:
    return SettingsError(
        f"{address}: {package} is not installed, expected it for object stores; "
        "pip install 'kdcache[s3]'"
    )


def _find_credentials(address: str) -> object | None:
    """Credentials by boto3, which knows profiles and single sign-on; None for a public bucket."""
    try:
        from boto3.session import Session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise _refuse_missing(address, "boto3") from None

    try:
        session = Session()
        return Boto3CredentialProvider(session) if session.get_credentials() else None
    except BotoCoreError as error:
        raise SettingsError(
            f"credentials: {_shorten(error)}; mend AWS_PROFILE or the files it names"
        ) from None


def ask(
    path: BucketObject,
    question: Callable[[object], Result],
    *,
    conflict: type[OSError] = FileExistsError,
) -> Result:
    """Call `question` with the client of the bucket; obstore's errors become an OSError in words.

    If the store fails in spite of obstore's retries, the call is repeated, with a warning. The
    first answer may have been lost, so a conditional put may then find its own object.

    Args:
        conflict: what to raise if the condition of a put does not hold.

    Raises: FileNotFoundError, PermissionError, `conflict`, else OSError.
    """
    for pause_s in PAUSES_S:
        try:
            with _say_what_failed(path, conflict=conflict):
                return question(open_bucket(path.bucket))
        except NoAnswerError as error:
            if pause_s is None:
                raise
            log.warning("%s: %s; trying again in %g s", path, error.strerror, pause_s)
        time.sleep(pause_s)
    raise AssertionError("the last pause is None")


@contextmanager
def _say_what_failed(path: BucketObject, *, conflict: type[OSError]) -> Iterator[None]:
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise _lost_bucket(path) from None
        raise FileNotFoundError(errno.ENOENT, "it is not there", str(path)) from None
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise conflict(errno.EEXIST, "another writer was first", str(path)) from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise _refuse_access(path, error) from None
    except exceptions.BaseError as error:
        if "NoSuchBucket" in str(error):
            raise _lost_bucket(path) from None
        # of a listing, or of the service that gives credentials
        if re.search(r"status code: 40[13]\b", str(error)):
            raise _refuse_access(path, error) from None
        kind = NoAnswerError if _may_change(error) else OSError
        where = os.environ.get("AWS_ENDPOINT_URL", "") if "status code" not in str(error) else ""
        asked = f" at {hide_passwords(where)} (AWS_ENDPOINT_URL)" if where else ""
        words = f"the store{asked} does not answer as it should: {_shorten(error)}"
        raise kind(errno.EIO, words, str(path)) from None


def _may_change(error: Exception) -> bool:
    """Whether a retry may succeed: after 5xx but 501, 408, 429, RequestTimeout, or no status."""
    status = re.search(r"status code: (\d+)", str(error))
    if status is None:
        return "redirect without LOCATION" not in str(error)  # the bucket is in another region
    return bool(re.match("408|429|5(?!01)", status[1])) or "<Code>RequestTimeout</Code>" in str(
        error
    )


def check_size(path: BucketObject, data: bytes) -> None:
    """Raise OSError if `data` is too large for one put."""
    if len(data) > MOST_PUT_BYTES:
        found, most = (f"{size / 1e9:.3g} GB" for size in (len(data), MOST_PUT_BYTES))
        words = (
            f"object is {found}, expected {most} at most; "
            "lower cache.shard_samples, in a new cache.path"
        )
        raise OSError(errno.EFBIG, words, str(path))


def _lost_bucket(path: BucketObject) -> OSError:
    return OSError(errno.ENXIO, "bucket is not there: make it, or mend its name", path.bucket)


def _refuse_access(path: BucketObject, error: Exception) -> PermissionError:
    words = (
        f"access is denied, {_shorten(error)}: look at the credentials (AWS_PROFILE, "
        "AWS_ACCESS_KEY_ID), their rights and this machine's clock"
    )
    return PermissionError(errno.EACCES, words, str(path))


def _shorten(error: Exception) -> str:
    """The server's answer, else the innermost reason, in one line."""
    text = " ".join(str(error).split()).split(" Debug source")[0]
    answer = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    words = answer[1] if answer else text.rpartition(" - ")[2]
    return hide_passwords(words)[-160:] + (f" ({code[1]})" if code else "")
