"""The one way to read tensors from a file of torch.save: no code in it is run, and it takes no more
memory than it has bytes.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from kdcache.disk import open_stream


def load_tensors(path: Path, *, follow: bool = True) -> object:
    """What a file of torch.save holds, on the CPU: plain tensors, numbers and texts.

    Args:
        follow: take a link for the file that it names; False for files of a run.

    Raises: OSError; whatever damaged bytes end in: a dozen kinds, as struct.error and IndexError.
    """
    with open_stream(path, follow=follow) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about old pickles before it refuses them
        _check_archive(file)
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_archive(file: BinaryIO) -> None:
    """Raise ValueError for an archive that would unpack to more bytes than it has."""
    if zipfile.is_zipfile(file):
        members = zipfile.ZipFile(file).infolist()
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise ValueError("its archive is compressed, expected one as torch.save writes it")
        if sum(one.file_size for one in members) > file.seek(0, 2):
            raise ValueError("its archive says that it has more bytes than there are")
    file.seek(0)
