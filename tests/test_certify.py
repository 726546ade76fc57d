"""The certificate on tiny scenes: what is set aside stays unseen, thresholds go on, what would be void is refused."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage
from tests.tiny import TINY, annotation, arguments, mask_arguments, masks
from tutelage.cli import main
from tutelage.config import CertifyConfig, PseudoConfig, load_config
from tutelage.data.apart import set_apart
from tutelage.data.pseudo import score_limits
from tutelage.data.readers import open_index
from tutelage.reporting.certificate import certificate_lines
from tutelage.stats.certificate import Sums
from tutelage.types import InputError
from tutelage.workflows.certifying.rounds import require_certifiable
from tutelage.workflows.certifying.stage import certificate
from tutelage.workflows.options import resolve
from tutelage.workflows.prepare import prepare

CERTIFIED = "pseudo.score_threshold=certified"
LIGHT = (
    "runtime.device=cpu",
    "runtime.precision=float32",
    "runtime.workers=0",
    "runtime.threads=1",
    "postprocess.score_floor=0.0",
)


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def stages_of(run: Path) -> dict[str, dict[str, Any]]:
    return {name: record_of(run / path) for name, path in record_of(run)["stages"].items()}


@pytest.fixture(scope="module")
def certified(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit of three rounds that sets 12 of 24 labeled images aside."""
    out = tmp_path_factory.mktemp("certified") / "run"
    tutelage.fit(**three_rounds(scenes, out))
    return out


def three_rounds(scenes: Path, out: Path) -> dict[str, Any]:
    options = ("certify.fraction=0.5", CERTIFIED, "rounds=3", "teacher.min_steps=1", "student.min_steps=1")
    data = {"labeled": annotation(scenes, "test"), "test": annotation(scenes, "labeled")}
    return arguments(scenes, out, **data, overrides=(*TINY, *options))


def test_what_is_set_aside_stays_out_of_every_training(certified: Path) -> None:
    record, stages = record_of(certified), stages_of(certified)
    assert record["data"]["labeled"]["images"] == record["data"]["certify"]["images"] == 12
    for name in ("teacher", *(f"{arm}-{round_}" for arm in ("control", "student") for round_ in (1, 2, 3))):
        assert stages[name]["num_images"]["labeled"] == 12
        assert stages[name]["key"]["labeled"] == record["data"]["labeled"]["fingerprint"]
    aside = record["data"]["certify"]["fingerprint"]
    assert aside != record["data"]["labeled"]["fingerprint"]
    for round_ in "123":
        assert aside in stages[f"pseudo-{round_}"]["key"]["held_out"], "copies of it in the pool are kept out too"


def test_three_rounds_are_three_chains(certified: Path) -> None:
    stages = stages_of(certified)
    for arm in ("control", "student"):
        starts = [stages[f"{arm}-{round_}"]["key"]["init"] for round_ in (1, 2, 3)]
        assert starts == [stages[name]["hash"] for name in ("teacher", f"{arm}-1", f"{arm}-2")]
    labelers = [stages[f"pseudo-{round_}"]["key"]["teacher"] for round_ in (1, 2, 3)]
    assert labelers == [stages[name]["hash"] for name in ("teacher", "student-1", "student-2")]
    stores = [stages[f"student-{round_}"]["key"]["second"]["store"] for round_ in (1, 2, 3)]
    assert stores == [stages[f"pseudo-{round_}"]["hash"] for round_ in (1, 2, 3)]
    assert {"evaluate-student-3", "evaluate-control-3"} <= set(stages)


def test_every_round_certifies_its_own_labeler_and_goes_by_its_thresholds(certified: Path) -> None:
    record, stages = record_of(certified), stages_of(certified)
    assert [stages[f"certify-{round_}"]["about"] for round_ in "123"] == ["teacher", "student-1", "student-2"]
    for round_ in "123":
        thresholds = stages[f"certify-{round_}"]["thresholds"]
        assert stages[f"student-{round_}"]["key"]["second"]["pseudo"]["score_threshold"] == thresholds
        assert stages[f"pseudo-{round_}"]["threshold"] == thresholds
    assert record["pseudo"]["threshold"] == stages["certify-3"]["thresholds"]
    assert record["certificate"]["stage"] == "certify-3" and record["certificate"]["certified"]


def test_the_record_holds_a_whole_certificate(certified: Path) -> None:
    record = stages_of(certified)["certify-1"]
    assert record["kind"] == "certify" and record["certified"] and record["num_images"] == 12
    for name, found in record["classes"].items():
        assert len(found["thresholds"]) == len(found["precision"]) == len(found["claims"]) == len(found["recall_low"])
        assert record["thresholds"][name] in found["thresholds"]
        assert all(hits <= claims for hits, claims in zip(found["hits"], found["claims"], strict=True))
        assert found["claims"] == sorted(found["claims"], reverse=True)


