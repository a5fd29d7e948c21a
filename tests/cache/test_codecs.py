"""Codecs of chunks: what one makes of a sample, another gives back, and a wrong chunk never leaves
its slot.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kdcache.cache.codecs import choose_codec, make_coder
from kdcache.cache.layout import Codec

NAMES = ["blosc-lz4", "blosc-zstd", "zstd", "gzip"]  # the last one by zarr-python


@pytest.mark.parametrize("name", ["blosc-lz4", "blosc-zstd", "zstd", "gzip"])
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_what_cannot_be_decoded_is_an_error_and_never_more_than_the_slot(name, dtype):
    """With checks off, nothing but the coder stands between a wrong chunk and the memory behind the
    slot.
    """
    item = (np.arange(600).reshape(6, 100) % 250).astype(dtype)
    coder = make_coder(choose_codec(name, dtype), shape=item.shape, dtype=dtype)
    chunk = np.frombuffer(coder.encode(item), np.uint8)
    room = np.zeros((3, *item.shape), dtype)
    coder.decode_into(chunk, room[1])
    assert np.array_equal(room[1], item) and not room[0].any() and not room[2].any()
    shorter, longer = item[:3].copy(), np.concatenate([item, item])
    others = [
        np.frombuffer(make(x).encode(x), np.uint8)
        for x in (shorter, longer)
        for make in [maker(name)]
    ]
    for wrong in (
        chunk[:0],
        chunk[:10],
        chunk[: chunk.size // 2],
        np.append(chunk, chunk),
        *others,
    ):
        with pytest.raises(ValueError):
            coder.decode_into(wrong, room[1])
        assert not room[0].any() and not room[2].any()


def maker(name: str):
    return lambda item: make_coder(
        choose_codec(name, str(item.dtype)), shape=item.shape, dtype=str(item.dtype)
    )


@pytest.mark.parametrize("name", NAMES)
def test_zeros_are_stored_like_anything_else(name):
    zeros, slot = np.zeros((4, 5), np.uint8), np.ones((4, 5), np.uint8)
    coder = make_coder(choose_codec(name, "uint8"), shape=(4, 5), dtype="uint8")
    coder.decode_into(np.frombuffer(coder.encode(zeros), np.uint8), slot)
    assert not slot.any()


def test_codecs_go_through_json_and_back():
    for codec in (
        choose_codec("blosc-zstd", "float16"),
        choose_codec("gzip", "uint8"),
        Codec("crc32c"),
    ):
        assert Codec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec


@pytest.mark.parametrize("name", ["blosc-lz4", "blosc-zstd", "zstd"])
def test_coded_bytes_are_the_same_in_every_thread(name):
    """A sample of many blocks: in the main thread, where repair codes, and in a writer's."""
    item = np.random.default_rng(0).normal(size=(64, 128, 128)).astype(np.float16)
    coder = make_coder(choose_codec(name, "float16"), shape=item.shape, dtype="float16")
    with ThreadPoolExecutor(2) as pool:
        theirs = set(pool.map(lambda _: coder.encode(item), range(3)))
    assert {coder.encode(item) for _ in range(3)} == theirs and len(theirs) == 1


@pytest.mark.parametrize("size", [2**63 + 5, 2**40, 1199, 1201])
def test_a_zstd_frame_of_another_size_is_refused_by_its_header(size):
    coder, slot = (
        make_coder(choose_codec("zstd", "uint8"), shape=(1200,), dtype="uint8"),
        np.empty(1200, np.uint8),
    )
    frame = bytes.fromhex("28b52ffde0") + size.to_bytes(8, "little") + bytes.fromhex("010000")
    with pytest.raises(ValueError, match=f"its zstd frame holds {size} bytes"):
        coder.decode_into(np.frombuffer(frame, np.uint8), slot)
