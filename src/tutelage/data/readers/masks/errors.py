"""What can be wrong with the masks of a source, in words that say how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tutelage.data.masks import Kind, MaskCoding, code_name
from tutelage.data.readers.masks.classes import MaskClasses
from tutelage.data.readers.masks.scan import GRAY, Scan
from tutelage.data.readers.source import Source
from tutelage.types import InputError

LISTED = 12  # codes named in a message
MANY = 32  # codes of no class, above which masks were smoothed rather than misnamed


def unknown_error(
    source: Source, files: Sequence[Path], scans: Sequence[Scan], coding: MaskCoding, classes: MaskClasses
) -> InputError:
    """Codes that no class has: which, in how many masks, and their share of the pixels."""
    known = np.array(sorted(coding.table))
    total = sum(int(scan.pixels.sum()) for scan in scans)
    unknown = {
        row: scan.codes[~np.isin(scan.codes, known)]
        for row, scan in enumerate(scans)
        if not np.isin(scan.codes, known).all()
    }
    shares = _shares(scans, keep={int(code) for codes in unknown.values() for code in codes})
    first, codes = next(iter(unknown.items()))
    inside = scans[first].pixels[np.isin(scans[first].codes, codes)].sum() / scans[first].pixels.sum()
    named = ", ".join(_named(code, coding, classes) for code in sorted(coding.table)[:LISTED])
    more = ", ..." if len(coding.table) > LISTED else ""
    hint = " So many come from smooth resizing or from JPEG: make the masks anew." if len(shares) > MANY else ""
    if coding.kind == "colors" and all(code % 256 * GRAY == code for code in shares):
        hint = """ Gray masks need values, not colors: data.classes='["0=NAME0", "1=NAME1", ...]'."""
    what = "colors" if coding.kind == "colors" else "values"
    return InputError(
        f"{source.path}: {len(unknown)} of {len(scans)} masks hold {what} of no class: "
        f"{_listed(shares, coding.kind, total)} of all pixels (first: {files[first]}, {inside:.2%} of it); "
        f"known are {named}{more}. Mend the masks, name the values in data.classes, or list them in "
        f"data.ignore_values.{hint}"
    )


def unnamed_error(source: Source, kind: Kind, scans: Sequence[Scan], ignored: Iterable[int | str]) -> InputError:
    """Nothing names the classes: what the masks hold, and what to give."""
    shares = _shares(scans)
    total = sum(shares.values())
    left = [code for code in sorted(shares) if code not in ignored and code_name(code, kind) not in ignored]
    if kind == "ade20k":
        remedy = (
            "Give a text file that names the objects: data.classes=FILE, with lines CODE=name for at most 255 of them "
            "(the others are then without a label)"
        )
    elif kind == "values" and sorted(shares) == [0, 255]:
        remedy = """They seem to be binary; name both values: data.classes='["0=background", "255=NAME"]'"""
    else:
        in_order = kind == "values" and left == list(range(len(left)))
        codes = ["" if in_order else f"{code_name(code, kind)}=" for code in left[:LISTED]]
        stated = ", ".join(f'"{code}NAME{at}"' for at, code in enumerate(codes))
        more = ", ..." if len(left) > LISTED else ""
        remedy = f"Name them: data.classes='[{stated}{more}]', or put a classes.txt beside the masks"
    held = _listed(shares, kind, total)
    return InputError(
        f"{source.path}: nothing names the classes of the masks, which hold {held} of all pixels. {remedy}."
    )


def binary_error(source: Source, classes: MaskClasses) -> InputError:
    """Masks of 0 and 255 alone, where 255 is ignored: of two classes one would be lost."""
    return InputError(
        f"{source.path}: the masks hold 0 and 255 alone, and 255 counts as without a label; binary masks need their "
        f"""values named. Set data.classes='["0={classes.names[0]}", "255={classes.names[-1]}"]'."""
    )


def colors_error(files: Sequence[Path], scans: Sequence[Scan]) -> InputError:
    """RGB masks without a table of colors."""
    colored = [row for row, scan in enumerate(scans) if scan.kind == "colors"]
    shares = _shares([scans[row] for row in colored])
    codes = sorted(shares, key=lambda code: -shares[code])
    stated = ", ".join(f'"{code_name(code, "colors")}=NAME{at}"' for at, code in enumerate(codes[:LISTED]))
    return InputError(
        f"{files[colored[0]]}: is an RGB mask, as are {len(colored)} of {len(scans)}, and nothing says which color is "
        f"which class; they hold {_listed(shares, 'colors', sum(shares.values()))} of their pixels. Name the colors: "
        f"data.classes='[{stated}]', and in data.ignore_values those without a label."
    )


def palette_error(one: Path, other: Path, value: int, first: Scan, second: Scan) -> InputError:
    """Two masks in which one value has different colors."""
    colors = []
    for scan in (first, second):
        assert scan.palette is not None
        colors.append(code_name(int(scan.palette[np.flatnonzero(scan.codes == value)[0]]), "colors"))
    return InputError(
        f"{other}: its palette gives value {value} the color {colors[1]}; in {one} it is {colors[0]}. Palettes must "
        f"""agree, for values may mean different classes. Name the colors, data.classes='["{colors[0]}=NAME", ...]', """
        "or write the masks as gray PNG if the values are right."
    )


def size_error(mask: Path, image: Path, found: tuple[int, int], wanted: tuple[int, int], count: int) -> InputError:
    """A mask of another size than its image."""
    more = f" ({count} masks of this source are)" if count > 1 else ""
    return InputError(
        f"{mask}: is {found[1]} x {found[0]} pixels; its image {image.name} is {wanted[1]} x {wanted[0]}{more}. They "
        "must be equal: give the masks that belong to these images, or resize them by nearest neighbor."
    )


def _shares(scans: Sequence[Scan], keep: set[int] | None = None) -> dict[int, int]:
    """Pixels by code over all masks."""
    counts: dict[int, int] = {}
    for scan in scans:
        for code, pixels in zip(scan.codes.tolist(), scan.pixels.tolist(), strict=True):
            if keep is None or code in keep:
                counts[code] = counts.get(code, 0) + pixels
    return counts


def _listed(shares: dict[int, int], kind: Kind, total: int) -> str:
    order = sorted(shares, key=lambda code: -shares[code])[:LISTED]
    more = f" and {len(shares) - LISTED} more" if len(shares) > LISTED else ""
    return ", ".join(f"{code_name(code, kind)} ({shares[code] / total:.2%})" for code in order) + more


def _named(code: int, coding: MaskCoding, classes: MaskClasses) -> str:
    label = coding.table[code]
    return f"{code_name(code, coding.kind)} ({classes.names[label] if label >= 0 else 'no label'})"
