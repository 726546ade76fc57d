"""Broken files of every kind: read, or refused in words; and the smallest of those that once were neither."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.torture.fuzz import KINDS, cases, fuzz
from tests.torture.fuzz_kinds import gather
from tutelage.config import DataConfig, RunConfig, load_config
from tutelage.data.demo import draw_class_crops
from tutelage.data.pseudo.verdicts import Verdicts, parse_verdicts
from tutelage.data.readers import locate, open_index
from tutelage.files import make_folder
from tutelage.models.foreign import read_arrays, read_state
from tutelage.models.init import load_model, save_model
from tutelage.models.model import build_classifier
from tutelage.types import InputError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
entries = st.dictionaries(
    st.sampled_from(["id", "image_id", "category_id", "bbox", "file_name", "name", "height", "width", "segmentation"]),
    plain | st.lists(st.floats(), min_size=4, max_size=4),
)


@pytest.fixture(scope="module")
def corpus(
    tmp_path_factory: pytest.TempPathFactory, scenes: Path, finished: Path, finished_masks: Path, real_data: Path
) -> Path:
    runs = {"boxes": finished, "masks": finished_masks}
    return gather(tmp_path_factory.mktemp("corpus") / "whole", scenes, runs, real_data)


def test_a_few_hundred_broken_files(corpus: Path, tmp_path: Path) -> None:
    chosen = cases(240)
    counts, failures = fuzz(corpus, tmp_path, chosen)
    assert not failures, "\n\n".join(map(str, failures))
    assert sum(counts.values()) == len(chosen) and {kind for kind, _ in chosen} == set(KINDS)
    assert sum(count for key, count in counts.items() if key.endswith("read")) > len(chosen) / 20


@pytest.mark.slow
@pytest.mark.torture
def test_ten_thousand_broken_files(corpus: Path, tmp_path: Path) -> None:
    chosen = cases(10_000, first=1_000_000)
    assert len(chosen) >= 10_000
    _, failures = fuzz(corpus, tmp_path, chosen, processes=2)
    assert not failures, "\n\n".join(map(str, failures))


@given(images=st.lists(entries | plain, max_size=3), annotations=st.lists(entries | plain, max_size=3), rest=plain)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_json_of_the_form_of_coco(
    tmp_path_factory: pytest.TempPathFactory, images: list[object], annotations: list[object], rest: object
) -> None:
    path = tmp_path_factory.mktemp("coco") / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": rest}))
    read_or_refused(lambda: open_index(path, DataConfig(), annotations_only=True))


@given(plain=st.fixed_dictionaries({"format": st.just("tutelage-verdicts-1"), "images": plain, "class_names": plain}))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_json_of_the_form_of_verdicts(plain: dict[str, object]) -> None:
    read_or_refused(lambda: parse_verdicts({**plain, "annotation": "boxes"}, "v.json"), Verdicts)


def read_or_refused(read: Callable[[], object], expected: type = object) -> None:
    try:
        assert isinstance(read(), expected)
    except InputError as error:
        assert ": " in str(error)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"images": [1], "annotations": []}', b'{"images": [{"file_name": 1}]}', b"[" + b"9" * 5000,
     b'{"images": [{"file_name": "a.png", "height": 1e400}]}',
     b'{"images": [{"file_name": "a", "width": %d}]}' % 10**30,
     b'{"images": [], "annotations": [], "categories": null}'],
)  # fmt: skip
def test_odd_coco_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json"):
        open_index(tmp_path / "a.json", DataConfig(), annotations_only=True)


@pytest.mark.parametrize(
    "text", ["a: !!timestamp 9999-99-99", "a: " + "[" * 5000, "train:", "teacher: 3", "student: [1]"]
)
def test_odd_configs(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=r"a\.yaml"):
        load_config(tmp_path / "a.yaml")


def test_a_link_to_itself_among_files(tmp_path: Path) -> None:
    (tmp_path / "a.xml").symlink_to("a.xml")
    with pytest.raises(InputError, match=r"a\.xml: cannot be read"):
        locate(tmp_path)


def test_arrays_and_tensors_whose_headers_lie(tmp_path: Path) -> None:
    for name, content in {"a.npz": b"PK\3\4", "a.npy": b"\x93NUMPY\1\0\4\0{'a(", "a.pth": b"\x80\2}."}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_state(tmp_path / name) if name.endswith("pth") else read_arrays(tmp_path / name)
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**60))
    with pytest.raises(InputError, match="cannot be read as weights"):
        read_state(tmp_path / "a.safetensors")


def test_a_checkpoint_that_would_run_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": Attack()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="more than tensors and plain containers"):
        read_state(tmp_path / "a.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_classes", -1), ("num_classes", "3"), ("class_names", [1]), ("kind", []), ("model", None),
     ("normalization", {"mean": [0, 0, 0], "std": [1, 0, 1]}), ("normalization", {"mean": [0, 0], "std": [1, 1, 1]}),
     ("normalization", {"mean": [float("nan"), 0, 0], "std": [1, 1, 1]})],
)  # fmt: skip
def test_cards_of_models_with_odd_values(tmp_path: Path, key: str, value: object) -> None:
    config: RunConfig = load_config("detection-demo", ("model.backbone=test_resnet", "model.init=random"))
    save_model(tmp_path, build_classifier(config.model, 3), {"class_names": ["a", "b", "c"]})
    card = json.loads((tmp_path / "model.json").read_text())
    assert load_model(tmp_path)[1] == card
    (tmp_path / "model.json").write_text(json.dumps({**card, key: value}))
    with pytest.raises(InputError, match=r"model\.json"):
        load_model(tmp_path)


def test_one_class_is_said_to_be_one(tmp_path: Path) -> None:
    draw_class_crops(tmp_path, images_per_class=2, size=16)
    first, *others = sorted(tmp_path.iterdir())
    for folder in others:
        for path in folder.iterdir():
            path.unlink()
    assert Image.open(next(first.iterdir())).size == (16, 16)
    with pytest.raises(InputError, match=f"found one class \\({first.name}\\)"):
        locate(tmp_path)


def test_a_folder_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match="/proc/none: this folder cannot be made"):
        make_folder(Path("/proc/none"))
