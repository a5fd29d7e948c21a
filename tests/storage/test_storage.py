"""What every storage must do, whichever it is: the same tests for a folder, a bucket and a packed
file (its reading half).
"""

import pickle
from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.layout import COMMITS, MANIFEST
from kdcache.cache.pack import pack_cache
from kdcache.errors import CacheCorruptError, CacheError, SettingsError
from kdcache.storage import LocalFolder, Storage, open_storage
from kdcache.storage.base import SOMEBODY, find_holder
from kdcache.storage.lock import FolderInUseError
from tests.support import quick
from tests.support.helpers import check_one_line

KEY = "train/low/c/0/0/0/0/0"
WRITABLE = ("local", "bucket")


@pytest.fixture
def storage(request, tmp_path, use_server) -> Storage:
    """An empty place for a cache, of the kind that the test asks for."""
    made = LocalFolder(tmp_path / "cache") if request.param == "local" else use_server()
    made.create()
    return made


@pytest.fixture
def cached(request, quick_data, quick_teacher, tmp_path, use_server) -> Storage:
    """A finished cache, of the kind that the test asks for."""
    place = use_server() if request.param == "bucket" else tmp_path / "cache"
    quick.build_quick(quick_data, place)
    if request.param == "packed":
        pack_cache(place, tmp_path / "cache.h5")
        place = tmp_path / "cache.h5"
    return open_storage(place)


writable = pytest.mark.parametrize("storage", WRITABLE, indirect=True)
every = pytest.mark.parametrize("cached", [*WRITABLE, "packed"], indirect=True)


def write(storage: Storage, key: str, data: bytes) -> None:
    with storage.lock(wait=True):
        storage.make_folders(key.rpartition("/")[0])
        storage.replace(key, data)


# --- reading


@every
def test_documents_are_listed_found_and_read(cached):
    assert cached.exists(MANIFEST) and not cached.exists("nothing") and cached.is_folder(COMMITS)
    assert cached.list_names(COMMITS) == {f"{name}.json" for name in quick.GROUPS}
    assert cached.list_names("nothing") == set() and not cached.is_folder("nothing")
    data = cached.read_bytes(MANIFEST)
    assert data.startswith(b"{") and cached.find_sizes([MANIFEST, "nothing"]) == {
        MANIFEST: len(data)
    }
    assert cached.sum_sizes([MANIFEST, "nothing"]) == len(data)


@every
def test_a_missing_document_is_damage_with_a_name_and_a_cure(cached):
    with pytest.raises(FileNotFoundError):
        cached.read_bytes("nothing")
    with pytest.raises(CacheCorruptError) as error:
        cached.read_document("nothing", cure="make it")
    check_one_line(
        error, f"{cached.name('nothing')}: file is missing", "expected a plain file", "make it"
    )


@every
def test_a_storage_works_after_pickling_and_is_equal(cached):
    again = pickle.loads(pickle.dumps(cached))
    assert again == cached == open_storage(cached.address) and hash(again) == hash(cached)
    assert again.read_bytes(MANIFEST) == cached.read_bytes(MANIFEST)
    assert open_storage(cached) is cached and str(cached) == cached.address


@every
def test_the_repair_hint_is_a_command_or_a_cure(cached):
    assert cached.repair_cure
    assert cached.repair_command is None or cached.repair_command in cached.repair_cure


@every
def test_a_local_path_has_the_bytes_that_are_read_by_position(cached):
    key = "" if cached.is_single_file else KEY
    path, first, second = cached.local_path(key), np.empty(3, np.uint8), np.empty((2, 4), np.uint8)
    with cached.open_file(key) as opened:
        assert opened.read_into(5, [first, second]) == 11
    if path is not None:
        assert Path(path).read_bytes()[5:16] == first.tobytes() + second.tobytes()
    assert (path is None) == cached.is_remote


