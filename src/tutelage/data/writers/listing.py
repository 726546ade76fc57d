"""A COCO json, written piece by piece for boxes and masks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TextIO

from tutelage.files import atomic, make_folder

Entry = tuple[str, tuple[int, int], list[dict[str, Any]]]  # relative path, (height, width), annotations without ids


def write_coco_json(path: Path, entries: Iterable[Entry], class_names: Sequence[str]) -> None:
    """One json of images, annotations and categories; all ids count from 1.

    Args:
        path: the file to write.
        entries: the images with their annotations.
        class_names: names by label; the category of label k has the id k + 1.
    """
    make_folder(path.parent)
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
    # The images go to a file without a name, on the same disk: it ends with the process.
    with atomic(path) as temporary, temporary.open("w") as file, TemporaryFile("w+", dir=path.parent) as images:
        file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        _write_annotations(file, images, entries)
        file.write('],\n"images": [')
        images.seek(0)
        file.writelines(images)
        file.write("]}\n")


def _write_annotations(file: TextIO, images: IO[str], entries: Iterable[Entry]) -> None:
    number = 0
    for image_id, (name, (height, width), found) in enumerate(entries, 1):
        entry = {"id": image_id, "file_name": name, "height": int(height), "width": int(width)}
        images.write(f"{',' if image_id > 1 else ''}\n{json.dumps(entry)}")
        for annotation in found:
            number += 1
            whole = {"id": number, "image_id": image_id, **annotation}
            file.write(f"{',' if number > 1 else ''}\n{json.dumps(whole)}")
