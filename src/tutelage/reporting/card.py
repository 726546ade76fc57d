"""The card of a fit's recommended model, `OUT/model/README.md`: YAML front matter as model hubs read it, then text.

Called by `fit` with the run's record and the model's own card (`model.json`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tutelage.models.trained import trained_for
from tutelage.reporting.kinds import KINDS
from tutelage.reporting.models import MEANINGS

Record = Mapping[str, Any]
PIPELINES = {"detection": "object-detection", "segmentation": "image-segmentation"}
SETS = {
    "labeled": "trained on, with human labels",
    "pool": "without labels, pseudo-labeled",
    "classification": "trained on beside the task",
    "val": "decided on",
    "test": "measured on",
    "certify": "set aside to certify on",
}
DIFFERENCES = ("student_minus_control", "student_minus_teacher", "control_minus_teacher")
NAMED_CLASSES = 100
UNKNOWN_LICENSE = "unknown"  # the identifier that hubs have for it


def model_card(record: Record, model: Record) -> str:
    """The text of a model's README.md.

    Args:
        record: of the finished run, as in its `run.json`.
        model: the model's `model.json`.
    """
    sections = {
        "Data": _data_lines(record),
        "Figures": _figure_lines(record),
        "What self-training gave": _difference_lines(record),
        "Pseudo-labels": _pseudo_lines(record),
        "Warnings": [f"- {one['stage']}: {one['text']}" for one in record["warnings"]] or ["None."],
        "License": _license_lines(model),
        "Use": _use_lines(record, model),
        "Made by": _provenance_lines(record),
    }
    body = [line for title, lines in sections.items() for line in (f"## {title}", "", *lines, "")]
    return "\n".join([front_matter(record["task"], model), *_head_lines(record), "", *body])


def front_matter(task: str, model: Record) -> str:
    """YAML between two lines of dashes; keys as on the Hugging Face hub."""
    told = {
        "license": UNKNOWN_LICENSE,
        "library_name": "tutelage",
        "pipeline_tag": PIPELINES[task],
        "tags": ["self-training", "semi-supervised", task, model["model"]["backbone"]],
    }
    return f"---\n{yaml.safe_dump(told, sort_keys=False)}---\n"


def license_of_start(model: Record) -> str:
    """What is known of the license of the weights that the run's backbone started from."""
    backbone, init = model["model"]["backbone"], model["model"]["init"]
    known = trained_for(backbone, init)
    if known is not None:
        return f"The backbone started from {known.name} ({known.paper}), which is under {known.license}."
    if init == "random":
        return "All weights started at random."
    return f"The license of what the backbone started from ({Path(init).name}) is not known here."


def _head_lines(record: Record) -> list[str]:
    names = list(record["class_names"])
    more = f" and {len(names) - NAMED_CLASSES} more" if len(names) > NAMED_CLASSES else ""
    arm = record["recommended"]
    verdicts = [record[name] for name in ("verdict", "joint_verdict") if record.get(name)]
    return [
        f"# {arm.capitalize()} of a Tutelage run: {record['task']} of {len(names)} classes",
        "",
        *verdicts,
        "",
        f"Classes: {', '.join(names[:NAMED_CLASSES])}{more}.",
        f"This is the {arm}: {MEANINGS[arm]}. Recommended because {record['recommended_reason']}",
    ]


def _data_lines(record: Record) -> list[str]:
    rows = [
        f"| {SETS.get(name, name)} | {one['images']} | {_cell(one['description'])} |"
        for name, one in record["data"].items()
    ]
    notes = [f"- {note}" for note in record["notes"]]
    return ["| images | number | what they are |", "|---|---|---|", *rows, *(["", *notes] if notes else [])]


def _figure_lines(record: Record) -> list[str]:
    arm, titles = record["recommended"], KINDS[record["task"]].metrics
    if not record[arm]["metrics"]:
        return ["None: there were no test images."]
    others = [one for one in ("teacher", "control", "student") if one in record and one != arm]
    shown = [arm, *others]
    head = " | ".join(f"{one} (this model)" if one == arm else one for one in shown)
    rows = [
        f"| {title} | {' | '.join(_figure(record[one], metric) for one in shown)} |" for metric, title in titles.items()
    ]
    optimistic = record["decided_on"] == "test images"
    return [
        "In points (0 to 100), measured on the test images, intervals in brackets.",
        "",
        f"| | {head} |",
        "|---" * (len(shown) + 1) + "|",
        *rows,
        *(["", "This model was chosen on the same images: its own figure is optimistic."] if optimistic else []),
    ]


def _figure(arm: Record, metric: str) -> str:
    value, interval = (arm["metrics"] or {}).get(metric), arm["intervals"].get(metric)
    if value is None:
        return "n/a"
    ends = f" [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]" if interval else ""
    return f"{100 * value:.1f}{ends}"


def _difference_lines(record: Record) -> list[str]:
    found = {name: record["differences"].get(name) for name in DIFFERENCES}
    titles = KINDS[record["task"]].metrics
    lines = [
        f"- {name.replace('_', ' ')}: {100 * one['mean']:+.1f} {titles[one['metric']]} "
        f"[{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
        for name, one in found.items()
        if one
    ]
    if not lines:
        return ["Not measured."]
    covers = next(one["covers"] for one in found.values() if one)
    return [*lines, "", f"The control is {MEANINGS['control']}. The intervals cover {covers}."]


def _pseudo_lines(record: Record) -> list[str]:
    pseudo, certificate = record["pseudo"], record.get("certificate")
    counts = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in pseudo["counts"].items())
    lines = [f"- Threshold: {_threshold(pseudo['threshold'])}", f"- Counts: {counts}"]
    if certificate is None:
        return [*lines, "- The threshold was set, not certified: what precision it gives is not known."]
    kind = "Certified" if certificate["certified"] else "Estimated with folds, not certified"
    wanted = f"precision {certificate['precision']:g} at {100 * certificate['confidence']:g} % confidence"
    return [*lines, f"- {kind}, for {certificate['about']}: {wanted}. {certificate['used']}"]


def _threshold(threshold: float | Mapping[str, float]) -> str:
    if isinstance(threshold, Mapping):
        return ", ".join(f"{name} {value:.4g}" for name, value in threshold.items())
    return f"{threshold:g}"


def _license_lines(model: Record) -> list[str]:
    return [
        "License: not stated. It depends on the images, and on the weights that the model started from.",
        license_of_start(model),
    ]


def _use_lines(record: Record, model: Record) -> list[str]:
    height, width = model["canvas"]
    kind = {"detection": "boxes", "segmentation": "mask"}[record["task"]]
    return [
        "```python",
        "import tutelage",
        "",
        'model = tutelage.load_model("FOLDER OF THIS FILE")',
        f'print(model.predict("photo.jpg")[0].{kind})',
        "```",
        "",
        f"Pictures of any size are fitted into {width} x {height} pixels. `tutelage export` makes an ONNX file.",
        "`model.json` holds architecture, classes and normalization; `model.safetensors` the weights.",
    ]


def _provenance_lines(record: Record) -> Iterator[str]:
    yield f"- `{record['command']}`"
    yield f"- tutelage {record['version']}, seed {record['seed']}, config {record['config_hash']}"
    yield f"- {', '.join(f'{name} {version}' for name, version in record['versions'].items())}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
