"""Folders of images and masks: every layout and coding that is read, and every mistake that is named."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tutelage.config import DataConfig, SourcesConfig
from tutelage.data.index import Index, cache_folder
from tutelage.data.masks import read_mask
from tutelage.data.readers import locate, open_index
from tutelage.data.readers.masks.classes import read_class_file
from tutelage.data.readers.masks.scan import scan_codes
from tutelage.data.sources import open_sources
from tutelage.data.writers import write_mask_folder
from tutelage.types import IGNORE, InputError

SIZE = (4, 6)
VALUES = np.array([[0, 0, 1, 1, 2, 255]] * 4, np.uint8)
PALETTE = [200, 0, 0, 0, 200, 0, 0, 0, 200, *[9] * 759]  # Pillow cuts values to the length of the palette
COLORS = {0: (200, 0, 0), 1: (0, 200, 0), 2: (0, 0, 200), 255: (9, 9, 9)}
NAMES = ("road", "roof", "tree")
NAMED = DataConfig(classes=NAMES)


def save(path: Path, values: NDArray[np.generic], palette: list[int] | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(values))
    if palette is not None:
        image.putpalette(palette)
    image.save(path, **options)
    return path


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    return save(path, np.full((*size, 3), 90, np.uint8))


def pair(images: Path, masks: Path, stem: str, values: NDArray[np.generic] = VALUES, suffix: str = "") -> None:
    picture(images / f"{stem}.jpg", (values.shape[0], values.shape[1]))
    save(masks / f"{stem}{suffix}.png", values)


def in_colors(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.array([[COLORS[int(value)] for value in row] for row in values], np.uint8)


def opened(path: Path, data: DataConfig = NAMED, **options: Any) -> Index:
    return open_index(path, data, annotation="masks", **options)


def mask_of(index: Index, row: int = 0) -> list[list[int]]:
    file = index.mask_file(row)
    assert file is not None
    masks: list[list[int]] = read_mask(file).tolist()
    return masks


def files_of(index: Index) -> list[tuple[str, str]]:
    files = [index.mask_file(row) for row in range(len(index))]
    return [(index.path(row).name, file.file.name if file else "") for row, file in enumerate(files)]


# -- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks", "suffix"),
    [
        ("images", "masks", ""),
        ("images", "labels", "_label"),
        ("Images", "Annotations", "_mask"),
        ("imgs", "gt", "_L"),
        ("JPEGImages", "SegmentationClass", ""),
        ("image", "ground_truth", "_seg"),
    ],
)
def test_parallel_folders_are_paired_by_stem(tmp_path: Path, images: str, masks: str, suffix: str) -> None:
    for stem in ("a", "b c"):
        pair(tmp_path / images, tmp_path / masks, stem, suffix=suffix)
    index = opened(tmp_path)
    assert files_of(index) == [("a.jpg", f"a{suffix}.png"), ("b c.jpg", f"b c{suffix}.png")]
    assert index.class_names == NAMES and index.size(1) == SIZE
    assert mask_of(index) == VALUES.tolist()
    assert index.boxes(0).xyxy.tolist() == [[0, 0, 2, 4], [2, 0, 4, 4], [4, 0, 5, 4]]
    assert index.boxes(0).area.tolist() == [8, 8, 4] and index.boxes(0).labels.tolist() == [0, 1, 2]
    assert index.description.startswith("mask folder") and "2 images with masks, 3 classes" in index.description


@pytest.mark.parametrize("suffix", ["_rgb", "_image", "_sat", "_L", "_mask"])
def test_endings_that_images_and_masks_share_are_part_of_the_stem(tmp_path: Path, suffix: str) -> None:
    for stem in ("a", "b"):
        pair(tmp_path / "images", tmp_path / "masks", stem + suffix)
    pair(tmp_path / "images", tmp_path / "masks", f"c{suffix}", suffix="_seg")
    assert files_of(opened(tmp_path)) == [
        (f"a{suffix}.jpg", f"a{suffix}.png"),
        (f"b{suffix}.jpg", f"b{suffix}.png"),
        (f"c{suffix}.jpg", f"c{suffix}_seg.png"),
    ]


@pytest.mark.parametrize("place", ["images/a.tif", "masks/a.bmp"])
def test_two_files_of_one_stem_are_named(tmp_path: Path, place: str) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    save(tmp_path / place, VALUES)
    with pytest.raises(InputError, match=r"'a\.\w+' and 'a\.\w+' have one stem"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "masks/{}"),
        ("{}/images", "{}/masks"),
        ("{}", "{}annot"),
        ("{}_images", "{}_masks"),
        ("images_{}", "labels_{}"),
    ],
)
def test_splits_are_told_by_folders(tmp_path: Path, images: str, masks: str) -> None:
    for split, stem in (("train", "a"), ("val", "b")):
        pair(tmp_path / images.format(split), tmp_path / masks.format(split), stem)
    assert set(locate(tmp_path, annotation="masks")) == {"train", "val"}
    assert files_of(opened(tmp_path)) == [("a.jpg", "a.png")]
    assert files_of(opened(tmp_path, split="val")) == [("b.jpg", "b.png")]


def test_one_of_two_parallel_folders_leads_to_the_other(tmp_path: Path) -> None:
    for split, stem in (("train", "a"), ("val", "b")):
        pair(tmp_path / "images" / split, tmp_path / "masks" / split, stem)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    for folder in ("images/val", "masks/val"):
        index = opened(tmp_path / folder, DataConfig())
        assert files_of(index) == [("b.jpg", "b.png")] and index.class_names == NAMES


def test_a_folder_of_masks_takes_its_images_from_the_option(tmp_path: Path) -> None:
    pair(tmp_path / "pictures", tmp_path / "drawn", "a", suffix="_mask")
    assert files_of(opened(tmp_path / "drawn", images=str(tmp_path / "pictures"))) == [("a.jpg", "a_mask.png")]
    with pytest.raises(InputError, match=r"found images alone.*--images"):
        opened(tmp_path / "drawn")


def test_exported_masks_are_read_back(tmp_path: Path) -> None:
    for name in ("day/a.jpg", "b.jpg"):
        picture(tmp_path / "pool" / name)
    records = [("day/a.jpg", SIZE, VALUES), ("b.jpg", SIZE, VALUES[:, ::-1])]
    write_mask_folder(tmp_path / "export", records, NAMES)
    index = opened(tmp_path / "export", DataConfig(), images=str(tmp_path / "pool"))
    assert index.class_names == NAMES and files_of(index) == [("b.jpg", "b.png"), ("a.jpg", "a.png")]
    assert [mask_of(index, row) for row in range(2)] == [VALUES[:, ::-1].tolist(), VALUES.tolist()]


def test_masks_beside_their_images(tmp_path: Path) -> None:
    """Roboflow's "semantic segmentation masks"."""
    for split in ("train", "valid"):
        pair(tmp_path / split, tmp_path / split, "a_jpg.rf.1f", suffix="_mask")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, road\n1, roof\n2, tree\n")
    index = opened(tmp_path, DataConfig(), split="val")
    assert files_of(index) == [("a_jpg.rf.1f.jpg", "a_jpg.rf.1f_mask.png")] and index.class_names == NAMES


