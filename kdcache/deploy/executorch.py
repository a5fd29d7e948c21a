"""A student as an ExecuTorch program for phones and boards, computed by XNNPACK.

Letters: H height, W width, K classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

from kdcache import disk
from kdcache.deploy.export import Ask, check_answers, check_export, quiet
from kdcache.deploy.student import ByteStudent, TrainedStudent
from kdcache.errors import TrainingError, one_line


def write(student: TrainedStudent, path: Path) -> None:
    """Write the student for one uint8 image [1, H, W, 3] of validation's size.

    ExecuTorch plans a program's memory ahead, so the size is fixed.

    Raises: TrainingError if the student cannot be lowered.
    """
    image = torch.zeros(1, *student.config.dataset.val_hw, 3, dtype=torch.uint8)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(ByteStudent(student.module), (image,))
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            lowered = edge.to_executorch()
    except Exception as error:  # the exporter and the user's code may raise anything
        reason = one_line(error, named=True)
        raise TrainingError(
            f"{student.folder}: student cannot be lowered to ExecuTorch ({reason}); "
            "mend student.arch"
        ) from None
    disk.write_file(path, [lowered.buffer])


def check(student: TrainedStudent, path: Path, images: list[np.ndarray]) -> str:
    """Compare the file with the student; the result in words. Raises TrainingError if they
    differ.
    """
    ask = open_program(path)
    return check_answers(student, ask, images, name="ExecuTorch", threads="threads of its own")


def open_program(path: Path) -> Ask:
    """Run the file with ExecuTorch: uint8 RGB [1, H, W, 3] -> logits float32 [1, K, H, W].

    Raises: TrainingError if its sha256 is not the one beside it.
    """
    check_export(path)
    method = Runtime.get().load_program(path).load_method("forward")
    return lambda image_NHW3: method.execute([torch.from_numpy(image_NHW3)])[0].clone()
