"""The verb `review`: look through pseudo-labels, hand them to an annotation tool, take back what people said."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from tutelage.config import PseudoConfig
from tutelage.data.pseudo import PseudoStore, open_store
from tutelage.data.pseudo.verdicts import Verdicts, merge, read_verdicts, require_fitting, require_said, write_verdicts
from tutelage.data.thumbnails import Album
from tutelage.files import make_folder, read_json, write_text
from tutelage.reporting.page import image_roots
from tutelage.reporting.read import Run, read_run
from tutelage.reviews.exchange import export_labels, import_labels, require_format
from tutelage.reviews.exchange.handing import hand_out
from tutelage.reviews.page import Content, gather, ranked, render
from tutelage.reviews.serve import ReviewServer
from tutelage.types import InputError
from tutelage.workflows.stages import REVIEWS, console

VERDICTS, EXPORTS = "verdicts.json", "export"


@dataclass(frozen=True, slots=True)
class Reviewed:
    """Pseudo-labels that people look through."""

    folder: Path  # of the run, or of the store
    stores: Sequence[PseudoStore]  # of the rounds up to the one that is looked at
    pseudo: PseudoConfig  # the threshold that was used
    roots: Sequence[Path]  # that paths of images are tried against
    trained_with: Path | None = None  # verdicts that the run was given

    @property
    def store(self) -> PseudoStore:
        """The one that is looked at."""
        return self.stores[-1]

    def paths(self) -> list[str]:
        """Every image of the pool, as its listing has it."""
        return list(chain.from_iterable(images["path"].tolist() for images, _ in self.store.parts()))

    def verdicts(self, folder: Path) -> Verdicts | None:
        """What people said so far: in `folder`, or before that in the verdicts that the run was trained with.

        Raises:
            InputError: malformed, or about other images, classes or kinds of labels.
        """
        given = [path for path in (folder / VERDICTS, self.trained_with) if path and path.is_file()]
        if not given:
            return None
        verdicts, manifest = read_verdicts(given[0]), self.store.manifest
        require_fitting(verdicts, manifest.class_names, manifest.annotation, self.paths(), str(given[0]))
        return verdicts


def open_reviewed(folder: Path, round_: int = 0) -> Reviewed:
    """The stores of a finished run, or one store.

    Args:
        folder: of either.
        round_: the last that is wanted; 0 is all.

    Raises:
        InputError: there is no such store.
    """
    if (folder / "manifest.json").is_file():
        record = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
        pseudo = PseudoConfig(score_threshold=record.get("threshold", 0.5))
        return Reviewed(folder, [open_store(folder)], pseudo, [Path(root) for root in record.get("roots", ())])
    run = read_run(folder)
    stores = {store.manifest.round: store for store in _stores_of(run)}
    if not stores:
        raise InputError(f"{folder}: this run labeled nothing; a review needs pseudo-labels. Give a run of fit.")
    if round_ and round_ not in stores:
        raise InputError(
            f"--round {round_}: {folder} has round {', '.join(map(str, sorted(stores)))}. Choose one of them."
        )
    last = round_ or max(stores)
    threshold = (run.record.get("pseudo") or {}).get("threshold", 0.5)
    given = ((yaml.safe_load(run.config) or {}).get("sources") or {}).get("verdicts")
    return Reviewed(
        folder,
        [stores[number] for number in sorted(stores) if number <= last],
        PseudoConfig(score_threshold=threshold),
        image_roots(run),
        Path(given) if given else None,
    )


def _stores_of(run: Run) -> list[PseudoStore]:
    return [open_store(stage.folder) for stage in run.stages.values() if stage.record.get("kind") == "label"]


def review(
    run: str | Path,
    *,
    out: str | Path = "",
    serve: bool = False,
    port: int = 0,
    export: str = "",
    import_: str | Path = "",
    limit: int = 200,
    round_: int = 0,
) -> dict[str, Any]:
    """Writes a page to look through the pseudo-labels of a run; or exports them, or takes verdicts in.

    Args:
        run: a finished run, or a pseudo-label store.
        out: folder of page, exports and `verdicts.json`; `run/review` when empty.
        serve: show the page on the loopback address and save verdicts directly, until Ctrl-C.
        port: of the served page; 0 takes a free one.
        export: write the chosen images for a tool instead: label-studio, cvat, coco or fiftyone.
        import_: take in what such a tool wrote instead; new verdicts are laid over those that are there.
        limit: images that are shown or exported, the most informative first; 0 is all.
        round_: whose pseudo-labels; 0 is the last.

    Returns:
        What was written.

    Raises:
        InputError: there is no store, or a file is malformed.
    """
    reviewed = open_reviewed(Path(run), round_)
    folder = Path(out) if out else reviewed.folder / REVIEWS
    if export and import_:
        raise InputError("--export, --import: only one of them is allowed at a time. Leave out either.")
    if export:
        return _export(reviewed, folder, limit, export)
    make_folder(folder)
    if import_:
        return _import(reviewed, folder, Path(import_))
    return _serve(reviewed, folder, limit, port) if serve else _write(reviewed, folder, limit)


def _content(reviewed: Reviewed, limit: int, verdicts: Verdicts | None) -> Content:
    """What the page shows; images that people are done with come last."""
    done = [image.path for image in verdicts.images if image.reviewed] if verdicts else []
    album = Album(reviewed.roots)
    title = reviewed.folder.resolve().name
    content = gather(reviewed.stores, reviewed.pseudo, album, title=title, limit=limit, reviewed=done)
    if album.missing:
        console.print(f"{len(album.missing)} pictures are no longer where they were ({album.missing[0]} ...)")
    return content


def _write(reviewed: Reviewed, folder: Path, limit: int) -> dict[str, Any]:
    verdicts, own = reviewed.verdicts(folder), folder / VERDICTS
    content = _content(reviewed, limit, verdicts)
    written = own.stat().st_mtime if own.is_file() else 0
    page = folder / "review.html"
    write_text(page, render(content, verdicts, written))
    console.print(f"{page}: {content.shown} images; open it in a browser")
    return {"page": str(page), "images": content.shown}


def _serve(reviewed: Reviewed, folder: Path, limit: int, port: int) -> dict[str, Any]:
    target, paths, manifest = folder / VERDICTS, reviewed.paths(), reviewed.store.manifest

    def page() -> str:
        return render(content, reviewed.verdicts(folder), save_to="verdicts", seen=_digest(target))

    def save(verdicts: Verdicts, seen: str) -> str:
        source = "the page's verdicts"
        if seen != _digest(target):
            raise InputError(
                f"{source}: since this page was loaded, {target.name} was changed elsewhere; it stays as it is. "
                "Download the verdicts, reload the page and load them."
            )
        require_said(verdicts, source)
        require_fitting(verdicts, manifest.class_names, manifest.annotation, paths, source)
        write_verdicts(target, verdicts)
        return _digest(target)

    content = _content(reviewed, limit, reviewed.verdicts(folder))
    with ReviewServer(page, save, port) as server:
        print(f"{content.shown} images to review at {server.url} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"Verdicts are in {target}" if target.is_file() else "No verdict was given")
    return {"verdicts": str(target), "images": content.shown}


def _digest(path: Path) -> str:
    """Digest of a file's content; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _export(reviewed: Reviewed, folder: Path, limit: int, format: str) -> dict[str, Any]:
    """Hands the chosen images to a tool, with what people said so far; those they are done with come last."""
    require_format(format)
    verdicts = reviewed.verdicts(folder)
    done = [image.path for image in verdicts.images if image.reviewed] if verdicts else []
    rows = ranked(reviewed.stores, reviewed.pseudo, done).image_ids[: limit or None]
    store = reviewed.store.with_verdicts(verdicts)
    written = export_labels(folder / EXPORTS, format, hand_out(store, rows, reviewed.pseudo))
    console.print(f"{written}: {len(rows)} images; take the result in with review --import FILE")
    return {"export": str(written), "images": len(rows)}


def _import(reviewed: Reviewed, folder: Path, file: Path) -> dict[str, Any]:
    """Lays what a tool wrote over the verdicts that are there."""
    target, manifest = folder / VERDICTS, reviewed.store.manifest
    new = import_labels(file, folder / EXPORTS)
    require_fitting(new, manifest.class_names, manifest.annotation, reviewed.paths(), str(file))
    old = reviewed.verdicts(folder)
    verdicts = merge(old, new) if old else new
    counts = reviewed.store.with_verdicts(verdicts, str(file)).people.counts()
    write_verdicts(target, verdicts)
    told = ", ".join(f"{value} {name}" for name, value in counts.items())
    console.print(
        f"{target}: {told} in {len(verdicts.images)} images, {len(new.images)} of them new or looked at again"
    )
    return {"verdicts": str(target), "images": len(new.images), **counts}