def test_flat_masks_of_nested_images(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "day" / "a.jpg")
    picture(tmp_path / "images" / "night" / "b.jpg")
    for stem in ("a", "b"):
        save(tmp_path / "masks" / f"{stem}.png", VALUES)
    assert files_of(opened(tmp_path)) == [("a.jpg", "a.png"), ("b.jpg", "b.png")]


def test_a_yaml_file_names_images_masks_and_classes(tmp_path: Path) -> None:
    pair(tmp_path / "pics" / "t", tmp_path / "segs" / "t", "a")
    (tmp_path / "config.yaml").write_text(
        "train:\n  images: pics/t\n  masks: segs/t\nval:\n  images: none\n  masks: none\n"
        "classes:\n  0: road\n  1: roof\n  2: tree\n"
    )
    for source in (tmp_path, tmp_path / "config.yaml"):
        index = opened(source, DataConfig())
        assert files_of(index) == [("a.jpg", "a.png")] and index.class_names == NAMES


def make_voc(root: Path) -> None:
    """Images of VOC: for training, of the augmented set alone, for validation, and for testing, without mask."""
    for stem in ("2007_000032", "2008_000002", "2010_000001", "2012_000001"):
        picture(root / "JPEGImages" / f"{stem}.jpg")
    voc = np.array([[0, 0, 20, 255, 15, 0]] * 4, np.uint8)
    for stem in ("2007_000032", "2010_000001"):
        save(root / "SegmentationClass" / f"{stem}.png", voc, [0, 0, 0] * 256)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    contents = {"train": "2007_000032\n", "val": "2010_000001\n", "test": "2012_000001\n"}
    for name, text in contents.items():
        (lists / f"{name}.txt").write_text(text)