def test_the_page_of_the_fit_shows_it(certified: Path) -> None:
    page = (certified / "report.html").read_text()
    record = record_of(certified)
    assert 'id="certificate"' in page and 'href="#certificate"' in page
    assert "images drawn like the labeled ones" in page and page.count("Domain gap") >= 2
    assert all(name in page for name in record["class_names"])
    assert "Set aside to certify on" in page


def test_a_lost_certificate_is_made_again_byte_for_byte(
    certified: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.workflows.fit.write_report", lambda out: out)  # its figures take longest
    out = tmp_path / "copy"
    shutil.copytree(certified, out)
    stage = out / record_of(out)["stages"]["certify-1"]
    before = record_of(stage)
    shutil.rmtree(stage)
    (out / "run.json").unlink()
    tutelage.fit(**three_rounds(scenes, out))
    assert {**record_of(stage), "seconds": 0} == {**before, "seconds": 0}


def test_a_model_is_certified_on_images_that_it_has_not_seen(certified: Path, scenes: Path, tmp_path: Path) -> None:
    teacher = certified / record_of(certified)["stages"]["teacher"]
    given = {"labeled": annotation(scenes, "val"), "unlabeled": scenes / "pool" / "images", "overrides": LIGHT}
    record = tutelage.certify(teacher, **given, out=tmp_path / "out", precision=0.5)
    assert record["certified"] and record["num_images"] == 20 and record["precision"] == 0.5
    assert "trained on none of these images" in record["unseen"] and "Domain gap" in record["gap"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "Domain gap" in page
    moved = tmp_path / "elsewhere"
    shutil.copytree(teacher / "model", moved)
    assert "cannot be known" in tutelage.certify(moved, **given, out=tmp_path / "other")["unseen"]


def test_images_that_a_model_was_trained_on_are_refused(certified: Path, scenes: Path, tmp_path: Path) -> None:
    for name in ("teacher", "student-2"):
        stage = certified / record_of(certified)["stages"][name]
        with pytest.raises(InputError, match="trained on 12 of the 24 images"):
            tutelage.certify(stage, labeled=annotation(scenes, "test"), out=tmp_path / "out", overrides=LIGHT)
    with pytest.raises(InputError, match="trained on 20 of the 20 images"):
        tutelage.certify(stage, labeled=annotation(scenes, "pool"), out=tmp_path / "out", overrides=LIGHT)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_folds_give_an_estimate_over_all_labels(scenes: Path, tmp_path: Path, task: str) -> None:
    of = {"detection": annotation, "segmentation": masks}[task]
    options = (*TINY, "certify.folds=2", "teacher.min_steps=2")
    given = {"labeled": of(scenes, "labeled"), "test": of(scenes, "val"), "recipe": f"{task}-demo"}
    record = tutelage.certify(**given, out=tmp_path / "out", overrides=options)
    assert not record["certified"] and record["folds"] == 2 and record["num_images"] == 8
    assert set(record["stages"]) == {"fold-1", "fold-2", "certify-1"}
    assert certificate_lines(record)[0].startswith("An estimate: 2 teachers, each trained on 1/2 of the labels")
    page = (tmp_path / "out" / "report.html").read_text().lower()
    assert "estimate" in page and "certified" not in page
    folds = [record_of(tmp_path / "out" / record["stages"][name]) for name in ("fold-1", "fold-2")]
    assert [fold["num_images"]["labeled"] for fold in folds] == [4, 4]
    again = tutelage.certify(**given, out=tmp_path / "out", overrides=options)
    assert again == record


def test_few_labels_are_estimated_with_folds_and_plan_says_so(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = mask_arguments(scenes, tmp_path / "run", plan=True, overrides=(*TINY, CERTIFIED))
    tutelage.fit(**few)
    shown = capsys.readouterr().err
    assert "5 folds" in shown and "too few labels" in shown
    assert "fold" in shown and "certify" in shown
    tutelage.fit(**{**few, "overrides": (*TINY, CERTIFIED, "certify.fraction=0.5")})
    shown = capsys.readouterr().err
    assert "4 of 8 labeled images" in shown and "5 folds" not in shown


def test_a_given_teacher_is_certified_only_where_it_has_not_seen_the_images(
    certified: Path, finished: Path, scenes: Path, tmp_path: Path
) -> None:
    options = (*TINY, "certify.fraction=0.5", CERTIFIED)
    sources = {"labeled": annotation(scenes, "test"), "test": annotation(scenes, "labeled")}
    own = {**sources, "teacher": certified / _teacher(certified)}
    for seed, seen in ((0, False), (1, True)):  # another seed sets others aside
        config = resolve("detection-demo", options, own, seed=seed)
        with pytest.raises(InputError, match=r"--teacher .*trained on") if seen else nullcontext():
            require_certifiable(config, prepare(config))
    bare = tmp_path / "bare"
    shutil.copytree(finished / "model", bare)
    with pytest.raises(InputError, match="cannot be known"):
        tutelage.fit(**arguments(scenes, tmp_path / "c", teacher=bare, overrides=options))
    with pytest.raises(InputError, match="folds are about teachers that are trained here"):
        folds = (*TINY, "certify.folds=2")
        tutelage.fit(**arguments(scenes, tmp_path / "d", teacher=finished / _teacher(finished), overrides=folds))


def _teacher(run: Path) -> str:
    return str(record_of(run)["stages"]["teacher"])


def test_a_store_made_elsewhere_is_not_certified(finished: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its labels were made elsewhere"):
        given = {"pseudo": finished / record_of(finished)["stages"]["pseudo-1"], "overrides": (*TINY, CERTIFIED)}
        tutelage.fit(**arguments(scenes, tmp_path / "run", **given))


def test_an_unresolved_threshold_is_refused() -> None:
    with pytest.raises(InputError, match=r"pseudo\.score_threshold=certified.*tutelage certify"):
        score_limits(PseudoConfig(score_threshold="certified"), ("a",))


def sums_of(hits: float, images: int, each: int = 20) -> Sums:
    """Images of `each` claims at every threshold, of which a share is right, more at higher thresholds."""
    thresholds = np.array([0.2, 0.4, 0.6, 0.8])
    shares = np.array([hits - 0.3, hits - 0.1, hits, hits])
    claims = np.full((4, images), each)
    right = np.round(np.clip(shares, 0, 1)[:, None] * claims).astype(int)
    return Sums(thresholds, claims, right, np.full(images, each))


def surest_alone() -> Sums:
    """Of 40 images: one claim in each of eight at the highest threshold, all right; three in four of the rest are."""
    claims = np.full((4, 40), 4)
    claims[3] = np.arange(40) < 8
    hits = np.where(np.arange(4)[:, None] < 3, 3, claims)
    return Sums(np.array([0.2, 0.4, 0.6, 0.8]), claims, hits, np.full(40, 4))


def test_a_class_that_cannot_be_shown_is_not_silenced_and_says_so() -> None:
    sums = [sums_of(1.0, 40), surest_alone(), sums_of(1.0, 40, each=0), sums_of(0.0, 40)]
    certify = CertifyConfig(precision=0.85)
    found = certificate(sums, ("good", "bad", "none", "wrong"), np.arange(40), certify)
    head = {"certified": True, "num_images": 40, "num_groups": 40, "folds": 0, "unit": "boxes", "about": "teacher"}
    assert found["classes"]["good"]["chosen"] == found["thresholds"]["good"] == 0.4
    assert found["classes"]["bad"]["chosen"] is None
    assert found["thresholds"]["bad"] == 0.2, "at 0.8 the point estimate is 1, of a twentieth of what is there"
    assert found["thresholds"]["none"] == found["thresholds"]["wrong"] == 0.4, "nothing right: the nearest to a half"
    lines = "\n".join(certificate_lines({**head, **found}))
    assert "good: precision 0.85 is shown from threshold 0.4" in lines
    assert "bad: precision 0.85 cannot be reached with these labels; the best is at least 0." in lines
    assert "Not certified: threshold 0.2, where precision and recall balance (0.75 and 0.75)." in lines
    assert "Not shown: threshold 0.2" in "\n".join(certificate_lines({**head, **found, "certified": False, "folds": 5}))
    assert "none: precision 0.85 cannot be reached with these labels; nothing was claimed" in lines
    assert "Not certified: threshold 0.4, as nothing right was found." in lines
    assert "wrong: precision 0.85 cannot be reached with these labels; none of the 800 claimed boxes is right" in lines


def test_splits_of_few_images_are_refused(scenes: Path) -> None:
    config = load_config("detection-demo")
    index = open_index(annotation(scenes, "labeled"), config.data)
    with pytest.raises(InputError, match=r"certify\.folds=9: there are 8"):
        set_apart(index, np.arange(8), CertifyConfig(folds=9), seed=0)
    with pytest.raises(InputError, match=r"certify\.fraction=0\.01: sets 0 of 8"):
        set_apart(index, np.arange(8), CertifyConfig(fraction=0.01), seed=0)
    left, apart = set_apart(index, np.arange(8), CertifyConfig(fraction=0.5), seed=0)
    assert not set(left.rows.tolist()) & set(apart.images.rows.tolist())
    assert len(left) + len(apart.images) == 8


def test_the_command_line_takes_options_without_a_model(scenes: Path, tmp_path: Path) -> None:
    arguments = ["certify", "--labeled", str(annotation(scenes, "labeled")), "--out", str(tmp_path / "out")]
    arguments += ["--recipe", "detection-demo", "certify.folds=1"]
    assert main(arguments) == 2, "one fold is refused, so the option was read as one"


def test_boxes_that_do_not_overlap_are_never_right() -> None:
    with pytest.raises(InputError, match=r"certify\.iou: found 0.*greater than 0"):
        load_config("detection-demo", ("certify.iou=0",))
