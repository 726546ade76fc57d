"""The main job for masks end to end, on tiny procedural scenes: what the tasks share is tested with boxes."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tutelage
from tests.tiny import TINY, annotation, mask_arguments, masks
from tutelage.cli import main
from tutelage.config import DataConfig
from tutelage.data.masks import decode_png, read_mask
from tutelage.data.readers import open_index
from tutelage.tasks.segmentation import SegmentationTask
from tutelage.types import IGNORE, Batch, InputError, Prediction

QUICK = ("runtime.workers=0", "runtime.threads=1")


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def test_a_fit_leaves_record_model_report_and_stages(finished_masks: Path) -> None:
    record = record_of(finished_masks)
    assert record["task"] == "segmentation" and record["decided_on"] == "selection split"
    assert set(record["stages"]) >= {"teacher", "pseudo-1", "control-1", "student-1", "evaluate-val-student-1"}
    assert set(record["student"]["metrics"]) == {"miou", "pixel_accuracy", "boundary_iou", "per_class"}
    assert list(record["student"]["metrics"]["per_class"]) == record["class_names"]
    assert record["pseudo"]["counts"]["pixels"] == 20 * 64 * 64
    page = (finished_masks / "report.html").read_text()
    assert record["verdict"].split(" by ")[0].split(" (")[0] in page and "mIoU" in page
    for name in ("student_minus_control", "student_minus_teacher", "control_minus_teacher"):
        difference = record["differences"][name]
        assert difference["metric"] == "miou" and difference["low"] <= difference["mean"] <= difference["high"]


def test_teacher_control_and_student_differ_as_they_should(finished_masks: Path) -> None:
    stages = {
        name: json.loads((finished_masks / path / "run.json").read_text())
        for name, path in record_of(finished_masks)["stages"].items()
    }
    control, student = stages["control-1"], stages["student-1"]
    differing = {key for key in student["config"] if student["config"][key] != control["config"][key]}
    assert differing == {"second_stream"}
    assert student["key"]["init"] == control["key"]["init"] == stages["teacher"]["hash"]


def test_figures_of_the_record_are_those_of_the_stored_masks(finished_masks: Path) -> None:
    record = record_of(finished_masks)
    folder = finished_masks / record["stages"]["evaluate-student-1"]
    truth, found = (
        np.concatenate([decode_png(png).ravel() for png in pq.read_table(folder / name)["mask"].to_pylist()])
        for name in ("truth.parquet", "predictions.parquet")
    )
    valid = truth != IGNORE
    ious = [
        ((truth == k) & (found == k)).sum() / (valid & ((truth == k) | (found == k))).sum()
        for k in np.unique(truth[valid])
    ]
    assert record["student"]["metrics"]["miou"] == pytest.approx(np.mean(ious), abs=1e-12)
    assert record["student"]["metrics"]["pixel_accuracy"] == pytest.approx((truth == found)[valid].mean(), abs=1e-12)


def test_a_lost_stage_is_made_again_and_equals_the_first(finished_masks: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished_masks, out)
    stages = record_of(out)["stages"]
    for lost in ("pseudo-1", "student-1", "evaluate-student-1"):
        shutil.rmtree(out / stages[lost])
    (out / "run.json").unlink()
    again = tutelage.fit(**mask_arguments(scenes, out, val=masks(scenes, "val")))
    assert again["student"]["metrics"] == record_of(finished_masks)["student"]["metrics"]
    for name in (f"{stages['student-1']}/model/model.safetensors", f"{stages['pseudo-1']}/part-00000.masks.parquet"):
        assert (out / name).read_bytes() == (finished_masks / name).read_bytes()


def test_rounds_and_repeats_and_the_hidden_arm(scenes: Path, tmp_path: Path) -> None:
    rounds = ("rounds=2", "repeats=2", "hidden_arm=true", "student.min_steps=2", "teacher.min_steps=2")
    hidden = ("data.labeled_fraction=0.5", "data.rest_as_pool=true")
    changed = {"labeled": masks(scenes, "pool"), "unlabeled": (), "overrides": (*TINY, *rounds, *hidden)}
    record = tutelage.fit(**mask_arguments(scenes, tmp_path / "run", **changed))
    assert {"student-2-repeat2", "hidden-2", "pseudo-2-repeat2"} <= set(record["stages"])
    assert record["differences"]["hidden_minus_control"] is not None
    assert len(record["student"]["every_repeat"]) == 2


def test_nothing_above_the_threshold_stops_before_the_student(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"score_threshold.*--stages"):
        tutelage.fit(**mask_arguments(scenes, out, overrides=(*TINY, "pseudo.score_threshold=1.0")))
    assert list(out.glob("stages/pseudo-1-*/manifest.json")), "the store is kept"
    assert not list(out.glob("stages/student-1-*")) and not list(out.glob("stages/control-1-*"))


@pytest.mark.parametrize(
    ("limits", "message"), [("{crss: 0.4}", "unknown class 'crss'.*mean 'cross'"), ("{cross: 0.4}", "no threshold for")]
)
def test_thresholds_of_other_classes_are_refused_before_any_work(
    finished_masks: Path, scenes: Path, tmp_path: Path, limits: str, message: str
) -> None:
    changed = (*TINY, f"pseudo.score_threshold={limits}")
    with pytest.raises(InputError, match=message):
        tutelage.fit(**mask_arguments(scenes, tmp_path / "run", overrides=changed))
    pool = scenes / "pool" / "images"
    with pytest.raises(InputError, match=message):
        tutelage.label(finished_masks, unlabeled=pool, out=tmp_path / "store", device="cpu", overrides=changed[-1:])
    assert not list(tmp_path.glob("*/stages/teacher-*")) and not list(tmp_path.glob("store/part-*"))


def test_a_test_set_without_any_class_of_the_model_is_refused(
    finished_masks: Path, scenes: Path, tmp_path: Path
) -> None:
    foreign = ("data.classes=[a, b, c, d, e]", *QUICK)
    with pytest.raises(InputError, match=r"--test: no class is one of the model's: it has .*, the data a, b, c, d, e"):
        tutelage.evaluate(
            finished_masks, test=masks(scenes, "test"), out=tmp_path / "out", device="cpu", overrides=foreign
        )


def test_evaluate_gives_the_figures_of_the_fit_and_other_sizes_others(
    finished_masks: Path, scenes: Path, tmp_path: Path
) -> None:
    record = record_of(finished_masks)
    student = finished_masks / record["stages"]["student-1"]
    given = {"test": masks(scenes, "test"), "device": "cpu"}
    same = tutelage.evaluate(student, out=tmp_path / "same", overrides=(*QUICK, "eval.resamples=20"), **given)
    assert same["metrics"] == record["student"]["metrics"]
    half = tutelage.evaluate(student, out=tmp_path / "half", overrides=(*QUICK, "eval.size=32"), **given)
    pixels = [sum(one["pixels"] for one in each["metrics"]["per_class"].values()) for each in (same, half)]
    assert pixels == [24 * 64 * 64, 24 * 32 * 32]


def test_a_source_with_splits_is_measured_on_its_test_split_and_kept_out_of_the_pool(
    finished_masks: Path, scenes: Path, tmp_path: Path
) -> None:
    for split in ("labeled", "test"):
        for kind in ("images", "masks"):
            target = tmp_path / "set" / kind / ("train" if split == "labeled" else split)
            shutil.copytree(scenes / split / kind, target)
    shutil.copy(scenes / "test" / "classes.json", tmp_path / "set")
    found = tutelage.evaluate(
        finished_masks, test=tmp_path / "set", out=tmp_path / "found", device="cpu", overrides=QUICK
    )
    given = record_of(finished_masks)[record_of(finished_masks)["recommended"]]["metrics"]
    assert found["metrics"]["miou"] == given["miou"], "the test images, not the first split"
    stored = tutelage.label(
        finished_masks,
        unlabeled=tmp_path / "set" / "images" / "test",
        test=tmp_path / "set",
        out=tmp_path / "store",
        device="cpu",
        overrides=(*QUICK, "label.part_size=32"),
    )
    assert stored["counts"]["leaks"] == 24 and stored["counts"]["labeled"] == 0


@pytest.mark.parametrize(("format", "place"), [("png", "masks"), ("coco", "masks.json")])
def test_exported_pseudo_labels_are_labels_again(
    finished_masks: Path, scenes: Path, tmp_path: Path, format: str, place: str
) -> None:
    pool, store = scenes / "pool" / "images", tmp_path / "store"
    settings = (*QUICK, "pseudo.score_threshold=0.3")
    tutelage.label(
        finished_masks,
        unlabeled=pool,
        out=store,
        export=format,
        device="cpu",
        overrides=(*settings, "label.part_size=8"),
    )
    data = DataConfig(background="ignore")
    exported = open_index(store / "export" / place, data, images=str(pool), annotation="masks")
    assert len(exported) == 20 and set(exported.class_names) <= set(record_of(finished_masks)["class_names"])
    kept = sum(int((read_mask(exported.mask_file(row)) != IGNORE).sum()) for row in range(20))
    assert kept == tutelage_counts(store)["pixels_kept"]


def test_a_stopped_labeling_continues_with_the_same_batches(
    finished_masks: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    predict = SegmentationTask.predict

    def watched(self: SegmentationTask, model: Any, batch: Batch, label: Any = None) -> list[Prediction]:
        seen.append(batch.image_ids.tolist())
        return predict(self, model, batch, label)

    monkeypatch.setattr(SegmentationTask, "predict", watched)
    store, settings = tmp_path / "store", (*QUICK, "label.part_size=6", "teacher.batch_size=4")
    for lost in ((), ("part-00001.*", "part-00002.images*", "manifest.json", "run.json")):
        for path in [path for pattern in lost for path in store.glob(pattern)]:
            path.unlink()
        tutelage.label(
            finished_masks, unlabeled=scenes / "pool" / "images", out=store, device="cpu", overrides=settings
        )
    assert seen[:7] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14], [15, 16, 17], [18, 19]]
    assert seen[7:] == seen[2:6]


def tutelage_counts(store: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads((store / "run.json").read_text())["counts"]
    return counts


def test_predict_writes_masks_and_pictures(finished_masks: Path, scenes: Path, tmp_path: Path) -> None:
    pool = scenes / "pool" / "images"
    command = ["predict", str(finished_masks / "model"), str(pool), "--device", "cpu", "--pictures"]
    assert main([*command, "--out", str(tmp_path / "found")]) == 0
    written = sorted((tmp_path / "found").rglob("masks/*.png"))
    assert len(written) == 20
    classes = np.unique([np.asarray(Image.open(path)) for path in written])
    assert set(classes.tolist()) <= set(range(5)), "every pixel gets a class"
    assert len(list((tmp_path / "found" / "pictures").rglob("*.jpg"))) == 20
    assert main([*command, "--out", str(tmp_path / "yolo"), "--format", "yolo"]) == 2


def test_predicted_masks_are_not_kept_once_they_are_written(
    finished_masks: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[weakref.ref[Any]] = []
    alive: list[int] = []
    predict = SegmentationTask.predict

    def watched(self: SegmentationTask, model: Any, batch: Batch, label: Any = None) -> list[Prediction]:
        alive.append(sum(mask() is not None for mask in masks))
        found = predict(self, model, batch, label)
        masks.extend(weakref.ref(one.mask) for one in found)
        return found

    monkeypatch.setattr(SegmentationTask, "predict", watched)
    found = tutelage.predict(finished_masks, [scenes / "pool" / "images"], out=tmp_path / "found", device="cpu")
    assert [one.mask for one in found] == [None] * 20 and [one.size for one in found] == [(64, 64)] * 20
    assert len(alive) == 2 and alive[1] <= 2, "of 16 in the first batch"


def test_predict_takes_every_split_of_a_folder_once(finished_masks: Path, scenes: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            shutil.copytree(
                scenes / ("labeled" if split == "train" else "pool") / kind, tmp_path / "set" / kind / split
            )
    shutil.copy(scenes / "labeled" / "classes.json", tmp_path / "set")
    given = [tmp_path / "set", tmp_path / "set" / "images" / "train"]
    assert len(tutelage.predict(finished_masks, given, out=tmp_path / "out", device="cpu")) == 28


def test_train_one_model_and_a_student_of_a_store(finished_masks: Path, scenes: Path, tmp_path: Path) -> None:
    record = record_of(finished_masks)
    stages = {name: finished_masks / path for name, path in record["stages"].items()}
    given = mask_arguments(scenes, tmp_path / "run", teacher=stages["teacher"], pseudo=stages["pseudo-1"])
    trained = tutelage.train(**given | {"val": masks(scenes, "val")})
    assert trained["measured"]["miou"] == record["student"]["metrics"]["miou"]


def test_the_surest_share_is_that_of_the_thresholds_that_the_record_names(
    finished_masks: Path, scenes: Path, tmp_path: Path
) -> None:
    stages = {name: finished_masks / path for name, path in record_of(finished_masks)["stages"].items()}
    given = {"teacher": stages["teacher"], "pseudo": stages["pseudo-1"]}
    share = (*TINY, "pseudo.class_share=0.25")
    tutelage.fit(**mask_arguments(scenes, tmp_path / "fit", **given, overrides=share))
    record = record_of(tmp_path / "fit")
    limits = record["pseudo"]["threshold"]
    assert len(set(limits.values())) > 1
    assert record["pseudo"]["counts"]["pixels_kept"] < record_of(finished_masks)["pseudo"]["counts"]["pixels_kept"]
    student = record_of(tmp_path / "fit" / record["stages"]["student-1"])
    named = (*TINY, "pseudo.score_threshold=" + json.dumps(limits).replace('"', ""))
    for name, overrides in (("share", share), ("named", named)):
        trained = tutelage.train(**mask_arguments(scenes, tmp_path / name, **given, overrides=overrides))
        assert trained["hash"] == student["hash"], "one training, however its thresholds were given"
    exported = tutelage.label(
        finished_masks, unlabeled=scenes / "pool" / "images", out=tmp_path / "store", device="cpu",
        overrides=("pseudo.score_threshold=0.1", "pseudo.class_share=0.25"),
    )  # fmt: skip
    assert len(set(exported["threshold"].values())) > 1


def test_models_of_the_other_task_are_refused(
    finished: Path, finished_masks: Path, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds a model for detection; one for segmentation is needed"):
        tutelage.fit(**mask_arguments(scenes, tmp_path / "run", teacher=finished))
    with pytest.raises(InputError, match="masks"):
        tutelage.evaluate(finished, test=masks(scenes, "test"), out=tmp_path / "measured")
    with pytest.raises(InputError, match="--task detection: the recipe is for segmentation"):
        tutelage.fit(**mask_arguments(scenes, tmp_path / "other", task="detection"))
    labeled = open_index(annotation(scenes, "test"), DataConfig(), annotation="masks")
    assert labeled.has_masks, "polygons are masks where masks are wanted"
