"""A student as an ONNX file: uint8 images in, logits out, for any number and size of images.

Letters: N images, H height, W width, K classes.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  torch's exporter needs it: if it is missing, fail here
import torch
from torch import Tensor

from kdcache import disk
from kdcache.deploy.export import check_answers, check_export, quiet
from kdcache.deploy.student import ByteStudent, TrainedStudent
from kdcache.errors import TrainingError, one_line

log = logging.getLogger("kdcache")
LEAST_PX = 32  # of the built-in student
N = torch.export.Dim("N")
H, W = torch.export.Dim("H", min=LEAST_PX), torch.export.Dim("W", min=LEAST_PX)


def write(student: TrainedStudent, path: Path) -> None:
    """Write the student, with its facts as `metadata_props`.

    A custom student that works at one size only is exported for that size, with a warning.

    Raises: TrainingError if torch cannot export it.
    """
    model = _export(student).model_proto
    _remove_source_paths(model)
    dims = model.graph.input[0].type.tensor_type.shape.dim[:3]
    sizes = [dim.dim_param or str(dim.dim_value) for dim in dims]
    if sizes != ["N", "H", "W"]:
        arch, shape = student.config.student.arch, ", ".join(sizes)
        log.warning("student.arch %s is exported for images [%s, 3] only", arch, shape)
    facts = {
        **student.describe(),
        "input": f"image: uint8 RGB [{', '.join(sizes)}, 3], H and W from 32; mean and standard "
        "deviation are taken inside",
        "output": "logits: float32 [N, K, H, W]; the class of a pixel is the argmax over K",
    }
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    disk.write_file(path, [model.SerializeToString()])


def check(student: TrainedStudent, path: Path, images: list[np.ndarray]) -> str:
    """Compare the file with the student, also on images of other sizes; the result in words.

    Raises: TrainingError if they differ.
    """
    session = open_session(path)
    if all(isinstance(size, str) for size in session.get_inputs()[0].shape[1:3]):
        crops = [crop for image in images[:3] for crop in _crop(image)]
        images = images + [crop for crop in crops if _takes(student, crop)]
    ask = partial(_ask, session)
    return check_answers(student, ask, images, name="onnxruntime", threads="one thread")


def _crop(image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smaller images whose sizes are no multiples of a stride."""
    return image_HW3[LEAST_PX // 3 :, 5:], image_HW3[:LEAST_PX, :-7]


def _takes(student: TrainedStudent, image_HW3: np.ndarray) -> bool:
    """Whether the student takes images of this size: a custom one need not take all sizes."""
    try:
        student.ask(np.ascontiguousarray(image_HW3[None]))
        return True
    except TrainingError:
        return False


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Run the file with onnxruntime on one thread of the CPU.

    Raises: TrainingError if its sha256 is not the one beside it.
    """
    check_export(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )


def _ask(session: onnxruntime.InferenceSession, image_NHW3: np.ndarray) -> Tensor:
    return torch.from_numpy(session.run(None, {"image": image_NHW3})[0])


def _export(student: TrainedStudent) -> torch.onnx.ONNXProgram:
    # from a single image the exporter would conclude that N is fixed
    image = torch.zeros(2, *student.config.dataset.val_hw, 3, dtype=torch.uint8)
    try:
        with quiet(), torch.no_grad():
            return torch.onnx.export(
                ByteStudent(student.module),
                (image,),
                dynamo=True,
                verbose=False,
                dynamic_shapes=({0: N, 1: H, 2: W},),
                input_names=["image"],
                output_names=["logits"],
            )
    except Exception as error:  # the exporter and the user's code may raise anything
        reason = one_line(error, named=True)
        raise TrainingError(
            f"{student.folder}: student cannot be exported to ONNX ({reason}); mend student.arch"
        ) from None


def _remove_source_paths(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes on the line and file of this machine that each node came from."""
    graph = model.graph
    for part in [*graph.node, *graph.value_info, *graph.initializer, *graph.output]:
        del part.metadata_props[:]