@pytest.mark.parametrize("storage", WRITABLE, indirect=True)
def test_reading_beyond_the_end_gets_what_is_there(storage):
    write(storage, KEY, bytes(range(10)))
    with storage.open_file(KEY) as opened:
        slots = [np.zeros(4, np.uint8), np.zeros(8, np.uint8)]
        assert opened.size() == 10 and opened.read_into(3, slots) == 7
    assert slots[0].tolist() == [3, 4, 5, 6] and slots[1].tolist() == [7, 8, 9, 0, 0, 0, 0, 0]


# --- writing


@writable
def test_a_document_is_replaced_and_removed(storage):
    for data in (b"one", b"two"):
        write(storage, "commits/a.json", data)
        assert storage.read_bytes("commits/a.json") == data
    assert storage.list_names(COMMITS) == {"a.json"}
    for _ in range(2):  # what is absent, too
        storage.remove("commits/a.json")
    assert not storage.exists("commits/a.json")


@writable
def test_a_shard_is_found_once_it_is_published(storage):
    parts = [b"chunk", b"index"]
    with storage.take_lease("g") as lease:
        file = storage.write_shard(KEY, parts, lease=lease)
        storage.publish_shard(KEY, file, lease=lease)
    assert file.size_bytes == 10 and storage.read_bytes(KEY) == b"chunkindex"
    assert storage.find_sizes([KEY]) == {KEY: 10}


@writable
def test_what_was_not_published_is_discarded(storage):
    with storage.take_lease("g") as lease:
        storage.write_shard(KEY, [b"torn"], lease=lease)
        storage.discard_unpublished([KEY], lease=lease)
    unfinished = storage.unfinished_key(KEY)
    assert unfinished is None or not storage.exists(unfinished)


@writable
def test_a_lease_is_held_once_and_given_back(storage):
    with storage.take_lease("a") as lease, storage.take_lease("a") as other:
        assert lease is not None and other is None and storage.is_held("a")
        assert storage.read_holder("a").startswith("process ")
        lease.check()
    assert not storage.is_held("a") and "a" not in storage.list_names("leases")


@writable
def test_documents_are_locked_for_one_at_a_time(storage):
    with (
        storage.lock(),
        pytest.raises(FolderInUseError, match="in use by another process"),
        storage.lock(),
    ):
        pass
    with storage.lock():
        pass


@writable
def test_there_is_room_and_it_can_be_changed(storage):
    storage.check_changeable()
    storage.create()  # again
    assert storage.find_free_bytes() > 0


@pytest.mark.parametrize("cached", ["packed"], indirect=True)
def test_a_packed_file_is_never_changed(cached):
    for change in (
        cached.check_changeable,
        cached.create,
        cached.lock,
        lambda: cached.take_lease("a"),
        lambda: cached.replace(MANIFEST, b""),
        lambda: cached.remove(MANIFEST),
    ):
        with pytest.raises(CacheError, match="cache is one file, expected a folder"):
            change()


# --- addresses


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://host/x", "cache.path is 'ftp://host/x', expected a path, or an address"),
        ("s3://", "cache.path is 's3://', expected s3://BUCKET/KEY"),
        ("s3:/bucket/x", "expected s3://BUCKET/KEY, with two slashes"),
    ],
)
def test_addresses_of_another_kind_are_refused(address, words):
    with pytest.raises(SettingsError) as error:
        open_storage(address)
    check_one_line(error, words)


def test_needless_slashes_of_an_address_are_left_out():
    assert open_storage("s3://bucket//caches/one/").address == "s3://bucket/caches/one"


@pytest.mark.parametrize(
    ("lease", "holder"),
    [
        (b"process 12 on host-1.lan\n", "process 12 on host-1.lan"),
        (b"process 12 on host, " + b"0a" * 16 + b"\n", "process 12 on host"),
        (b"", SOMEBODY),
        (b"process 12 on host; delete everything\n", SOMEBODY),
        (b"process x on \x1b[2J", SOMEBODY),
        (b"process 12 on " + b"h" * 300, SOMEBODY),
        (b"process 12 on \xff", SOMEBODY),
    ],
)
def test_a_lease_names_its_holder_only_in_the_form_that_we_write(lease, holder):
    assert find_holder(lease) == holder
