"""The command line: each verb is the Python function of the same name, with the same arguments.

Verbs are imported when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Self-training for object detection and segmentation: a few labeled images and many unlabeled ones in; a "
    "better model and an honest report out. Anything in the config can be set with `key=value` at the end of a "
    "command.",
)

Labeled = Annotated[list[str], typer.Option("--labeled", help="labeled data; may be given several times")]
Unlabeled = Annotated[list[str], typer.Option("--unlabeled", help="the pool; may be given several times")]
Val = Annotated[list[str], typer.Option("--val", help="selection split: what is chosen is chosen on it")]
Test = Annotated[list[str], typer.Option("--test", help="test split: only measured on")]
Classification = Annotated[
    list[str], typer.Option("--classification", help="classified images for joint training; may be given several times")
]
LabeledList = Annotated[str, typer.Option(help="text file of the images that keep their labels")]
Images = Annotated[str, typer.Option(help="folder that image paths in annotations are relative to")]
Task = Annotated[str, typer.Option(help="detection or segmentation; the recipe's if not given")]
Recipe = Annotated[str, typer.Option(help="name of a recipe, or a YAML file (see `tutelage recipes`)")]
Out = Annotated[Path, typer.Option(help="folder of the run")]
Seed = Annotated[int | None, typer.Option(help="seed of everything drawn")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
Devices = Annotated[int, typer.Option(help="number of devices")]
Resume = Annotated[bool, typer.Option("--resume", help="continue with the folder's own config")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the run in the folder")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="any option of the config")]
Plan = Annotated[bool, typer.Option("--plan", help="print stages and estimated hours; start nothing")]
Stages = Annotated[str, typer.Option(help="folder of stages shared between runs")]
Verdicts = Annotated[str, typer.Option(help="what people said of pseudo-labels: a file that review wrote")]
Model = Annotated[str, typer.Argument(help="run, stage or model folder")]
Inputs = Annotated[list[str], typer.Argument(help="image files or folders")]


@app.command()
def demo(
    task: Annotated[str, typer.Argument(help="detection or segmentation")] = "detection",
    out: Out = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="seed of the scenes and of all that is drawn")] = 0,
    overwrite: Overwrite = False,
    overrides: Overrides = None,
) -> None:
    """Draw procedural scenes and run the whole of `fit` on them; minutes on two cores, no network.

    Example: `tutelage demo --out demo-run`
    """
    if "=" in task:  # the task was left out
        task, overrides = "detection", [task, *(overrides or [])]
    _run("demo", locals())


@app.command()
def check(
    labeled: Labeled = [],  # noqa: B006 typer copies it
    unlabeled: Unlabeled = [],  # noqa: B006
    val: Val = [],  # noqa: B006
    test: Test = [],  # noqa: B006
    task: Task = "",
    labeled_list: LabeledList = "",
    images: Images = "",
    annotations_only: Annotated[bool, typer.Option("--annotations-only", help="leave the images closed")] = False,
    sheet: Annotated[str, typer.Option(help="write a contact sheet of labeled images to this PNG file")] = "",
    augment_sheet: Annotated[str, typer.Option(help="write one image under S1 to S4 to this PNG file")] = "",
    seed: Seed = None,
    overrides: Overrides = None,
) -> None:
    """Say what is in a data set and what is wrong with it.

    Example: `tutelage check --labeled my/train.json --unlabeled my/pool/ --test my/test.json --sheet sheet.png`
    """
    _run("check", locals())


@app.command()
def fit(
    out: Out,
    labeled: Labeled = [],  # noqa: B006
    unlabeled: Unlabeled = [],  # noqa: B006
    test: Test = [],  # noqa: B006
    val: Val = [],  # noqa: B006
    task: Task = "",
    classification: Classification = [],  # noqa: B006
    labeled_list: LabeledList = "",
    images: Images = "",
    recipe: Recipe = "",
    teacher: Annotated[str, typer.Option(help="label with this finished model, train none")] = "",
    pseudo: Annotated[str, typer.Option(help="take this finished store, label nothing in round 1")] = "",
    verdicts: Verdicts = "",
    stages: Stages = "",
    seed: Seed = None,
    device: Device = "",
    devices: Devices = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    plan: Plan = False,
    overrides: Overrides = None,
) -> None:
    """Train teacher, control and student; write the better model and a report. The main job.

    Example: `tutelage fit --labeled my/train.json --unlabeled my/pool/ --test my/test.json --out run`
    """
    _run("fit", locals())


@app.command()
def train(
    out: Out,
    labeled: Labeled = [],  # noqa: B006
    unlabeled: Unlabeled = [],  # noqa: B006
    test: Test = [],  # noqa: B006
    val: Val = [],  # noqa: B006
    task: Task = "",
    classification: Classification = [],  # noqa: B006
    labeled_list: LabeledList = "",
    images: Images = "",
    recipe: Recipe = "",
    teacher: Annotated[
        str, typer.Option(help="with --pseudo or student.mode=online: the model that the student starts from")
    ] = "",
    pseudo: Annotated[str, typer.Option(help="train a student on this store and the pool it was made of")] = "",
    verdicts: Verdicts = "",
    seed: Seed = None,
    device: Device = "",
    devices: Devices = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    overrides: Overrides = None,
) -> None:
    """Train one model: a teacher on labeled images, or with `--pseudo` a student. One step of `fit`.

    Example: `tutelage train --labeled my/train.json --test my/test.json --out teacher`
    """
    _run("train", locals())


@app.command()
def label(
    model: Model,
    out: Out,
    unlabeled: Unlabeled = [],  # noqa: B006
    test: Test = [],  # noqa: B006
    recipe: Recipe = "",
    export: Annotated[
        str, typer.Option(help="also write what is kept: boxes as coco, yolo or voc, masks as png or coco")
    ] = "",
    device: Device = "",
    devices: Devices = 0,
    overwrite: Overwrite = False,
    overrides: Overrides = None,
) -> None:
    """Pseudo-label a pool with a model. One step of `fit`.

    Example: `tutelage label run/model --unlabeled my/pool/ --out store --export coco`
    """
    _run("label", locals())


@app.command()
def evaluate(
    model: Model,
    out: Out,
    test: Test = [],  # noqa: B006
    images: Images = "",
    recipe: Recipe = "",
    device: Device = "",
    devices: Devices = 0,
    overwrite: Overwrite = False,
    overrides: Overrides = None,
) -> None:
    """Measure a model on labeled images, with intervals. One step of `fit`.

    Example: `tutelage evaluate run/model --test my/test.json --out measured`
    """
    _run("evaluate", locals())


@app.command()
def certify(
    out: Out,
    model: Annotated[str, typer.Argument(help="run, stage or model folder; left out, teachers are trained")] = "",
    labeled: Labeled = [],  # noqa: B006
    unlabeled: Annotated[list[str], typer.Option("--unlabeled", help="the pool, to say how far it is")] = [],  # noqa: B006
    test: Test = [],  # noqa: B006
    val: Val = [],  # noqa: B006
    precision: Annotated[float | None, typer.Option(help="that thresholds have to be shown to meet; 0.9")] = None,
    task: Task = "",
    labeled_list: LabeledList = "",
    images: Images = "",
    recipe: Recipe = "",
    stages: Stages = "",
    seed: Seed = None,
    device: Device = "",
    devices: Devices = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    overrides: Overrides = None,
) -> None:
    """Say what precision and recall pseudo-labels have, on human labels that the teacher was not trained on.

    Example: `tutelage certify run/model --labeled my/others.json --out certificate --precision 0.9`
    """
    if "=" in model and not Path(model).exists():  # the model was left out
        model, overrides = "", [model, *(overrides or [])]
    _run("certify", locals())


@app.command()
def predict(
    model: Model,
    inputs: Inputs,
    out: Out,
    format: Annotated[str, typer.Option(help="coco or yolo for boxes; png or coco for masks")] = "",
    score: Annotated[float, typer.Option(help="least score of a box that is written")] = 0.05,
    pictures: Annotated[bool, typer.Option("--pictures", help="also write pictures with boxes or masks")] = False,
    device: Device = "",
    overwrite: Overwrite = False,
) -> None:
    """Find objects, or the class of every pixel, in image files or folders.

    Example: `tutelage predict run/model my/photos/ --out found --pictures`
    """
    _run("predict", locals())


@app.command()
def export(
    model: Model,
    out: Out,
    format: Annotated[str, typer.Option(help="onnx")] = "onnx",
    nms: Annotated[str, typer.Option(help="of a detector: suppression inside (the default) or outside")] = "",
    masks: Annotated[str, typer.Option(help="of a segmenter: classes (the default) or logits")] = "",
    overwrite: Overwrite = False,
    overrides: Overrides = None,
) -> None:
    """Write a model for other runtimes: an ONNX file that takes pictures and gives boxes or masks.

    Example: `tutelage export run/model --out exported`
    """
    _run("export", locals())


@app.command()
def benchmark(
    model: Model,
    batch_sizes: Annotated[str, typer.Option(help="pictures a pass, several with commas between")] = "1,8",
    onnx: Annotated[str, typer.Option(help="an ONNX file to time too; the one beside the model if not given")] = "",
    runs: Annotated[int, typer.Option(help="timed passes for each batch size")] = 30,
    warmup: Annotated[int, typer.Option(help="passes before them")] = 3,
    json: Annotated[bool, typer.Option("--json", help="print JSON and nothing else")] = False,
    out: Annotated[str, typer.Option(help="write the same to this JSON file")] = "",
    device: Device = "",
) -> None:
    """Time a model: latency and images a second, of PyTorch and of its ONNX file.

    Example: `tutelage benchmark exported --batch-sizes 1,8`
    """
    _run("benchmark", locals())


@app.command()
def pretrain(
    source: Annotated[str, typer.Argument(help="classified images: class folders, a csv or tars; for simclr any")],
    out: Out,
    unlabeled: Unlabeled = [],  # noqa: B006
    teacher: Annotated[str, typer.Option(help="noisy-student: a finished classifier; else one is trained")] = "",
    recipe: Recipe = "",
    seed: Seed = None,
    device: Device = "",
    devices: Devices = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    overrides: Overrides = None,
) -> None:
    """Pre-train a backbone on classified images; the result is what `model.init=OUT` takes.

    Example: `tutelage pretrain my/classes/ --out backbone train.passes=30`
    """
    _run("pretrain", locals())


@app.command()
def report(run: Annotated[str, typer.Argument(help="folder of a finished fit")]) -> None:
    """Write the report page of a finished run again.

    Example: `tutelage report run`
    """
    _run("report", locals())


@app.command()
def review(
    run: Annotated[str, typer.Argument(help="folder of a finished fit, or a pseudo-label store")],
    out: Annotated[str, typer.Option(help="folder of page, exports and verdicts.json; RUN/review if not given")] = "",
    serve: Annotated[
        bool, typer.Option("--serve", help="show the page on this machine; save verdicts directly")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="with --serve: 0 takes a free one")] = 0,
    export: Annotated[str, typer.Option(help="write for a tool: label-studio, cvat, coco or fiftyone")] = "",
    import_: Annotated[str, typer.Option("--import", help="take in a file or folder that such a tool wrote")] = "",
    limit: Annotated[int, typer.Option(help="images, the most informative first; 0 is all")] = 200,
    round_: Annotated[int, typer.Option("--round", help="whose pseudo-labels; 0 is the last")] = 0,
) -> None:
    """Look through pseudo-labels and correct them: on a page, or in an annotation tool and back.

    Example: `tutelage review run`
    """
    _run("review", locals())


@app.command()
def recipes() -> None:
    """List the shipped recipes.

    Example: `tutelage recipes`
    """
    _run("recipes", locals())


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="name or YAML file")],
    options: Annotated[bool, typer.Option("--options", help="list every option with its meaning instead")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="print what each stage costs instead")] = False,
    json: Annotated[bool, typer.Option("--json", help="with --cost: print JSON and nothing else")] = False,
    flops: Annotated[float, typer.Option(help="FLOP/s that a device sustains; measured in ten seconds otherwise")] = 0,
    labeled: Labeled = [],  # noqa: B006
    unlabeled: Unlabeled = [],  # noqa: B006
    classification: Classification = [],  # noqa: B006
    labeled_images: Annotated[int, typer.Option(help="number of labeled images, in the place of --labeled")] = 0,
    pool_images: Annotated[int, typer.Option(help="number of pool images, in the place of --unlabeled")] = 0,
    overrides: Overrides = None,
) -> None:
    """Print a recipe whole and resolved, with the size of its network; or what its stages cost.

    Example: `tutelage show detection-paper-b7 --cost --labeled-images 5000 --pool-images 100000`
    """
    _run("show", locals())


def _run(verb: str, arguments: dict[str, Any]) -> None:
    """Calls the Python function of the same name; what a user can mend, or stopped, ends without a traceback."""
    import tutelage
    from tutelage.engine.runtime import Interrupted
    from tutelage.files import mendable

    if "overrides" in arguments:
        arguments["overrides"] = tuple(arguments["overrides"] or ())
    try:
        with _terminations_interrupt():
            getattr(tutelage, verb)(**arguments)
    except (InputError, OSError) as error:
        told = mendable(error) if isinstance(error, OSError) else error
        if told is None:
            raise
        print(f"tutelage: {told}", file=sys.stderr)
        raise typer.Exit(2) from None
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"tutelage: {str(stop) or 'interrupted; the same command continues'}", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def _terminations_interrupt() -> Iterator[None]:
    """While the context lasts, SIGTERM ends like Ctrl-C; handlers are the main thread's to set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    0 done; 2 something the user can mend; 130 interrupted, the same command continues. Our own faults are raised.
    """
    try:
        app(args=arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def entry() -> None:
    """The console script: a fault of ours ends with its traceback and code 1."""
    sys.exit(main())
