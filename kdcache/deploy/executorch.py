"""A student as an ExecuTorch program for phones and boards, its arithmetic by XNNPACK.

Letters: H height, W width, K classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

from kdcache import durable
from kdcache.deploy.check import Ask, check_answers
from kdcache.deploy.facts import ByteStudent, quiet
from kdcache.deploy.load import TrainedStudent
from kdcache.errors import TrainingError, one_line


def write(student: TrainedStudent, path: Path) -> None:
    """Write the student for one uint8 image [1, H, W, 3] of validation's size: an ExecuTorch program plans its memory before.

    Raises: TrainingError where the student cannot be lowered.
    """
    image = torch.zeros(1, *student.config.dataset.val_hw, 3, dtype=torch.uint8)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(ByteStudent(student.module), (image,))
            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()]
            ).to_executorch()
    except Exception as error:  # whatever the exporter and code of the user's meet
        reason = one_line(error, named=True)
        raise TrainingError(
            f"{student.folder}: student cannot be lowered to ExecuTorch ({reason}); mend student.arch"
        ) from None
    durable.write_file(path, [lowered.buffer])


def check(student: TrainedStudent, path: Path, images: list[np.ndarray]) -> str:
    """What was found: it answers as the student does. Raises TrainingError."""
    return check_answers(
        student, open_program(path), images, name="ExecuTorch", threads="threads of its own"
    )


def open_program(path: Path) -> Ask:
    """Run the file by ExecuTorch's runtime: uint8 RGB [1, H, W, 3] -> logits float32 [1, K, H, W]."""
    method = Runtime.get().load_program(path).load_method("forward")
    return lambda image_NHW3: method.execute([torch.from_numpy(image_NHW3)])[0].clone()