def test_voc_2012(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOCdevkit" / "VOC2012")
    assert set(locate(tmp_path / "VOCdevkit", annotation="masks")) == {"train", "val"}, "test masks are not published"
    index = opened(tmp_path / "VOCdevkit", DataConfig())
    assert len(index.class_names) == 21 and index.class_names[15] == "person" and index.class_names[20] == "tvmonitor"
    assert mask_of(index)[0] == [0, 0, 20, IGNORE, 15, 0] and len(index) == 1
    listed = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"
    assert files_of(opened(listed, DataConfig())) == [("2010_000001.jpg", "2010_000001.png")]


@pytest.mark.parametrize("name", ["train_aug", "trainaug"])
def test_the_augmented_voc_trains_on_its_own_list(tmp_path: Path, name: str) -> None:
    make_voc(tmp_path)
    for stem in ("2007_000032", "2008_000002", "2010_000001"):
        save(tmp_path / "SegmentationClassAug" / f"{stem}.png", np.full(SIZE, 8, np.uint8))
    (tmp_path / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n2008_000002\n"
    )
    train, val = opened(tmp_path, DataConfig()), opened(tmp_path, DataConfig(), split="val")
    assert len(train) == 2 and mask_of(train)[0] == [8] * 6, "a cat in the masks of the augmented set"
    assert mask_of(val)[0][4] == 15, "validation on VOC's own masks"


def test_cityscapes_ids_become_train_ids(tmp_path: Path) -> None:
    ids = np.array([[7, 8, 0, 26, 33, 34]], np.uint8)[:, :5]
    for split in ("train", "val", "test"):
        stem = f"{split}/bonn/bonn_000001_000019"
        picture(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png", (1, 5))
        save(tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png", ids)
        save(tmp_path / "gtFine" / f"{stem}_gtFine_instanceIds.png", ids.astype(np.uint16) * 1000)
        save(tmp_path / "gtFine" / f"{stem}_gtFine_color.png", np.zeros((1, 5, 4), np.uint8))
    assert set(locate(tmp_path, annotation="masks")) == {"train", "val"}
    index = opened(tmp_path, DataConfig())
    # cityscapesScripts: road 7 -> 0, sidewalk 8 -> 1, unlabeled 0 -> 255, car 26 -> 13, bicycle 33 -> 18
    assert mask_of(index) == [[0, 1, IGNORE, 13, 18]] and len(index.class_names) == 19
    assert index.class_names[13] == "car" and index.class_names[18] == "bicycle"
    save(
        tmp_path / "gtFine" / "train/bonn/bonn_000001_000019_gtFine_labelTrainIds.png",
        np.array([[18, 255, 0, 0, 0]], np.uint8),
    )
    assert mask_of(opened(tmp_path, DataConfig())) == [[18, IGNORE, 0, 0, 0]], "preferred where they are"


def test_ade20k_of_scene_parsing(tmp_path: Path) -> None:
    for split, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        pair(tmp_path / "images" / split, tmp_path / "annotations" / split, stem, np.array([[0, 1, 3]], np.uint8))
    rows = [
        "Idx\tRatio\tTrain\tVal\tName",
        "1\t0.1\t9\t9\twall",
        "2\t0.1\t9\t9\tbuilding, edifice",
        "3\t0.1\t9\t9\tsky",
    ]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    index = opened(tmp_path, DataConfig(), split="val")
    assert index.class_names == ("wall", "building", "sky") and mask_of(index) == [[IGNORE, 0, 2]]


def test_the_full_ade20k_takes_chosen_objects(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "training" / "a" / "abbey"
    codes = np.array([[[0, 0, 0], [0, 7, 1], [20, 9, 2], [20, 9, 3]]], np.uint8)  # 0, 7, 2 * 256 + 9 = 521
    pair(folder, folder, "ADE_train_00000001", codes, suffix="_seg")
    save(folder / "ADE_train_00000001_parts_1.png", codes)
    with pytest.raises(InputError, match=r"nothing names the classes.*521 \(50\.00%\).*data\.classes=FILE"):
        opened(tmp_path, DataConfig())
    names = tmp_path / "objects.txt"
    names.write_text("521=wall\n33=sky\n")
    index = opened(tmp_path, DataConfig(classes=str(names)))
    assert mask_of(index) == [[IGNORE, IGNORE, 0, 0]] and index.class_names == ("wall", "sky")
    names.write_text("\n".join(f"object {number}" for number in range(300)))
    with pytest.raises(InputError, match=r"objects\.txt: 300 classes; 1 to 255 fit.*VALUE=name"):
        opened(tmp_path, DataConfig(classes=str(names)))


# -- outlines ---------------------------------------------------------------------------------------------------------


def coco_polygons(folder: Path) -> Path:
    """A COCO json with one rectangle: columns 1 to 3, rows 0 to 2, of an image of 4 x 6 pixels."""
    picture(folder / "a.jpg")
    shape = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 0, 2, 2], "area": 4, "iscrowd": 0}
    path = folder / "_annotations.coco.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}],
                "annotations": [{**shape, "segmentation": [[1, 0, 3, 0, 3, 2, 1, 2]]}],
                "categories": [{"id": 7, "name": "roof"}],
            }
        )
    )
    return path


