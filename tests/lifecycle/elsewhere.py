# SPDX-License-Identifier: AGPL-3.0-or-later
"""A process without this package: loads each checkpoint that it is told of, predicts, exports, and says what it saw.

Reads a JSON object a line, ``{"path": ..., "export": ...}``, and answers with one. Run with ``python -P elsewhere.py``.
"""

import copy
import json
import os
import sys
from pathlib import Path

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever else is printed, by loggers that were made at import too, goes to the log

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from ultralytics import YOLO  # noqa: E402
from ultralytics.utils import LOGGER  # noqa: E402

SIZE = 64


def look(path: str, export: bool) -> dict:
    """What a checkpoint does here."""
    model = YOLO(path)
    foreign = {
        type(m).__module__
        for m in model.model.modules()
        if not type(m).__module__.startswith(("torch.", "torchvision.", "ultralytics."))
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
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            said = look(asked["path"], asked["export"])
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"[:2000]}
        said["package"] = [name for name in sys.modules if name.startswith("yolo_gradstudy")]
        print(json.dumps(said), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
