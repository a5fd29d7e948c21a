"""A student as an ONNX file: bytes in, logits out, for any number and size of images.

Letters: N images, H height, W width, K classes.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  torch's exporter needs it; where it is missing, that is met here
import torch
from torch import Tensor

from kdcache import durable
from kdcache.deploy.check import check_answers
from kdcache.deploy.facts import ByteStudent, list_facts, quiet
from kdcache.deploy.load import TrainedStudent
from kdcache.errors import TrainingError, one_line

log = logging.getLogger("kdcache")
LEAST_PX = 32  # of the built-in student
N, H, W = (
    torch.export.Dim("N"),
    torch.export.Dim("H", min=LEAST_PX),
    torch.export.Dim("W", min=LEAST_PX),
)


def write(student: TrainedStudent, path: Path) -> None:
    """Write the student with its facts as `metadata_props`. Raises TrainingError where torch cannot export it.

    A student of the user's that is made for one size is exported for that.
    """
    model = _export(student).model_proto
    _forget_this_machine(model)
    sizes = [
        size.dim_param or str(size.dim_value)
        for size in model.graph.input[0].type.tensor_type.shape.dim[:3]
    ]
    if sizes != ["N", "H", "W"]:
        shape = ", ".join(sizes)
        log.warning(
            "student.arch %s is exported for images [%s, 3] alone",
            student.config.student.arch,
            shape,
        )
    onnx.helper.set_model_props(model, list_facts(student, sizes=sizes))
    onnx.checker.check_model(model)
    durable.write_file(path, [model.SerializeToString()])


def check(student: TrainedStudent, path: Path, images: list[np.ndarray]) -> str:
    """What was found: it answers as the student does, of images of other sizes, too. Raises TrainingError."""
    session = open_session(path)
    if all(isinstance(size, str) for size in session.get_inputs()[0].shape[1:3]):
        images = images + [
            cut for image in images[:3] for cut in _cut(image) if _answers(student, cut)
        ]
    return check_answers(
        student, partial(_ask, session), images, name="onnxruntime", threads="one thread"
    )


def _cut(image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smaller images of sizes that are no multiples of a stride."""
    return image_HW3[LEAST_PX // 3 :, 5:], image_HW3[:LEAST_PX, :-7]


def _answers(student: TrainedStudent, image_HW3: np.ndarray) -> bool:
    """Whether there is something to compare with: a student of the user's need not take all sizes."""
    try:
        student.ask(np.ascontiguousarray(image_HW3[None]))
        return True
    except TrainingError:
        return False


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """On one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )


def _ask(session: onnxruntime.InferenceSession, image_NHW3: np.ndarray) -> Tensor:
    return torch.from_numpy(session.run(None, {"image": image_NHW3})[0])


def _export(student: TrainedStudent) -> torch.onnx.ONNXProgram:
    image = torch.zeros(
        2, *student.config.dataset.val_hw, 3, dtype=torch.uint8
    )  # of 1 the exporter takes N for fixed
    try:
        with quiet(), torch.no_grad():
            return torch.onnx.export(
                ByteStudent(student.module), (image,), dynamo=True, verbose=False, dynamic_shapes=({0: N, 1: H, 2: W},),
                input_names=["image"], output_names=["logits"],
            )  # fmt: skip
    except Exception as error:  # whatever the exporter and code of the user's meet
        reason = one_line(error, named=True)
        raise TrainingError(
            f"{student.folder}: student cannot be exported to ONNX ({reason}); mend student.arch"
        ) from None


def _forget_this_machine(model: onnx.ModelProto) -> None:
    """The exporter notes at each node in which line of which file it came about."""
    for part in [
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.output,
    ]:
        del part.metadata_props[:]