def test_outlines_are_drawn_once_into_the_cache(tmp_path: Path) -> None:
    coco_polygons(tmp_path)
    index = opened(tmp_path, DataConfig())
    drawn = [[0, 1, 1, 0, 0, 0]] * 2 + [[0] * 6] * 2
    assert mask_of(index) == drawn and index.class_names == ("background", "roof")
    assert index.boxes(0).labels.tolist() == [0, 1] and index.boxes(0).area.tolist() == [20, 4]
    assert index.boxes(0).xyxy.tolist() == [[0, 0, 6, 4], [1, 0, 3, 2]]
    file = index.mask_file(0)
    assert file is not None and cache_folder() in file.file.parents
    written = file.file.stat().st_mtime_ns
    assert opened(tmp_path, DataConfig()).folder == index.folder and file.file.stat().st_mtime_ns == written
    shutil.rmtree(file.file.parent)
    assert mask_of(opened(tmp_path, DataConfig())) == drawn, "drawn anew where the cache was cleared"
    uncovered = opened(tmp_path, DataConfig(background="ignore"))
    assert mask_of(uncovered)[0] == [IGNORE, 0, 0, IGNORE, IGNORE, IGNORE] and uncovered.class_names == ("roof",)


def test_outlines_of_a_pool_stay_undrawn(tmp_path: Path) -> None:
    path = coco_polygons(tmp_path)
    pool = opened(path, DataConfig(), unlabeled=True)
    assert len(pool) == 1 and not pool.has_masks and not pool.annotated and pool.num_boxes == 0
    assert open_index(path, DataConfig()).num_boxes == 1, "boxes, where boxes are wanted"


def test_exports_with_a_json_in_each_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        coco_polygons(tmp_path / split)
    assert set(locate(tmp_path, annotation="masks")) == {"train", "val"}
    assert mask_of(opened(tmp_path, DataConfig(), split="val"))[0] == [0, 1, 1, 0, 0, 0]


def test_scenes_are_the_same_as_masks_and_as_outlines(scenes: Path) -> None:
    masks = opened(scenes / "labeled", DataConfig())
    outlines = opened(scenes / "labeled" / "scenes.json", DataConfig())
    assert masks.class_names[0] == "ground" and masks.class_names[1:] == outlines.class_names[1:]
    for row in range(len(masks)):
        assert masks.path(row) == outlines.path(row)
        assert np.mean(np.array(mask_of(masks, row)) == np.array(mask_of(outlines, row))) > 0.998


# -- codings and class names -----------------------------------------------------------------------------------------

CLASS_FILES: Mapping[str, str] = {
    "classes.txt": "road\nroof\n\ntree\n",
    "labels.txt": "0: road\n1: roof\n2: tree\n",
    "classes.json": json.dumps({"classes": [{"index": k, "name": name} for k, name in enumerate(NAMES)]}),
    "dataset_meta.json": json.dumps({"label_map": {"0": "road", "1": "roof", "2": "tree"}}),
    "_classes.csv": "Pixel Value, Class\n0, road\n1, roof\n2, tree\n",
}
COLOR_FILES: Mapping[str, str] = {
    "class_dict.csv": "name,r,g,b\nroad,200,0,0\nroof,0,200,0\ntree,0,0,200\n",
    "label_colors.txt": "200 0 0\troad\n0 200 0\troof\n0 0 200\ttree\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:200,0,0::\nroof:0,200,0::\ntree:0,0,200::\n",
    "classes.json": json.dumps(
        {"classes": list(NAMES), "palette": {"road": "#C80000", "roof": "#00C800", "tree": "#0000c8"}}
    ),
    "meta.json": json.dumps(
        {"classes": [{"title": n, "id": 1 << 20, "color": f"#{bytes(COLORS[k]).hex()}"} for k, n in enumerate(NAMES)]}
    ),
}


