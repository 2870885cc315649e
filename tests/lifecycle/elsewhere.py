# SPDX-License-Identifier: AGPL-3.0-or-later
"""A process without this package: loads each checkpoint that it is told of, predicts, exports, and says what it saw.

Reads a JSON object a line, ``{"path": ..., "export": ...}``, and answers with one. Run with ``python -P elsewhere.py``.
"""

import contextlib
import copy
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from ultralytics import YOLO
from ultralytics.utils import LOGGER

SIZE = 64


def look(path: str, export: bool) -> dict:
    """What a checkpoint does here."""
    model = YOLO(path)
    foreign = {
        type(m).__module__
        for m in model.model.modules()
        if not type(m).__module__.startswith(("torch.", "ultralytics."))
    }
    said = {"class": type(model).__name__, "foreign": sorted(foreign)}
    said["parameters"] = sum(p.numel() for p in model.model.parameters())
    image = (np.random.default_rng(0).random((SIZE, SIZE, 3)) * 255).astype("uint8")
    twin = copy.deepcopy(model.model)
    boxes = model.predict(image, imgsz=SIZE, verbose=False, conf=0.0, device="cpu")[0].boxes
    said["predicted"] = bool(torch.isfinite(boxes.data).all())
    if export:
        file = YOLO(path).export(format="onnx", imgsz=SIZE, simplify=False, device="cpu", verbose=False)
        session = onnxruntime.InferenceSession(file)
        images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        (exported, *_) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        twin = twin.float().eval()
        if hasattr(twin.model[-1], "one2one_cv2"):
            twin.end2end = False  # what the export of a head with two branches answers from, unless nms=False
        with torch.no_grad():
            here = twin(images)
        here = (here[0] if isinstance(here, (tuple, list)) else here).numpy()
        said["exported"] = bool(np.isfinite(exported).all()) and exported.shape == here.shape
        said["difference"] = float(np.abs(exported - here).max() / max(np.abs(here).max(), 1e-6))
        Path(file).unlink()
    return said


def main() -> None:
    """Answer until there is nothing more to read."""
    LOGGER.setLevel("ERROR")
    torch.set_num_threads(1)
    answers = sys.stdout
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            asked = json.loads(line)
            try:
                said = look(asked["path"], asked["export"])
            except Exception as error:
                said = {"error": f"{type(error).__name__}: {error}"}
            said["package"] = [name for name in sys.modules if name.startswith("yolo_gradstudy")]
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
