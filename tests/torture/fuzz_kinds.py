"""What is broken: files of every kind that Tutelage reads, whole ones to begin with, and how each is read."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import tutelage
from tests.test_checkpoint import HASH, fresh, trained
from tests.test_exchange import annotated
from tests.torture.fuzz_mutations import Generator
from tutelage.config import DataConfig, PseudoConfig, load_config
from tutelage.data.demo import draw_class_crops
from tutelage.data.images import decode, probe
from tutelage.data.index import Index
from tutelage.data.masks import read_mask
from tutelage.data.pseudo import open_store, store_index
from tutelage.data.pseudo.verdicts import Label, Verdicts, read_verdicts
from tutelage.data.readers import locate, open_index, open_source
from tutelage.engine.checkpoint import load_checkpoint, save_checkpoint
from tutelage.models.init import initialize, load_model
from tutelage.models.model import build_classifier
from tutelage.reporting.read import read_run, training_log
from tutelage.reviews.exchange import FORMATS, export_labels, import_labels
from tutelage.reviews.exchange.handing import hand_out
from tutelage.types import Annotation

LARGEST = 100_000  # bytes of a file of a collection that is broken
MOST_FILES = 60
Read = Callable[[Path, Path, Generator], None]


@dataclass(frozen=True)
class Kind:
    """One kind of files; `read(folder, broken file, generator)` is what a verb does with them first."""

    read: Read
    share: int  # of 10 000 cases
    broken: str = "*"  # names of the files that are broken


def read_data(folder: Path, broken: Path, rng: Generator) -> None:
    """As labeled and unlabeled data of both tasks, the whole folder or the file alone."""
    data = DataConfig(bad_boxes=("error", "clip", "drop")[rng.integers(3)], unlisted="negative")
    alone = broken.suffix in (".json", ".csv", ".xml", ".yaml", ".txt", ".tar") and rng.random() < 0.5
    annotation: Annotation = ("boxes", "masks")[rng.integers(2)]
    if alone:
        look_through(open_index(broken, data, annotations_only=True, annotation=annotation), data, images=False)
        return
    unlabeled = bool(rng.random() < 0.2)
    for source in list(locate(folder, unlabeled, annotation).values())[:2]:
        opened = open_source(
            source, data, images="", unlabeled=unlabeled, annotations_only=False, annotation=annotation
        )
        look_through(opened.index, data, images=True)


def look_through(index: Index, data: DataConfig, *, images: bool) -> None:
    """Everything of the first images."""
    assert len(index.fingerprint) > 8
    for row in range(min(4, len(index))):
        index.boxes(row)
        mask = index.mask_file(row)
        if images:
            decode(index.path(row), data)
        if images and mask is not None:
            read_mask(mask)


def read_checked(folder: Path, broken: Path, rng: Generator) -> None:
    """The verb `check`."""
    task = ("detection", "segmentation")[rng.integers(2)]
    labeled = folder / "labeled" / ("scenes.json" if task == "detection" else "masks")
    if broken.name == "classes.json":
        tutelage.check(labeled=labeled, task="segmentation", overrides=(f"data.classes={broken}",))
    tutelage.check(labeled=labeled, unlabeled=folder / "pool", task=task)


def read_image(folder: Path, broken: Path, rng: Generator) -> None:
    data = DataConfig(truncated=("error", "accept")[rng.integers(2)]) if rng.random() < 0.5 else DataConfig()
    probe(broken)
    pixels = decode(broken, data, needed_scale=float(rng.choice([1.0, 0.3]))).pixels
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def read_config(folder: Path, broken: Path, rng: Generator) -> None:
    load_config(broken, ("train.lr=0.1",))


def read_store(folder: Path, broken: Path, rng: Generator) -> None:
    pseudo = PseudoConfig(score_threshold=float(rng.choice([0.0, 0.4])), empty=("background", "drop")[rng.integers(2)])
    store = open_store(folder / "store")
    store.counts(pseudo)
    store.amounts()
    store.skipped(5)
    pool = open_index(folder / "images", DataConfig(), unlabeled=True)
    store = replace(store, manifest=replace(store.manifest, pool=pool.fingerprint))
    index = store_index(store, pool, pseudo)
    look_through(index, DataConfig(), images=True)
    hand_out(store, store.usable_rows()[:4], pseudo)


def read_model(folder: Path, broken: Path, rng: Generator) -> None:
    model, card = load_model(folder)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert isinstance(card.get("class_names", []), list)


def read_weights(folder: Path, broken: Path, rng: Generator) -> None:
    """As what a network starts from."""
    config = load_config("detection-demo", ("model.backbone=test_resnet", "model.init=random")).model
    initialize(build_classifier(config, 3), str(broken), backbone_name="test_resnet")


def read_checkpoint(folder: Path, broken: Path, rng: Generator) -> None:
    load_checkpoint(folder, HASH, fresh())


def read_said(folder: Path, broken: Path, rng: Generator) -> None:
    verdicts = read_verdicts(folder / "verdicts.json")
    store = open_store(folder / "store").with_verdicts(verdicts)
    store.counts(PseudoConfig(score_threshold=0.4))


def read_exchange(folder: Path, broken: Path, rng: Generator) -> None:
    given = next((path for path in sorted(folder.iterdir()) if path.name.startswith("given")), broken)
    import_labels(given, folder / "out")


def read_record(folder: Path, broken: Path, rng: Generator) -> None:
    run = read_run(folder)
    for stage in run.stages.values():
        if stage.record.get("kind") == "train":
            training_log(stage.folder)


KINDS: Mapping[str, Kind] = {
    "data": Kind(read_data, 3400),
    "check": Kind(read_checked, 300),
    "image": Kind(read_image, 2000),
    "config": Kind(read_config, 700),
    "store": Kind(read_store, 1000, "store/*"),
    "model": Kind(read_model, 600),
    "weights": Kind(read_weights, 700),
    "checkpoint": Kind(read_checkpoint, 400),
    "verdicts": Kind(read_said, 300, "verdicts.json"),
    "exchange": Kind(read_exchange, 400, "given*"),
    "run": Kind(read_record, 200, "*.json*"),
}


def gather(corpus: Path, scenes: Path, runs: Mapping[str, Path], real: Path | None) -> Path:
    """Whole files of all kinds: `corpus/KIND/NUMBER/...`.

    Args:
        corpus: new folder.
        scenes: of the fixture.
        runs: a finished fit by kind of annotation.
        real: folder of real data sets.
    """
    _scenes(corpus, scenes)
    for run in runs.values():
        _of_run(corpus, run, scenes)
    _weights(corpus)
    if real is not None:
        _real(corpus, real)
    return corpus


def _next(corpus: Path, kind: str) -> Path:
    number = len(list((corpus / kind).glob("*")))
    return corpus / kind / f"{number:03d}"


def _scenes(corpus: Path, scenes: Path) -> None:
    shutil.copytree(scenes / "labeled", _next(corpus, "data"))
    place = _next(corpus, "check")
    shutil.copytree(scenes / "labeled", place / "labeled")
    shutil.copytree(scenes / "pool" / "images", place / "pool")
    draw_class_crops(_next(corpus, "data"), images_per_class=2, size=32)
    place = _next(corpus, "image")
    place.mkdir(parents=True)
    shutil.copy(next((scenes / "labeled" / "images").iterdir()), place)
    for recipe in ("detection-demo", "segmentation-demo"):
        config = _next(corpus, "config") / "config.yaml"
        config.parent.mkdir(parents=True)
        shutil.copy(Path(tutelage.__file__).parent / "recipes" / f"{recipe}.yaml", config)


def _of_run(corpus: Path, run: Path, scenes: Path) -> None:
    """Config, record, model, store, verdicts and exports of a finished fit."""
    place = _next(corpus, "config")
    place.mkdir(parents=True)
    shutil.copy(run / "config.yaml", place)
    shutil.copytree(run / "model", _next(corpus, "model"), ignore=shutil.ignore_patterns("README.md"))
    shutil.copytree(run, _next(corpus, "run"), ignore=shutil.ignore_patterns("*.html", "tensorboard", "*.safetensors"))
    folder = next(run.glob("stages/pseudo-1-*"))
    said = _said(folder)
    for kind in ("store", "verdicts"):
        place = _next(corpus, kind)
        shutil.copytree(folder, place / "store", ignore=shutil.ignore_patterns("run.json", "trial.json"))
        if kind == "store":
            shutil.copytree(scenes / "pool" / "images", place / "images")
        else:
            (place / "verdicts.json").write_text(said.model_dump_json(by_alias=True))
    for format in FORMATS[said.annotation]:
        place = _next(corpus, "exchange")
        given = annotated(export_labels(place / "out", format, said))
        target = place / f"given{given.suffix}"
        (shutil.copytree if given.is_dir() else shutil.copy)(given, target)


def _said(folder: Path) -> Verdicts:
    """Verdicts on the first images of a store."""
    store = open_store(folder)
    shown = hand_out(store, store.usable_rows()[:3], PseudoConfig(score_threshold=0.0))
    images = tuple(
        image.model_copy(update={"labels": tuple(_accepted(label) for label in image.labels[:6])})
        for image in shown.images
    )
    return shown.model_copy(update={"images": images})


def _accepted(label: Label) -> Label:
    return label.model_copy(update={"verdict": "accept"})


def _weights(corpus: Path) -> None:
    config = load_config("detection-demo", ("model.backbone=test_resnet", "model.init=random")).model
    model = build_classifier(config, 3)
    body = {name: value.clone() for name, value in model.backbone.body.state_dict().items()}
    place = _next(corpus, "weights")
    place.mkdir(parents=True)
    torch.save({"state_dict": body}, place / "body.pth")
    torch.save(body, place / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(place / "body.npz", **{name: value.numpy() for name, value in body.items()})
    save_file(body, place / "body.safetensors")
    save_checkpoint(_next(corpus, "checkpoint"), HASH, trained())


def _real(corpus: Path, real: Path) -> None:
    """The collection's small folders; every dirty picture on its own."""
    zoo = real / "annotation_zoo"
    for folder in sorted([*zoo.glob("datumaro/tests/assets/*/*"), *zoo.glob("label_studio/tests/data/*")]):
        files = [path for path in folder.rglob("*") if path.is_file()]
        if files and len(files) <= MOST_FILES and all(path.stat().st_size < LARGEST for path in files):
            _copied(folder, _next(corpus, "data"))
    for path in sorted((zoo / "raccoon_voc" / "annotations").glob("*.xml"))[:2]:
        _copied(path, _next(corpus, "data") / "annotations" / path.name)
    _copied(zoo / "aquatrash_csv" / "annotations.csv", _next(corpus, "data") / "annotations.csv")
    for path in sorted((real / "dirty_images").glob("made*")):
        _copied(path, _next(corpus, "image") / path.name)


def _copied(source: Path, target: Path) -> None:
    """A copy that may be written to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        for folder in (target, *target.rglob("*")):
            folder.chmod(0o755)
    else:
        shutil.copyfile(source, target)
