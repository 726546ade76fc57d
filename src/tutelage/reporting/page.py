"""The report page of a run: one self-contained HTML file, called by `fit` at its end and by `tutelage report`.

Names of files and classes are untrusted text: they reach the page only through the template engine's escaping, and
the page's content policy allows neither scripts nor the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tutelage.data.thumbnails import Album
from tutelage.files import read_json, write_text
from tutelage.reporting import models as arms
from tutelage.reporting.certificate import certificate_of_run, certificate_view
from tutelage.reporting.curves import training_figures
from tutelage.reporting.figures import whisker_figure
from tutelage.reporting.kinds import KINDS, Kind
from tutelage.reporting.models import Model
from tutelage.reporting.pseudo import pseudo_labels
from tutelage.reporting.read import Run, read_evaluation, read_run

NOT_AVAILABLE = "n/a"
SHORT_METRICS = 3
"""Figures a model in the table of every round and repeat."""


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into a finished run's folder and returns its path.

    Raises:
        InputError: the folder holds no finished run.
    """
    run = read_run(Path(run_folder))
    kind = KINDS[run.record.get("task") or "detection"]
    class_names = tuple(run.record.get("class_names", ()))
    models = arms.models_of(run)
    album = Album(image_roots(run))
    config: Mapping[str, Any] = yaml.safe_load(run.config) or {}
    sections: dict[str, Any] = {
        "record": run.record,
        "kind": kind,
        "config": run.config,
        "confidence": (config.get("eval") or {}).get("confidence", 0.95),
        "folder": run.folder.resolve().name,
        **_figures(run, kind, models, class_names),
        "sets": _sets(run.record.get("data", {})),
        "check": _by_topic((run.record.get("check") or {}).get("lines") or ()),
        "trainings": training_figures(run, *kind.headline),
        "recall": kind.recall(models, class_names) if kind.recall else None,
        "pseudo": pseudo_labels(run, kind.view_store, class_names, album),
        "certificate": certificate_of_run(run),
        "comparison": _comparison(models, kind, class_names, album, int(run.record.get("seed") or 0)),
        "costs": _costs(run.record.get("seconds") or {}),
        "stages": list(run.stages.values()),
        "facts": _facts(run.record),
    }
    target = run.folder / "report.html"
    write_text(target, _environment().get_template("report.html").render(**sections, missing=album.missing))
    return target


def write_certificate(folder: Path) -> Path:
    """Writes `report.html` into the folder of a certificate and returns its path."""
    record = read_json(folder / "run.json")
    view = certificate_view(record, record.get("gap") or "", record.get("unseen") or "")
    target = folder / "report.html"
    page = _environment().get_template("certify.html")
    write_text(target, page.render(certificate=view, folder=folder.resolve().name))
    return target


def _figures(run: Run, kind: Kind, models: list[Model], class_names: tuple[str, ...]) -> dict[str, Any]:
    """What was measured: the models, their tables and their differences."""
    differences = arms.differences(run)
    return {
        "models": models,
        "differences": differences,
        "difference_figure": _difference_figure(differences, kind),
        "metric_table": arms.metric_table(run, models, kind.metrics),
        "class_tables": arms.class_tables(run, models, class_names, kind.class_metrics, kind.class_counts),
        "short_metrics": dict(list(kind.metrics.items())[:SHORT_METRICS]),
        "measurements": _measurements(run, list(kind.metrics)[:SHORT_METRICS]),
    }


def image_roots(run: Run) -> list[Path]:
    """Folders that relative image paths are tried against: the roots of the run's data, the run's own folder."""
    sets = (run.record.get("data") or {}).values()
    return [*(Path(root) for one in sets if one for root in one.get("roots") or ()), run.folder]


def points(value: float | None) -> str:
    """A figure between 0 and 1 in hundredths: `37.4`."""
    return NOT_AVAILABLE if value is None or value != value else f"{100 * value:.1f}"


def signed_points(value: float | None) -> str:
    """A difference in hundredths with its sign, and a second decimal where the first would say zero: `+1.6`."""
    if value is None or value != value:
        return NOT_AVAILABLE
    text = f"{100 * value:+.1f}" if abs(value) >= 0.0005 else f"{100 * value:+.2f}"
    return "0" if float(text) == 0 else text.replace("-", "\u2212")


