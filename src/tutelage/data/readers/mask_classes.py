"""Names of mask classes, and the values and colors they have: from `data.classes`, or from a file beside the masks."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tutelage.data.masks import MAX_CLASSES, NOT_SHOWN
from tutelage.data.readers.source import read_text
from tutelage.types import InputError

CLASS_FILES = (
    "classes.json class_dict.csv _classes.csv label_colors.txt labelmap.txt objectInfo150.txt objectInfo150.csv "
    "object150_info.csv classes.txt labels.txt meta.json classes.yaml config.yaml data.yaml"
).split()
NAME_KEYS = ("name", "title", "readable", "class", "class_name", "label", "category")
VALUE_KEYS = ("index", "idx", "value", "pixel value", "id")
COLOR_KEYS = ("color", "colour", "color_hex_code", "hex", "rgb")
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
        InputError: none, too many, or values stated for some only.
    """
    names = tuple(dict.fromkeys(entry.name for entry in entries))
    if not names or len(names) > most:
        raise InputError(
            f"{where}: {len(names)} classes; 1 to {most} fit into an 8-bit mask. List the wanted ones as VALUE=name in "
            "data.classes; equal names are one class."
        )
    given = list(ignored)
    no_values = {int(code) for code in given if not str(code).startswith("#")}
    no_colors = {color_code(str(code)) for code in given if str(code).startswith("#")}
    stated = all(entry.value is not None for entry in entries)
    free = (value for value in range(len(entries) + len(no_values)) if value not in no_values)
    values = {value: NOT_SHOWN for value in no_values}
    colors = {color: NOT_SHOWN for color in no_colors}
    for entry in entries:
        label = names.index(entry.name)
        value = entry.value if stated else next(free)
        assert value is not None
        values[value] = label
        if entry.color is not None:
            colors[entry.color] = label
    has_colors = any(entry.color is not None for entry in entries)
    return MaskClasses(names, values, colors if has_colors else {}, stated)


def given_entries(given: tuple[str, ...] | str) -> tuple[list[Entry], str]:
    """Entries of `data.classes`, a list or the path of a file, and their origin in words.

    Raises:
        InputError: the file does not exist or cannot be understood.
    """
    if not isinstance(given, str):
        return _of_lines(list(given)), "data.classes"
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(
            f"data.classes={given}: is no file; it must be a file of class names, or a list: data.classes='[road, "
            "roof]'. Mend it."
        )
    entries, _ = read_class_file(path)
    return entries, str(path)


def class_file(folders: Iterable[Path]) -> Path | None:
    """The first file of classes in these folders (or such a file itself)."""
    for folder in folders:
        if folder.is_file():
            return folder
        names = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_file()}
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
            return _of_plain(json.loads(text))
        if suffix in (".yaml", ".yml"):
            raw = yaml.safe_load(text)
            return _of_plain(raw if isinstance(raw, dict) and {"classes", "names"} & set(raw) else None)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be parsed ({' '.join(str(error).split())}). Mend the file.") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if suffix == ".csv" or (lines and "\t" in lines[0] and lines[0].lower().startswith("idx")):
        return _of_table(lines, "\t" if "\t" in lines[0] else ","), []
    return _of_lines(lines), []


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


def _of_plain(raw: Any) -> tuple[list[Entry], list[int | str]]:
    """Classes of parsed JSON or YAML."""
    ignored: list[int | str] = []
    palette: dict[str, Any] = {}
    if isinstance(raw, dict):
        ignored = [raw["ignore_index"]] if isinstance(raw.get("ignore_index"), int) else []
        palette = raw["palette"] if isinstance(raw.get("palette"), dict) else {}
        raw = next((raw[key] for key in ("classes", "labels", "names", "categories") if key in raw), raw)
    if isinstance(raw, list):
        entries = [_of_item(item) for item in raw]
    elif isinstance(raw, dict):
        entries = [_of_pair(str(key), value) for key, value in raw.items()]
    else:
        return [], []
    if any(entry is None for entry in entries):
        return [], []
    known = [entry for entry in entries if entry is not None]
    if palette and set(palette) >= {entry.name for entry in known}:
        known = [Entry(entry.name, entry.value, _color(palette[entry.name])) for entry in known]
    return known, ignored


def _of_item(item: Any) -> Entry | None:
    if isinstance(item, str):
        return _of_lines([item])[0]
    if not isinstance(item, dict) or not isinstance(name := _first(item, NAME_KEYS), str):
        return None
    value, color = _first(item, VALUE_KEYS), _first(item, COLOR_KEYS)
    return Entry(name, value if isinstance(value, int) else None, None if color is None else _color(color))


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
