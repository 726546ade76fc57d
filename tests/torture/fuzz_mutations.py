"""What happens to files: broken bytes and lines, odd values in their structure, headers that lie, files that attack."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

CANARY = "fuzz-canary"  # a file of this name in the working folder: something was executed
Generator = np.random.Generator
Mutation = Callable[[bytes, Sequence[bytes], Generator], bytes]
ODD: tuple[Any, ...] = (
    None, True, "", "x", "NaN", -1, 0, 0.5, 1e308, float("nan"), float("inf"), -(2**63), 2**31, 2**64, 10**30,
    [], {}, [[]], [None], ["a", 1], {"a": {}}, "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "x" * 5000,
)  # fmt: skip
ODD_WORDS = ("nan", "-1", "1e308", "99999999999999999999", "", "null", "../../etc/passwd", "1,1", "0x10", "\0", "é")
BOMB_YAML = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BOMB_XML = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a0 "lol">'
    + "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
    + "]><annotation><filename>&a9;</filename></annotation>"
)
OUTSIDE_XML = '<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><filename>&a;</filename></annotation>'


class Attack:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def mutate(target: Path, others: Sequence[Path], rng: Generator) -> str:
    """Breaks a file, at times in several ways or with parts of others, and says how."""
    if rng.random() < 0.04:
        return f"{target.name}: {_replaced(target, rng)}"
    donors = [file.read_bytes() for file in (target, *others)]
    done = []
    for _ in range(1 + int(rng.integers(3)) * int(rng.random() < 0.3)):
        special = [change for suffixes, change in SPECIAL if target.suffix.lower() in suffixes]
        changes = [*special, *special, *special, *GENERAL]
        change = changes[rng.integers(len(changes))]
        content = target.read_bytes()
        try:
            content = change(content, donors, rng)
        except UNFIT:  # broken too much already for this way
            content = flip(content, donors, rng)
        target.write_bytes(content)
        done.append(change.__name__)
    return f"{target.name}: {', '.join(done)}"


UNFIT = (ValueError, TypeError, LookupError, OSError, EOFError, RecursionError, StopIteration, OverflowError)
UNFIT += (struct.error, zlib.error, zipfile.BadZipFile, SafetensorError, NotImplementedError)


def _replaced(target: Path, rng: Generator) -> str:
    """Something else in the place of a file."""
    target.unlink()
    kind = str(rng.choice(["gone", "folder", "loop", "dangling", "foreign", "empty"]))
    if kind == "folder":
        (target / "inner").mkdir(parents=True)
    elif kind == "empty":
        target.touch()
    elif kind != "gone":
        target.symlink_to({"loop": target.name, "dangling": "nowhere", "foreign": "/etc/passwd"}[kind])
    return kind


# Any bytes ------------------------------------------------------------------------------------------------------------


def flip(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    changed = bytearray(content or b"\0")
    for at in rng.integers(len(changed), size=int(rng.choice([1, 2, 8, 64]))):
        changed[at] = rng.choice([0, 255, 127, 10, 34, int(rng.integers(256))])
    return bytes(changed)


def flip_early(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """In the first bytes, where headers are."""
    return flip(content[:64], donors, rng) + content[64:]


def truncate(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    return content[: int(rng.integers(len(content) + 1))]


def splice(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    donor = donors[rng.integers(len(donors))]
    return content[: int(rng.integers(len(content) + 1))] + donor[int(rng.integers(len(donor) + 1)) :]


def cut(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    first, last = sorted(rng.integers(len(content) + 1, size=2))
    return content[:first] + content[last:]


def repeat(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    first, last = sorted(rng.integers(len(content) + 1, size=2))
    return content[:last] + content[first:last] * int(rng.integers(1, 4)) + content[last:]


def empty(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    return [b"", b"\n", b"\0" * 100, rng.bytes(200)][rng.integers(4)]


def marked(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """A mark of the byte order in front."""
    return [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf" * 2][rng.integers(4)] + content


GENERAL: tuple[Mutation, ...] = (flip, flip_early, truncate, splice, cut, repeat, empty, marked)

# Text -----------------------------------------------------------------------------------------------------------------


def encoded(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    return content.decode("latin-1").encode(str(rng.choice(["utf-16", "utf-32", "utf-7", "cp037"])), "replace")


def lines(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """A line is doubled, removed, or moved."""
    rows = content.splitlines(keepends=True)
    row = rows.pop(int(rng.integers(len(rows))))
    for _ in range(int(rng.choice([0, 1, 2, 50]))):
        rows.insert(int(rng.integers(len(rows) + 1)), row)
    return b"".join(rows)


def numbers(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    return _words(content, rng, rb"-?\d+(\.\d+)?")


def words(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    return _words(content, rng, rb"\w+")


def _words(content: bytes, rng: Generator, pattern: bytes) -> bytes:
    found = list(re.finditer(pattern, content))
    for match in sorted(rng.choice(np.array(found, object), min(len(found), int(rng.integers(1, 4)))), key=_start)[
        ::-1
    ]:
        word = ODD_WORDS[rng.integers(len(ODD_WORDS))].encode()
        content = content[: match.start()] + word + content[match.end() :]
    return content


def _start(match: re.Match[bytes]) -> int:
    return match.start()


# JSON, YAML, XML ------------------------------------------------------------------------------------------------------


def json_values(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """Values replaced by odd ones, keys and elements removed or doubled."""
    tree = json.loads(content)
    for _ in range(int(rng.integers(1, 4))):
        tree = _odd_tree(tree, rng)
    return json.dumps(tree).encode()


def _odd_tree(tree: Any, rng: Generator) -> Any:
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.04:
        return ODD[rng.integers(len(ODD))]
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key = keys[rng.integers(len(keys))]
    choice = rng.random()
    if choice < 0.12:
        del tree[key]
    elif choice < 0.2 and isinstance(tree, list):
        tree.append(tree[key])
    elif choice < 0.25 and isinstance(tree, dict):
        tree[str(ODD[rng.integers(len(ODD))])] = tree[key]
    else:
        tree[key] = _odd_tree(tree[key], rng)
    return tree


def nested(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """A value far down."""
    depth = int(rng.choice([50, 2000, 200_000]))
    opening, closing = [(b"[", b"]"), (b'{"a":', b"}")][rng.integers(2)]
    deep = opening * depth + b"1" + closing * depth * int(rng.integers(2))
    at = content.find(b":", int(rng.integers(len(content) + 1))) + 1
    return content[:at] + deep + content[at:]


def endless_number(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    return re.sub(rb"\d+", b"9" * 5000, content, count=1)


def yaml_tags(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """Tags that would build objects, anchors that would fill the memory."""
    run = f'!!python/object/apply:os.system ["touch {CANARY}"]'.encode()
    inner = [run, b"!!timestamp 9999-99-99", b"!!binary =", b"&a [*a]", b"*unknown", b"1:60:60", b"!!int x", b"? ?"]
    attack = inner[rng.integers(len(inner))]
    if rng.random() < 0.3:
        return BOMB_YAML.encode() + content
    return re.sub(rb": .*", lambda _: b": " + attack, content, count=int(rng.integers(1, 4)))


def xml_attacks(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    deep = "<annotation>" + "<object>" * 20_000 + "</object>" * 20_000 + "</annotation>"
    return [BOMB_XML, OUTSIDE_XML, deep, '<?xml version="1.0" encoding="x-none"?><annotation/>'][
        rng.integers(4)
    ].encode()


def xml_elements(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """An element is removed, doubled or emptied."""
    found = list(re.finditer(rb"<(\w+)[^<>]*>[^<>]*</\1>", content))
    match = found[rng.integers(len(found))]
    instead = [b"", match[0] * 2, b"<%s/>" % match[1], b"<%s>%s</%s>" % (match[1], b"1e999", match[1])]
    return content[: match.start()] + instead[rng.integers(4)] + content[match.end() :]


# Pictures -------------------------------------------------------------------------------------------------------------


def png_header(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """An absurd size, depth or color in a header whose checksum is right."""
    header = bytearray(content[16:29])
    struct.pack_into(">I", header, 4 * int(rng.integers(2)), int(rng.choice([0, 1, 60_000, 2**31 - 1])))
    if rng.random() < 0.5:
        header[8:10] = bytes([int(rng.choice([1, 2, 4, 8, 16, 33])), int(rng.choice([0, 2, 3, 4, 6, 9]))])
    return content[:16] + bytes(header) + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]


def png_bomb(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """A few thousand bytes that are 20 000 x 20 000 pixels, or a text of gigabytes."""
    size = int(rng.choice([9_000, 20_000, 60_000]))
    packer = zlib.compressobj(9)
    pixels = packer.compress(bytes(1 << 22)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")]
    if rng.random() < 0.5:
        chunks.insert(1, (b"zTXt", b"a\0\0" + pixels))
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def jpeg_header(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """An absurd size in the header of a frame."""
    at = next(content.find(bytes([255, mark])) for mark in (0xC0, 0xC2) if bytes([255, mark]) in content)
    size = struct.pack(">HH", *(int(side) for side in rng.choice([0, 1, 65_535, 20_000], 2)))
    return content[: at + 5] + size + content[at + 9 :]


# Archives, tensors, tables --------------------------------------------------------------------------------------------


def zip_members(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """A member is emptied, broken, doubled, renamed or made huge; the archive itself is whole."""
    source, sink = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    chosen = source.namelist()[rng.integers(len(source.namelist()))]
    instead = [
        lambda held: b"",
        lambda held: flip(held, donors, rng),
        lambda held: truncate(held, donors, rng),
        lambda held: bytes(1 << 27),
        lambda held: pickle.dumps(Attack()),
    ][rng.choice(5, p=[0.1, 0.4, 0.25, 0.02, 0.23])]
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            held = source.read(name)
            archive.writestr(name, instead(held) if name == chosen else held)
            if name == chosen and rng.random() < 0.1:
                archive.writestr("../../" + name, held)
    return sink.getvalue()


def arrays_of_objects(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    sink = io.BytesIO()
    with np.load(io.BytesIO(content)) as held:
        arrays = dict(held)
    name = list(arrays)[rng.integers(len(arrays))]
    odd = [
        np.array([Attack()], object),
        np.array(1),
        np.zeros((0, 3)),
        arrays[name].astype("U5"),
        arrays[name][..., None],
    ]
    np.savez(sink, **{**arrays, name: odd[rng.integers(5)]})
    return sink.getvalue()


def pickled(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """A checkpoint that runs code, or holds no tensors."""
    sink = io.BytesIO()
    held = [Attack(), {"state_dict": Attack()}, {"a": torch.nn.Linear(1, 1)}, [1], {"model": {"a": 1}}, {}][
        rng.integers(6)
    ]
    torch.save(held, sink, _use_new_zipfile_serialization=bool(rng.integers(2)))
    return sink.getvalue()


def safetensors_header(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """Odd values in the header, whose length is right or absurd."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json_values(content[8 : 8 + length], donors, rng)
    told = int(rng.choice([len(header), len(header), 0, 2**40, 2**63]))
    return struct.pack("<Q", told) + header + content[8 + length :]


