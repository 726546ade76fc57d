"""The verb `predict`: a model over image files or folders, to boxes or masks in files and to pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tutelage.config import RunConfig
from tutelage.data.images import decode
from tutelage.data.index import Index
from tutelage.data.joining import join
from tutelage.data.readers import locate, open_source
from tutelage.data.sheets import draw_boxes, draw_mask
from tutelage.engine.runtime import Runtime, launch
from tutelage.files import make_folder, read_json
from tutelage.tasks.table import TASKS, build_task
from tutelage.types import Annotation, Boxes, InputError, Prediction
from tutelage.workflows.assembly import PREDICTIONS, load_trained, open_model, require_format
from tutelage.workflows.labeling import label_images
from tutelage.workflows.options import Paths
from tutelage.workflows.stages import Stage, console


def predict(
    model: str | Path,
    inputs: Paths,
    *,
    out: str | Path,
    format: str = "",
    score: float = 0.05,
    pictures: bool = False,
    device: str = "",
    overwrite: bool = False,
) -> list[Prediction]:
    """Finds objects, or the class of every pixel, in images and writes them to `out`.

    Args:
        model: run, stage or model folder.
        inputs: image files or folders.
        out: folder for the boxes or masks, and for the pictures.
        format: of boxes: coco (a file with images, categories and scored boxes; taken when empty) or yolo; of masks:
            png (a folder of class-index PNGs; taken when empty) or coco (run-length masks).
        score: least score of a box that is written.
        pictures: also write each image with its boxes or mask.
        device: auto, cpu, cuda or mps.
        overwrite: replace what an earlier call wrote.

    Returns:
        One prediction for each image that could be read, masks left out; the others are named and counted.

    Raises:
        InputError: no model, unknown format, or no image that can be read.
    """
    if Path(out).is_file():
        raise InputError(f"{out}: is a file; a folder is needed. Choose another --out.")
    if not overwrite and Path(out).is_dir() and any(Path(out).iterdir()):
        raise InputError(f"{out}: is not empty. Choose another --out, or write over what is there with --overwrite.")
    options = (f"postprocess.score_floor={score}", "label.size=original")
    stage, config = open_model(model, "", options, device=device, devices=0, unlabeled=inputs)
    annotation = TASKS[config.task].annotation
    format = format or next(iter(PREDICTIONS[annotation]))
    require_format("--format", format, PREDICTIONS, annotation)
    images = _open_inputs(config, annotation)
    write, name = PREDICTIONS[annotation][format]
    output = Output(Path(out) / name, write, Path(out) / "pictures" if pictures else None, DRAW[annotation])
    found = launch(config.runtime, _predict, config, stage, images, output)
    if not found:
        raise InputError(f"{', '.join(config.sources.unlabeled)}: no image could be read. Give image files or folders.")
    written = f"{annotation.capitalize()}: {output.place}"
    console.print(f"{len(found)} images, {len(images) - len(found)} skipped. {written}")
    return found


def _open_inputs(config: RunConfig, annotation: Annotation) -> Index:
    """All images of the inputs, of every split where they have some, each once."""
    sources = [
        source
        for given in config.sources.unlabeled
        for source in locate(given, unlabeled=True, annotation=annotation).values()
    ]
    options: dict[str, Any] = {"images": "", "unlabeled": True, "annotations_only": False, "annotation": annotation}
    images = join([open_source(source, config.data, **options).index for source in sources])
    first = {images.path(row): row for row in reversed(range(len(images)))}
    return images.select(np.sort(list(first.values())))


@dataclass(frozen=True)
class Output:
    """Where predictions go, and how."""

    place: Path  # file or folder
    write: Callable[..., None]  # (place, records, class names)
    pictures: Path | None  # folder
    draw: Callable[..., Image.Image]  # (picture, boxes or mask, class names)


def _predict(runtime: Runtime, config: RunConfig, stage: Stage, images: Index, output: Output) -> list[Prediction]:
    """Writes predictions as they come and returns them, masks left out: those of many photos fit into no memory."""
    class_names: tuple[str, ...] = tuple(read_json(stage.model_folder / "model.json")["class_names"])
    model, task = load_trained(stage, config.task), build_task(config, class_names)
    names, found = _names(images), list[Prediction]()

    def records() -> Iterator[tuple[str, tuple[int, int], Boxes | NDArray[np.uint8]]]:
        for outcome in label_images(config, task, model, images, (), runtime, np.arange(len(images))):
            if not isinstance(outcome, Prediction):
                console.print(f"Skipped: {outcome.reason}")
                continue
            name, content = names[outcome.image_id], _content(outcome)
            if output.pictures is not None:
                picture = Image.fromarray(decode(images.path(outcome.image_id), config.data).pixels)
                path = output.pictures / f"{name}.jpg"
                make_folder(path.parent)
                output.draw(picture, content, class_names).save(path, quality=90)
            found.append(replace(outcome, mask=None, levels=None))
            yield name, outcome.size, content

    rest = records()
    if (first := next(rest, None)) is not None:
        output.write(output.place, chain([first], rest), class_names)
    return found


def _names(images: Index) -> list[str]:
    """What each image is called in the output: its path below its folder or, where two would be one, below all."""
    names = [images.relative_path(row) for row in range(len(images))]
    if len(set(names)) == len(names):
        return names
    paths = [str(images.path(row)) for row in range(len(images))]
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, above) for path in paths]


DRAW: dict[Annotation, Callable[..., Image.Image]] = {"boxes": draw_boxes, "masks": draw_mask}


def _content(prediction: Prediction) -> Boxes | NDArray[np.uint8]:
    content = prediction.boxes if prediction.boxes is not None else prediction.mask
    assert content is not None, "a prediction holds boxes or a mask"
    return content