@pytest.mark.parametrize("name", CLASS_FILES)
def test_files_that_name_values(tmp_path: Path, name: str) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    (tmp_path / name).write_text(CLASS_FILES[name])
    index = opened(tmp_path, DataConfig())
    assert index.class_names == NAMES and mask_of(index) == VALUES.tolist()


@pytest.mark.parametrize("name", COLOR_FILES)
@pytest.mark.parametrize("palette", [False, True])
def test_files_that_name_colors(tmp_path: Path, name: str, palette: bool) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a", in_colors(VALUES))
    pair(tmp_path / "images", tmp_path / "masks", "b", in_colors(VALUES))
    if palette:  # a few palette files among RGB ones are read by their colors
        order = np.array([2, 0, 1], np.uint8)  # index of each class
        values = np.where(VALUES == 255, 3, order[np.minimum(VALUES, 2)]).astype(np.uint8)
        save(tmp_path / "masks" / "b.png", values, [0, 200, 0, 0, 0, 200, 200, 0, 0, 9, 9, 9])
    (tmp_path / "masks" / name).write_text(COLOR_FILES[name])
    index = opened(tmp_path, DataConfig(ignore_values=(255, "#090909")))
    assert index.class_names == NAMES and mask_of(index) == mask_of(index, 1) == VALUES.tolist()
    assert index.boxes(0).area.tolist() == index.boxes(1).area.tolist() == [8, 8, 4]


