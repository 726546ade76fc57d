"""Names of mask classes, and the values and colors they have: from `data.classes`, or from a file beside the masks."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from tutelage.data.masks import MAX_CLASSES, NOT_SHOWN, NUM_VALUES, code_name
from tutelage.data.readers.source import read_text
from tutelage.types import InputError

CLASS_FILES = (
    "classes.json class_dict.csv _classes.csv label_colors.txt labelmap.txt objectInfo150.txt objectInfo150.csv "
    "object150_info.csv classes.txt labels.txt meta.json dataset_meta.json classes.yaml config.yaml data.yaml"
).split()
LIST_KEYS = ("classes", "labels", "names", "categories", "label_map")
NAME_KEYS = ("name", "title", "readable", "class", "class_name", "label", "category")
VALUE_KEYS = ("index", "idx", "value", "pixel value", "id")
COLOR_KEYS = ("color", "colour", "color_hex_code", "hex", "rgb")
ASSIGNED = re.compile(r"\s*(#?)\w*\s*=")  # "7=", "#FF0000 ="
STATED = re.compile(r"(#[0-9A-Fa-f]{6}|\d+)\s*[=:,\t ]\s*(\S.*)")  # "7 = road", "#FF0000=road"
CVAT = re.compile(r"([^:#]+):(\d+,\d+,\d+)?:[^:]*:.*")  # CVAT's labelmap.txt: label:r,g,b:parts:actions
COLORED = re.compile(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)")  # CamVid's label_colors.txt: r g b name


@dataclass(frozen=True)
class Entry:
    """One class as a file or an option states it."""

    name: str
    value: int | None = None
    color: int | None = None  # 0xRRGGBB


@dataclass(frozen=True)
class MaskClasses:
    """What codes mean; ignored ones have the label NOT_SHOWN."""

    names: tuple[str, ...]
    values: Mapping[int, int]  # value -> label
    colors: Mapping[int, int]  # 0xRRGGBB -> label; empty where no colors are known
    stated: bool  # the values are stated; else they follow from the order of the names


def classes_of(
    entries: Sequence[Entry], ignored: Iterable[int | str], where: str, most: int = MAX_CLASSES
) -> MaskClasses:
    """Labels in the order of the entries; equal names are one class. A stated value or color is never ignored.

    Args:
        entries: the classes. Without values they have 0, 1, ... in their order, ignored values left out.
        ignored: values, and colors as #RRGGBB, of pixels without a label.
        where: their origin, for messages.
        most: how many classes are allowed.

    Raises:
        InputError: none, too many, or a value or color that two of them have.
    """
    names = tuple(dict.fromkeys(entry.name for entry in entries))
    if not names or len(names) > most:
        raise InputError(
            f"{where}: {len(names)} classes; 1 to {most} fit into an 8-bit mask. List the wanted ones as VALUE=name in "
            "data.classes; equal names are one class."
        )
    given = [str(code) for code in ignored]
    no_values = {int(code) for code in given if code.isdigit()}
    no_colors = {color_code(code) for code in given if not code.isdigit()}
    stated = all(entry.value is not None for entry in entries)
    if not stated:
        free = (value for value in range(len(entries) + len(no_values)) if value not in no_values)
        entries = [replace(entry, value=value) for entry, value in zip(entries, free, strict=False)]
    values = _labels(entries, names, "value", where)
    colors = _labels(entries, names, "color", where)
    return MaskClasses(
        names,
        dict.fromkeys(no_values, NOT_SHOWN) | values,
        dict.fromkeys(no_colors, NOT_SHOWN) | colors if colors else {},
        stated,
    )


def _labels(
    entries: Sequence[Entry], names: Sequence[str], key: Literal["value", "color"], where: str
) -> dict[int, int]:
    """Label by value or by color, where the entries have one."""
    found: dict[int, int] = {}
    for entry in entries:
        code, label = getattr(entry, key), names.index(entry.name)
        if code is None:
            continue
        if found.setdefault(code, label) != label or (key == "value" and code >= NUM_VALUES):
            shown = code_name(code, "colors" if key == "color" else "values")
            raise InputError(
                f"{where}: {entry.name!r} has the {key} {shown}, which must be of one class, and below {NUM_VALUES} if "
                "it is a value. Mend it."
            )
        found[code] = label
    return found


def given_entries(given: tuple[str, ...] | str) -> tuple[list[Entry], list[int | str], str]:
    """Entries of `data.classes`, a list or the path of a file; values ignored by that file; their origin in words.

    Raises:
        InputError: the file does not exist or cannot be understood.
    """
    if not isinstance(given, str):
        _require_one_way(given)
        return _of_lines(list(given)), [], "data.classes"
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(
            f"data.classes={given}: is no file; it must be a file of class names, or a list: data.classes='[road, "
            "roof]'. Mend it."
        )
    return *read_class_file(path), str(path)


def _require_one_way(given: Sequence[str]) -> None:
    """Refuses names with values beside others with colors or with neither (`InputError`)."""
    assigned = [match[1] if (match := ASSIGNED.match(name)) and STATED.fullmatch(name) else None for name in given]
    if len(set(assigned)) > 1:
        first = next(name for name, kind in zip(given, assigned, strict=True) if kind != assigned[0])
        raise InputError(
            f"data.classes: {given[0]!r} and {first!r} are written in two ways; all must be VALUE=name, all "
            "#RRGGBB=name, or all names alone. Change one of them."
        )


def class_file(folders: Iterable[Path]) -> Path | None:
    """The first file of classes in these folders (or such a file itself)."""
    for folder in folders:
        if folder.is_file():
            return folder
        entries = folder.iterdir() if folder.is_dir() else ()
        names = {entry.name.lower(): entry for entry in entries if entry.is_file()}
        for name in CLASS_FILES:
            if found := names.get(name.lower()):
                if read_class_file(found)[0]:
                    return found
    return None


def read_class_file(path: Path) -> tuple[list[Entry], list[int | str]]:
    """Classes that a file lists, none where it is of another kind, and values that it says are ignored.

    Raises:
        InputError: it cannot be parsed.
    """
    text, suffix = read_text(path), path.suffix.lower()
    try:
        if suffix == ".json":
            return _of_plain(json.loads(text), mapping="meta" not in path.stem)
        if suffix in (".yaml", ".yml"):
            return _of_plain(yaml.safe_load(text), mapping=False)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if suffix == ".csv" or (lines and "\t" in lines[0] and lines[0].lower().startswith("idx")):
            return _of_table(lines, "\t" if "\t" in lines[0] else ","), []
        return _of_lines(lines), []
    except InputError:
        raise
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as classes ({' '.join(str(error).split())}). Mend it.") from None


def color_code(text: str) -> int:
    """0xRRGGBB of "#RRGGBB".

    Raises:
        InputError: it is written otherwise.
    """
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", text.strip()):
        raise InputError(
            f"color {text!r}: is not written as #RRGGBB, as in #FF8000. Mend it in data.classes or the file."
        )
    return int(text.strip()[1:], 16)


def _of_lines(lines: list[str]) -> list[Entry]:
    """Names one a line; or all with a value or color before the name; or in CVAT's or CamVid's way."""
    lines = [line for line in lines if not line.startswith("# ")]
    if found := _all_match(CVAT, lines):
        return [Entry(name.strip(), color=_packed(rgb.split(",")) if rgb else None) for name, rgb in found]
    if found := _all_match(COLORED, lines):
        return [Entry(name.strip(), color=_packed(rgb)) for *rgb, name in found]
    if found := _all_match(STATED, lines):
        return [_stated(code, name) for code, name in found]
    return [Entry(line.strip().strip("\"'")) for line in lines]


def _all_match(pattern: re.Pattern[str], lines: list[str]) -> list[tuple[str, ...]]:
    found = [match.groups() for line in lines if (match := pattern.fullmatch(line))]
    return found if len(found) == len(lines) else []


def _stated(code: str, name: str) -> Entry:
    return Entry(name, color=color_code(code)) if code.startswith("#") else Entry(name, value=int(code))


def _of_table(lines: list[str], delimiter: str) -> list[Entry]:
    """A table with a header: names, and values or r, g, b."""
    rows = [
        {str(key).strip().lower(): (value or "").strip() for key, value in row.items() if key}
        for row in csv.DictReader(lines, delimiter=delimiter)
    ]
    channels = next(
        (keys for keys in (("r", "g", "b"), ("red", "green", "blue")) if rows and set(keys) <= set(rows[0])), None
    )
    if not rows or _first(rows[0], NAME_KEYS) is None:
        return []
    entries = []
    for row in rows:
        value = _first(row, VALUE_KEYS)
        color = _packed([row[key] for key in channels]) if channels else None
        entries.append(Entry(str(_first(row, NAME_KEYS)), None if value is None else int(value), color))
    return _short(entries) if "ratio" in rows[0] else entries


def _short(entries: list[Entry]) -> list[Entry]:
    """ADE20K names classes by all their synonyms; the first one is enough where it stays the name of one class."""
    short = [re.split("[,;]", entry.name)[0].strip() for entry in entries]
    if len(set(short)) < len(entries):
        return entries
    return [Entry(name, entry.value, entry.color) for name, entry in zip(short, entries, strict=True)]


def _of_plain(raw: Any, mapping: bool) -> tuple[list[Entry], list[int | str]]:
    """Classes of parsed JSON or YAML; with `mapping` it may be nothing but names and values."""
    ignored: list[int | str] = []
    palette: Any = None
    if isinstance(raw, dict):
        ignored = [raw["ignore_index"]] if isinstance(raw.get("ignore_index"), int) else []
        palette = raw.get("palette") or raw.get("segmentation_colors")
        raw = next((raw[key] for key in LIST_KEYS if key in raw), raw if mapping else None)
    if isinstance(raw, list) and all(isinstance(item, str) for item in raw):
        entries: list[Entry | None] = [*_of_lines(raw)]
    elif isinstance(raw, list):
        entries = [_of_item(item) for item in raw]
    else:
        entries = [_of_pair(str(key), value) for key, value in raw.items()] if isinstance(raw, dict) else []
    known = [entry for entry in entries if entry is not None]
    if len(known) < len(entries):
        return [], []
    return [_colored(entry, row, palette) for row, entry in enumerate(known)], ignored


def _colored(entry: Entry, row: int, palette: Any) -> Entry:
    """An entry with its color from a palette: a mapping by name, or a list in the order of the classes."""
    if isinstance(palette, dict):
        color = palette.get(entry.name)
    else:
        color = palette[row] if isinstance(palette, list) and row < len(palette) else None
    return entry if color is None else Entry(entry.name, entry.value, _color(color))


def _of_item(item: Any) -> Entry | None:
    if not isinstance(item, dict) or not isinstance(name := _first(item, NAME_KEYS), str):
        return None
    value, color = _first(item, VALUE_KEYS), _first(item, COLOR_KEYS)
    is_value = isinstance(value, int) and 0 <= value < NUM_VALUES  # Supervisely's ids are larger, and no values
    return Entry(name, value if is_value else None, None if color is None else _color(color))


def _of_pair(key: str, value: Any) -> Entry | None:
    """{"7": "road"}, {"road": 7}, {"road": "#FF0000"} or {"road": [255, 0, 0]}."""
    if key.isdigit() and isinstance(value, str):
        return Entry(value, int(key))
    if isinstance(value, int):
        return Entry(key, value)
    color = _color(value) if isinstance(value, (str, list)) and _is_color(value) else None
    return None if color is None else Entry(key, color=color)


def _is_color(value: str | list[Any]) -> bool:
    if isinstance(value, str):
        return value.startswith("#")
    return len(value) == 3 and all(isinstance(channel, int) for channel in value)


def _color(value: Any) -> int:
    return color_code(value) if isinstance(value, str) else _packed(value)


def _packed(channels: Sequence[Any]) -> int:
    red, green, blue = (int(channel) for channel in channels)
    return red << 16 | green << 8 | blue


def _first(row: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)
