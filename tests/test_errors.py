"""Errors come from other processes as they are."""

from __future__ import annotations

import pickle

import pytest

from kdcache import errors
from kdcache.disk import UnfitFileError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
ERRORS = [kind for kind in KINDS if issubclass(kind, errors.KdcacheError)]
ARGUMENTS = {errors.ToldElsewhere: ((3,), {})} | {
    kind: (("caches/a", "size is 1"), {"cure": "repair it"})
    for kind in (errors.CacheCorruptError, errors.OtherCacheError)
}


@pytest.mark.parametrize("kind", [*ERRORS, UnfitFileError])
def test_an_error_is_the_same_after_pickling(kind: type):
    words, named = ARGUMENTS.get(kind, (("caches/a: size is 1",), {}))
    error = kind(*words, **named)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))
    assert getattr(again, "strerror", None) == getattr(error, "strerror", None)
