"""Runs an exported model on pictures: python run.py photo.jpg. Needs numpy, opencv and onnxruntime, not Tutelage.

A copy of this file lies beside every model.onnx as run.py, to be used or to be read: it fits pictures into the canvas
as the model saw them in training, and brings boxes back to their pixels.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

FILL = (124, 116, 104)  # RGB of the padding; the model does not look at it


def letterbox(picture: Any, canvas: tuple[int, int]) -> tuple[Any, tuple[int, int]]:
    """The picture fitted into the top left of the canvas, and the (height, width) that it covers there.

    Aspect is kept. A picture that is at least twice too large is first divided by a power of two (means of whole
    blocks), then resized linearly.

    Args:
        picture: (h, w, 3) uint8 RGB.
        canvas: (height, width).
    """
    height, width = picture.shape[:2]
    scale = min(canvas[0] / height, canvas[1] / width)
    fitted = max(1, round(scale * height)), max(1, round(scale * width))
    factors = [fitted[0] / height, fitted[1] / width]  # from here on along y and x
    divisor = 2 ** max(0, math.floor(math.log2(1 / max(factors)) + 1e-9))
    if divisor > 1:
        smaller = -(-height // divisor), -(-width // divisor)
        below, right = smaller[0] * divisor - height, smaller[1] * divisor - width
        picture = cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE)
        picture = cv2.resize(picture, smaller[::-1], interpolation=cv2.INTER_AREA)
        factors = [factor * divisor for factor in factors]
    result = np.empty((*canvas, 3), np.uint8)
    result[:] = FILL
    result[: fitted[0], : fitted[1]] = _resized(picture, factors, fitted)
    return result, fitted


def _resized(picture: Any, factors: list[float], size: tuple[int, int]) -> Any:
    reached = [factor * side for factor, side in zip(factors, picture.shape[:2], strict=True)]
    if all(abs(end - side) < 1e-3 for end, side in zip(reached, size, strict=True)):
        return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
    back = np.array([[1 / factors[1], 0, 0.5 / factors[1] - 0.5], [0, 1 / factors[0], 0.5 / factors[0] - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, back, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def to_original(boxes: Any, fitted: tuple[int, int], size: tuple[int, int]) -> Any:
    """Boxes (N, 4) on the canvas in pixels of the original, whose (height, width) is `size`."""
    factors = np.array([size[1] / fitted[1], size[0] / fitted[0]])
    return np.clip(boxes * np.tile(factors, 2), 0, np.tile(size[::-1], 2))


def main() -> None:
    """Prints what is found in the pictures that the command line names."""
    import onnxruntime

    folder = Path(__file__).parent
    told = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(folder / told["file"]), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for path in sys.argv[1:]:
        stored = cv2.imread(path, cv2.IMREAD_COLOR)
        if stored is None:
            sys.exit(f"{path}: cannot be read")
        picture = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
        image, fitted = letterbox(picture, tuple(told["canvas"]))
        outputs = session.run(None, {"images": image[None], "valid": np.array([fitted], np.int64)})
        found = dict(zip(names, outputs, strict=True))
        if "labels" not in found:
            print(path, {name: values.shape for name, values in found.items()}, "covered:", fitted)
            continue
        for row in range(int(found["counts"][0])):
            box = to_original(found["boxes"][0, row], fitted, picture.shape[:2])
            name, score = told["class_names"][found["labels"][0, row]], found["scores"][0, row]
            print(path, name, f"{score:.3f}", " ".join(f"{value:.1f}" for value in box))


if __name__ == "__main__":
    main()