def test_palette_files_alone_are_read_by_value(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    save(tmp_path / "masks" / "a.png", VALUES, PALETTE)
    assert mask_of(opened(tmp_path)) == VALUES.tolist()


def test_the_option_names_values_and_colors(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    chosen = DataConfig(classes=("2=tree", "0=ground", "1=ground"))
    index = opened(tmp_path, chosen)
    assert index.class_names == ("tree", "ground") and mask_of(index)[0] == [1, 1, 1, 1, 0, IGNORE]
    assert index.boxes(0).area.tolist() == [4, 16] and index.boxes(0).xyxy.tolist() == [[4, 0, 5, 4], [0, 0, 4, 4]]
    save(tmp_path / "masks" / "a.png", in_colors(VALUES))
    colored = DataConfig(classes=("#c80000=road", "#00C800=roof", "#0000C8=tree"), ignore_values=("#090909",))
    assert mask_of(opened(tmp_path, colored)) == VALUES.tolist()


def test_names_skip_the_values_that_are_ignored(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a", np.array([[0, 1, 2, 3]], np.uint8))
    index = opened(tmp_path, DataConfig(classes=("b", "d"), ignore_values=(0, 2)))
    assert mask_of(index) == [[IGNORE, 0, IGNORE, 1]]


def test_binary_masks_need_both_values_named(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a", np.array([[0, 255, 255, 0]], np.uint8))
    for data in (DataConfig(), DataConfig(classes=("ground", "roof"))):
        with pytest.raises(InputError, match=r"""data\.classes='\["0=\w+", "255=\w+"\]'"""):
            opened(tmp_path, data)
    index = opened(tmp_path, DataConfig(classes=("0=ground", "255=roof")))
    assert mask_of(index) == [[0, 1, 1, 0]], "a value that is named is not ignored"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.json", "{", "cannot be read as classes"),
        ("class_dict.csv", "name,r,g,b\nroad,1,2,x\n", "cannot be read as classes"),
        ("classes.txt", "7=road\n7=roof\n", "'roof' has the value 7, which must be of one class"),
        ("classes.json", '{"a": "#12345"}', "is not written as #RRGGBB"),
    ],
)
def test_class_files_with_mistakes_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        opened(tmp_path, DataConfig())


def test_files_of_another_kind_name_no_classes(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"version": 3}')
    (tmp_path / "data.yaml").write_text("train: images\n")
    assert read_class_file(tmp_path / "meta.json") == ([], [])
    assert read_class_file(tmp_path / "data.yaml") == ([], [])
    with pytest.raises(InputError, match=r"data\.classes=none\.txt: is no file"):
        pair(tmp_path / "images", tmp_path / "masks", "a")
        opened(tmp_path, DataConfig(classes="none.txt"))


# -- bad input -------------------------------------------------------------------------------------------------------


def test_what_nobody_names_is_listed_with_the_option_to_give(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    expected = r"""1 \(33\.33%\).*data\.classes='\["NAME0", "NAME1", "NAME2"\]'"""
    with pytest.raises(InputError, match=expected):
        opened(tmp_path, DataConfig())


def test_values_of_no_class_are_counted_over_all_masks(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        pair(tmp_path / "images", tmp_path / "masks", stem)
    save(tmp_path / "masks" / "b.png", np.where(VALUES == 2, 7, VALUES))
    expected = (
        r"1 of 3 masks hold values of no class: 7 \(5\.56%\).*b\.png, 16\.67% of it.*known are 0 \(road\).*255 \(no"
    )
    with pytest.raises(InputError, match=expected):
        opened(tmp_path)


def test_colors_of_no_class_and_gray_masks_with_colored_classes(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a", in_colors(VALUES))
    (tmp_path / "class_dict.csv").write_text(COLOR_FILES["class_dict.csv"])
    with pytest.raises(InputError, match=r"hold colors of no class: #090909 \(16\.67%\)"):
        opened(tmp_path, DataConfig())
    save(tmp_path / "masks" / "a.png", VALUES)
    with pytest.raises(InputError, match="Gray masks need values, not colors"):
        opened(tmp_path, DataConfig())


def test_rgb_without_a_table_of_colors(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a", in_colors(VALUES))
    for data in (NAMED, DataConfig()):
        with pytest.raises(InputError, match=r"""a\.png: is an RGB mask.*#C80000 \(33\.33%\).*\["#00C800=NAME0","""):
            opened(tmp_path, data)


def test_a_mask_without_image_and_an_image_without_mask(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    picture(tmp_path / "images" / "b.jpg")
    with pytest.raises(InputError, match=r"1 images have no mask \(first: 'b\.jpg'\).*data\.unlisted=pool"):
        opened(tmp_path)
    with pytest.raises(InputError, match="have no mask"):
        opened(tmp_path, DataConfig(classes=NAMES, unlisted="negative"))
    assert len(opened(tmp_path, DataConfig(classes=NAMES, unlisted="pool"))) == 1
    save(tmp_path / "masks" / "lone.png", VALUES)
    with pytest.raises(InputError, match=r"1 of 2 masks in .* have no image in .* \(first: 'lone\.png'\)"):
        opened(tmp_path)


def test_a_mask_of_another_size_than_its_image(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    picture(tmp_path / "images" / "a.jpg", (8, 12))
    with pytest.raises(InputError, match=r"a\.png: is 6 x 4 pixels; its image a\.jpg is 12 x 8"):
        opened(tmp_path)
    assert len(opened(tmp_path, annotations_only=True)) == 1, "without the images there is nothing to compare"


def test_a_mask_may_have_the_stored_size_of_a_turned_photo(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    turned = Image.Exif()
    turned[0x0112] = 6
    save(tmp_path / "images" / "a.jpg", np.zeros((*SIZE, 3), np.uint8), exif=turned)
    assert opened(tmp_path).size(0) == SIZE
    save(tmp_path / "masks" / "a.png", VALUES.T)
    assert opened(tmp_path).size(0) == SIZE[::-1]


@pytest.mark.parametrize("content", ["float", "jpeg", "sixteen bits", "broken"])
def test_files_that_are_no_masks_are_named(tmp_path: Path, content: str) -> None:
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "masks").mkdir()
    if content == "float":
        save(tmp_path / "masks" / "a.tif", np.zeros(SIZE, np.float32))
    elif content == "jpeg":
        save(tmp_path / "masks" / "a.jpg", VALUES)
    elif content == "sixteen bits":
        save(tmp_path / "masks" / "a.png", VALUES.astype(np.uint16) * 257)
    else:
        (tmp_path / "masks" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    messages = {"float": "floating-point", "jpeg": "is a JPEG", "sixteen bits": "65535", "broken": "is no mask"}
    with pytest.raises(InputError, match=messages[content]):
        opened(tmp_path)


def test_palettes_that_disagree(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        pair(tmp_path / "images", tmp_path / "masks", stem)
    save(tmp_path / "masks" / "a.png", VALUES, PALETTE)
    save(tmp_path / "masks" / "b.png", VALUES, PALETTE[::-1])
    with pytest.raises(
        InputError, match=r"b\.png: its palette gives value 0 the color #090909; in .*a\.png it is #C80000"
    ):
        opened(tmp_path)


def test_masks_without_any_label_are_kept(tmp_path: Path) -> None:
    for stem, values in (("a", VALUES), ("b", np.full(SIZE, 255, np.uint8))):
        pair(tmp_path / "images", tmp_path / "masks", stem, values)
    index = opened(tmp_path)
    assert index.counts == {}, "check counts them in each set"
    assert len(index) == 2 and index.labels_per_image()[0].tolist() == [0, 3, 3]


@pytest.mark.parametrize(
    "names",
    [("0=road", "roof", "tree"), ("0=road", "1=roof", "2="), ("0=road", "#00C800=roof"), ("road", "#00C800=roof")],
)
def test_names_are_given_in_one_way(tmp_path: Path, names: tuple[str, ...]) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    with pytest.raises(InputError, match=r"data\.classes: .* are written in two ways; all must be VALUE=name"):
        opened(tmp_path, DataConfig(classes=names))


def test_a_name_may_begin_with_a_number(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    names = ("2 lanes", "roof = flat", "tree")
    assert opened(tmp_path, DataConfig(classes=names)).class_names == names


def test_many_values_of_no_class_hint_at_smoothing(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a", np.arange(100, dtype=np.uint8).reshape(10, 10))
    with pytest.raises(InputError, match=r"and 85 more of all pixels.*smooth resizing"):
        opened(tmp_path)


# -- what is wanted, and what is there -------------------------------------------------------------------------------


def test_masks_are_no_boxes_and_boxes_no_masks(tmp_path: Path, real_data: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    with pytest.raises(InputError, match=r"found masks, not boxes.*task=segmentation"):
        open_index(tmp_path, DataConfig())
    with pytest.raises(InputError, match=r"found boxes \(voc\), not masks.*task=detection"):
        opened(real_data / "annotation_zoo" / "raccoon_voc" / "annotations", DataConfig())
    with pytest.raises(InputError, match=r"found no images.*parallel folders"):
        (tmp_path / "empty").mkdir()
        opened(tmp_path / "empty")


def test_a_pool_keeps_its_masks_as_hidden_labels(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        pair(tmp_path / "images", tmp_path / "masks", stem)
    pool = opened(tmp_path, unlabeled=True)
    assert pool.annotated and pool.num_boxes == 0 and mask_of(pool, 1) == VALUES.tolist()
    unnamed = opened(tmp_path, DataConfig(), unlabeled=True)
    assert len(unnamed) == 2 and not unnamed.annotated and not unnamed.has_masks, "nobody says what the values mean"
    picture(tmp_path / "images" / "c.jpg")
    pool = opened(tmp_path, unlabeled=True)
    assert len(pool) == 3 and not pool.annotated and pool.mask_file(2) is None
    assert len(opened(tmp_path / "images", unlabeled=True)) == 3, "a folder of images is a pool too"


def test_the_cache_follows_masks_and_options(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a")
    first = opened(tmp_path)
    assert opened(tmp_path).folder == first.folder
    changed = VALUES.copy()
    changed[[0, 1], [0, 0]] = changed[[1, 0], [5, 5]]
    save(tmp_path / "masks" / "a.png", np.ascontiguousarray(changed[:, ::-1]))
    assert opened(tmp_path).fingerprint != first.fingerprint
    other = DataConfig(classes=("x", "y", "z"))
    assert opened(tmp_path, other).class_names == ("x", "y", "z")
    names = tmp_path / "names.txt"
    for text in ("p\nq\nr", "p\nq\nss"):
        names.write_text(text)
        assert opened(tmp_path, DataConfig(classes=str(names))).class_names == tuple(text.split())


def test_sources_of_masks_are_split_and_joined(tmp_path: Path) -> None:
    for number in range(40):
        values = VALUES if number % 4 else np.where(VALUES == 2, 0, VALUES)
        pair(tmp_path / "one" / "images", tmp_path / "one" / "masks", f"s{number // 4}_{number}", values)
    pair(tmp_path / "two" / "images", tmp_path / "two" / "masks", "x", np.array([[0, 1]], np.uint8))
    (tmp_path / "one" / "classes.txt").write_text("\n".join(NAMES))
    (tmp_path / "two" / "classes.txt").write_text("tree\nroad\nroof\n")
    sources = SourcesConfig(labeled=(str(tmp_path / "one"), str(tmp_path / "two")))
    data = DataConfig(group=r"(s\d+)_", labeled_fraction=0.5, rest_as_pool=True)
    sets = open_sources(sources, data, seed=1, annotation="masks")
    assert sets.test is not None and sets.pool is not None
    assert sets.labeled.class_names == NAMES and sets.hidden_labels
    assert len(sets.labeled) + len(sets.pool) + len(sets.test) == 41
    groups = [{index.path(row).stem.split("_")[0] for row in range(len(index))} for index in (sets.labeled, sets.test)]
    assert not groups[0] & groups[1], "images of a group stay together"
    parts = (sets.labeled, sets.pool, sets.test)
    found = [mask_of(part, row) for part in parts for row in range(len(part)) if part.path(row).name == "x.jpg"]
    assert found == [[[2, 0]]], "values of the second source, by name in the first one's classes"


def test_labels_are_required_in_words_of_masks(tmp_path: Path) -> None:
    pair(tmp_path / "images", tmp_path / "masks", "a", np.full(SIZE, 255, np.uint8))
    (tmp_path / "classes.txt").write_text("road\nroof")
    with pytest.raises(InputError, match=r"has no labeled pixel\. Give masks"):
        open_sources(SourcesConfig(labeled=(str(tmp_path),)), DataConfig(), seed=0, annotation="masks")


def test_regions_are_those_of_a_search_pixel_by_pixel() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 5, (13, 17)) * 1000
    scan = scan_codes(codes, "colors")
    for code, pixels, hull in zip(scan.codes, scan.pixels, scan.hulls, strict=True):
        rows, columns = np.nonzero(codes == code)
        assert pixels == len(rows)
        assert hull.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert scan.codes.tolist() == sorted(set(codes.ravel()))
    other = codes.copy()
    other[0, 0], other[5, 5] = codes[5, 5], codes[0, 0]
    assert scan_codes(other, "colors").digest != scan.digest or (other == codes).all()


# -- real data -------------------------------------------------------------------------------------------------------


def test_dubai_aerial_has_the_known_pixels(real_data: Path) -> None:
    folder = real_data / "dubai_aerial"
    stats = json.loads((folder / "stats.json").read_text())
    assert set(locate(folder, annotation="masks")) == {"train", "val", "test"}
    for split, images in stats["counts"].items():
        index = opened(folder, DataConfig(), split=split)
        columns = index.box_columns()
        pixels = np.bincount(columns.labels, columns.area, len(index.class_names))
        shares = dict(zip(index.class_names, pixels / index.sizes().astype(np.int64).prod(axis=1).sum(), strict=True))
        known = stats["pixel_share"][split]
        assert len(index) == images and sum(shares.values()) == pytest.approx(1 - known.pop("ignore"), abs=1e-4)
        assert shares == pytest.approx(known, abs=5e-5)


def test_dubai_aerial_is_listed_by_stem(real_data: Path) -> None:
    folder = real_data / "dubai_aerial"
    listed = folder / "splits" / "train_labeled_10pct_seed0.txt"
    sources = SourcesConfig(labeled=(str(folder),), labeled_list=str(listed))
    sets = open_sources(sources, DataConfig(rest_as_pool=True), seed=0, annotation="masks")
    assert sets.val is not None and sets.test is not None and sets.pool is not None
    assert [len(part) for part in (sets.labeled, sets.pool, sets.val, sets.test)] == [24, 216, 40, 80]
    assert {sets.labeled.path(row).stem for row in range(24)} == set(listed.read_text().split())
    assert sets.hidden_labels and sets.pool.mask_file(0) is not None


ZOO = {
    "coco256_labels/semantic_segmentation": ("mask folder config.yaml", 100, 130),
    "datumaro/tests/assets/common_semantic_segmentation_dataset/dataset": ("mask folder", 2, 6),
}


@pytest.mark.parametrize("name", ZOO)
def test_real_masks_have_the_known_counts(real_data: Path, name: str) -> None:
    what, images, classes = ZOO[name]
    index = opened(real_data / "annotation_zoo" / name, DataConfig(), annotations_only=True)
    assert index.description.startswith(what)
    assert (len(index), len(index.class_names)) == (images, classes)
    assert index.num_boxes > 0


def test_every_real_folder_is_read_as_masks_or_refused(real_data: Path) -> None:
    """Nothing but `InputError`, whatever folder is given."""
    zoo = real_data / "annotation_zoo" / "datumaro" / "tests" / "assets"
    outcomes = []
    for name in ("ade20k2017", "camvid", "cityscapes", "common_semantic_segmentation", "kitti", "mapillary_vistas"):
        for folder in (path for path in sorted((zoo / f"{name}_dataset").rglob("*")) if path.is_dir()):
            try:
                opened(folder, DataConfig(unlisted="pool"))
                outcomes.append(True)
            except InputError:
                outcomes.append(False)
    assert any(outcomes) and not all(outcomes)