def typeset(text: str) -> str:
    """A sentence with true minus signs before numbers and unbroken percentages."""
    return re.sub(r"(?<!\w)-(?=\d)", "\u2212", text).replace(" %", "\u00a0%")


def grouped(value: float | None) -> str:
    """A count with narrow spaces between thousands; from ten millions on in millions: `12.3 M`."""
    if value is None:
        return NOT_AVAILABLE
    text = f"{value / 1e6:,.1f}\u00a0M" if value >= 1e7 else f"{value:,.0f}"
    return text.replace(",", "\u202f")


def percent(value: float) -> str:
    """A share in percent: `12.3 %`."""
    return f"{100 * value:.1f}\u00a0%"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: `35 s`, `4 min 10 s`, `3 h 05 min`."""
    if seconds is None:
        return NOT_AVAILABLE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "points": points,
        "signed": signed_points,
        "grouped": grouped,
        "percent": percent,
        "duration": duration,
        "typeset": typeset,
    }
    return environment


def _difference_figure(differences: list[dict[str, Any]], kind: Kind) -> Markup | None:
    whiskers = arms.whiskers(differences)
    if not whiskers:
        return None
    title = kind.metrics.get(str(differences[0]["metric"]), kind.headline[1])
    return Markup(whisker_figure(whiskers, title="Differences between the models", xlabel=f"{title} points"))


def _measurements(run: Run, metrics: Sequence[str]) -> list[dict[str, Any]]:
    several = run.record.get("rounds", 1) > 1 or run.record.get("repeats", 1) > 1
    return list(arms.every_measurement(run, metrics)) if several else []


def _sets(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    titles = {
        "labeled": "Labeled",
        "classification": "Classified",
        "certify": "Set aside to certify on",
        "pool": "Unlabeled pool",
        "val": "Selection split",
        "test": "Test",
    }
    return [
        {"title": title, **data[name], "amount": _amount(data[name])}
        for name, title in titles.items()
        if data.get(name)
    ]


def _amount(used: Mapping[str, Any]) -> int | None:
    """Boxes or labeled pixels of a set."""
    per_class = used.get("amounts_per_class")
    return None if per_class is None else sum(per_class.values())


def _by_topic(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The check's lines under what they begin with: `labeled: 20 images` is about `labeled`."""
    topics: dict[str, list[str]] = {}
    for line in lines:
        topic, colon, text = line.partition(": ")
        named = bool(colon) and " " not in topic
        topics.setdefault(topic if named else "", []).append(text if named else line)
    return list(topics.items())


def _comparison(models: list[Model], kind: Kind, class_names: tuple[str, ...], album: Album, seed: int) -> Any:
    stages = {model.role: model.stage for model in models if model.stage}
    if not {"teacher", "student"} <= set(stages):
        return None
    teacher, student = (read_evaluation(stages[role], kind.labels_of) for role in ("teacher", "student"))
    if teacher is None or student is None:
        return None
    return kind.compare(teacher, student, class_names, album, seed)


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it takes to run again: seeds, versions, machine, hashes."""
    versions = {"tutelage": record.get("version"), **(record.get("versions") or {})}
    hashes = {name: one.get("fingerprint") for name, one in (record.get("data") or {}).items() if one}
    seeds = record.get("seeds") or record.get("seed")
    facts = {
        "Seed": ", ".join(map(str, seeds)) if isinstance(seeds, list) else seeds,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Machine": ", ".join(f"{name} {value}" for name, value in (record.get("machine") or {}).items()),
        "Config hash": record.get("config_hash"),
        "Data fingerprints": ", ".join(f"{name} {value}" for name, value in hashes.items() if value),
    }
    return [(title, str(value)) for title, value in facts.items() if value not in (None, "")]


def _costs(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Stages with their time; bars are relative to the longest."""
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        {"title": name, "role": arms.role_of(name), "seconds": spent, "length": round(100 * spent / longest, 1)}
        for name, spent in seconds.items()
    ]