def tensors_changed(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """Well-formed, but a tensor is of another shape, type, name or not finite."""
    tensors = load(content)
    name = list(tensors)[rng.integers(len(tensors))]
    held = tensors.pop(name)
    odd = [held[None], held.double() * float("nan"), held.int(), held.flatten()[:0], held.bool()]
    if (choice := int(rng.integers(7))) < 5:
        tensors[name] = odd[choice]
    elif choice == 5:
        tensors["other"] = held
    return bytes(save(tensors))


def table_values(content: bytes, donors: Sequence[bytes], rng: Generator) -> bytes:
    """A whole table with a column removed, of another type, or with odd values."""
    table = pq.read_table(io.BytesIO(content))
    at = int(rng.integers(table.num_columns))
    name, count = table.column_names[at], table.num_rows
    odd: list[Any] = [None, -1, 2**31 - 1, float("nan"), 1e308, "x", "../../etc/passwd", b"\0", [1], -(2**63)]
    choice = rng.random()
    if choice < 0.15:
        table = table.remove_column(at)
    elif choice < 0.25:
        table = table.slice(0, int(rng.integers(count + 1)))
    elif choice < 0.35:
        table = pa.concat_tables([table, table])
    elif choice < 0.6:
        table = table.set_column(at, name, pa.array([odd[rng.integers(len(odd))]] * count))
    else:
        values = table.column(at).to_pylist()
        values[rng.integers(count)] = odd[rng.integers(len(odd))]
        table = table.set_column(at, name, pa.array(values, table.schema.field(at).type))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


TEXT = (".txt", ".json", ".yaml", ".yml", ".xml", ".csv", ".data", ".names", ".md")
SPECIAL: tuple[tuple[tuple[str, ...], Mutation], ...] = (
    *((TEXT, change) for change in (encoded, lines, numbers, words)),
    *(((".json",), change) for change in (json_values, json_values, json_values, nested, endless_number)),
    *(((".yaml", ".yml"), change) for change in (yaml_tags, nested)),
    *(((".xml",), change) for change in (xml_attacks, xml_elements, xml_elements)),
    *(((".png",), change) for change in (png_header, png_bomb)),
    ((".jpg", ".jpeg"), jpeg_header),
    *(((".npz", ".pth"), change) for change in (zip_members, zip_members)),
    ((".npz",), arrays_of_objects),
    ((".pth",), pickled),
    *(((".safetensors",), change) for change in (safetensors_header, tensors_changed)),
    *(((".parquet",), change) for change in (table_values, table_values)),
)


def copy_tree(source: Path, folder: Path) -> list[Path]:
    """A copy of a folder; returns its files."""
    shutil.copytree(source, folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())
