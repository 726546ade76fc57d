"""Noisy Student's parts: balancing, the store of classes, the objective."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tests.test_classification import MODEL, batch
from tutelage.config import PseudoConfig
from tutelage.data.duplicates import HashBook
from tutelage.data.index import Index
from tutelage.data.pseudo import Leak, Manifest, Outcome, StoreWriter, open_store, store_index
from tutelage.data.pseudo.balancing import balance
from tutelage.data.pseudo.classes import stored_probabilities
from tutelage.engine.noisy_student import NoisyStudent, SoftTargets
from tutelage.tasks.classification import ClassificationTask
from tutelage.types import Prediction, Skipped

NAMES = ("cat", "dog", "owl")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn_predictions(seed: int, count: int = 400) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Classes of unequal frequency with probabilities of at least 1 / K."""
    labels = rng(seed).choice(5, count, p=[0.5, 0.25, 0.15, 0.08, 0.02])
    return labels, rng(seed + 1).uniform(0.2, 1, count).astype(np.float32)


def used_by_the_authors_rule(
    labels: NDArray[np.int64], scores: NDArray[np.float32], floor: float, per_class: int, draws: NDArray[np.float64]
) -> list[int]:
    """The same rule image by image: thresholds of 1, 0.99, ... down to the floor until the target is met."""
    copies = [0] * len(labels)
    for label in set(labels.tolist()):
        own = [row for row in range(len(labels)) if labels[row] == label and scores[row] >= np.float32(floor)]
        taken: list[int] = []
        for percent in range(100, -1, -1):
            taken = [row for row in own if scores[row] >= np.float32(percent / 100)]
            if len(taken) >= per_class:
                break
        for row in taken:
            share = per_class / len(taken)
            copies[row] = int(share) + int(draws[row] < share - int(share))
    return copies


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_class", [3, 20, 75, 500])
def test_balancing_follows_the_authors_rule(seed: int, per_class: int) -> None:
    labels, scores = drawn_predictions(seed)
    copies, _ = balance(labels, scores, num_classes=6, floor=0.3, per_class=per_class, rng=rng(seed))
    draws = rng(seed).random(len(labels))
    assert copies.tolist() == used_by_the_authors_rule(labels, scores, 0.3, per_class, draws)


def test_balancing_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    scores = np.array([0.99, 0.905, 0.9, 0.5, 0.3, 0.299, 0.2], np.float32)
    copies, counts = balance(labels, scores, num_classes=4, floor=0.3, per_class=2, rng=rng())
    assert copies[3] == 0, "the target is met above"
    assert 1 <= copies[:3].sum() <= 3, "0.905 and 0.9 share a bin: three images are thinned to about two"
    assert copies[4:].tolist() == [2, 0, 0], "0.3 is at the floor and stands for two; what is below is not used"
    columns = {name: value.tolist() for name, value in vars(counts).items() if name not in ("per_class", "used")}
    assert columns == {"found": [4, 2, 1, 0], "kept": [4, 1, 0, 0], "taken": [3, 1, 0, 0]}
    assert counts.used.tolist() == [copies[:3].sum(), 2, 0, 0]
    assert counts.as_dict((*NAMES, "fox"))["classes"]["dog"] == {"found": 2, "kept": 1, "taken": 1, "used": 2}


def test_copies_have_the_target_as_their_mean() -> None:
    labels, scores = np.repeat([0, 1], [300, 7]), np.ones(307, np.float32)
    used = [
        balance(labels, scores, num_classes=2, floor=0.3, per_class=100, rng=rng(seed))[1].used for seed in range(200)
    ]
    # 300 images with chance 1/3: deviation of the mean of 200 sums 0.58; 7 images 14 times and 2/7 more: 0.08
    assert np.mean(used, axis=0) == pytest.approx([100, 100], abs=2.5)
    assert np.std(used, axis=0)[1] < 2


def test_the_target_is_the_median_class_unless_given() -> None:
    labels, scores = np.repeat([0, 1, 2, 4], [9, 5, 2, 1]), np.ones(17, np.float32)
    _, counts = balance(labels, scores, num_classes=5, floor=0.3, per_class=0, rng=rng())
    assert counts.per_class == 4, "the median of 9, 5, 2, 1 is 3.5, which rounds to even; empty classes do not count"


def probabilities(row: int) -> NDArray[np.float32]:
    values = np.array([1 + row % 3, 2 * (row % 2), 0.5], np.float32)
    return values / values.sum()


def outcomes(count: int) -> list[Outcome]:
    """Image 2 is broken, 3 leaks."""
    made: list[Outcome] = [Prediction(row, (10, 20), probabilities=probabilities(row)) for row in range(count)]
    made[2], made[3] = Skipped(2, "broken"), Leak(3, "held out")
    return made


def make_store(folder: Path, pool: Index) -> StoreWriter:
    digest = "ab" * 32
    return StoreWriter(
        folder,
        Manifest(digest, 1, NAMES, 0.0, {"size": 8}, pool.fingerprint, (), digest, len(pool), 4, annotation="classes"),
    )


def test_a_store_of_classes_is_continued_and_read_back(tmp_path: Path) -> None:
    pool = Index.build(roots=[tmp_path], paths=[f"{row}.png" for row in range(10)], class_names=(), annotated=False)
    made = outcomes(10)
    whole = make_store(tmp_path / "whole", pool)
    for part in whole.missing_parts():
        whole.write_part(part, [made[row] for row in whole.manifest.rows(part)], pool)
    whole.finish()
    stopped = make_store(tmp_path / "stopped", pool)
    stopped.write_part(1, made[4:8], pool)
    assert make_store(tmp_path / "stopped", pool).missing_parts() == [0, 2]
    for part in (2, 0):
        stopped.write_part(part, [made[row] for row in stopped.manifest.rows(part)], pool)
    stopped.finish()

    store = open_store(tmp_path / "stopped")
    assert store.content == open_store(tmp_path / "whole").content
    kept = [row for row in range(10) if row not in (2, 3)]
    expected = np.array([probabilities(row) for row in kept])
    read = stored_probabilities(store.folder, store.manifest.num_parts)
    assert read.dtype == np.float16
    np.testing.assert_allclose(read, expected, rtol=2**-11)
    above = expected.max(axis=1) >= 0.6
    assert 0 < above.sum() < len(kept)
    pseudo = PseudoConfig(score_threshold=0.6, empty="drop")
    counts = store.counts(pseudo)
    assert (counts["labeled"], counts["skipped"], counts["leaks"]) == (above.sum(), 1, 1)
    index = store_index(store, pool, pseudo)
    assert index.relative_paths().to_pylist() == [f"{row}.png" for row in np.array(kept)[above]]
    assert index.image_classes().tolist() == expected.argmax(axis=1)[above].tolist()


def test_rows_of_an_index_can_stand_several_times(tmp_path: Path) -> None:
    index = Index.build(roots=[tmp_path], paths=["a", "b", "c"], class_names=("x", "y"), image_class=[0, 1, 1])
    repeated = index.select(np.array([2, 0, 0, 2, 1])).select(np.array([0, 1, 2, 4]))
    assert repeated.relative_paths().to_pylist() == ["c", "a", "a", "b"]
    assert repeated.image_classes().tolist() == [1, 0, 0, 1]
    assert repeated.fingerprint != index.select(np.array([2, 0, 1])).fingerprint


def test_pictures_are_recognized_as_they_were_given() -> None:
    pictures = [rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(24, 0).repeat(24, 1) for seed in range(3)]
    book = HashBook.of_pictures(iter(pictures[:2]))
    smaller = pictures[1][::2, ::2]
    assert book.contains(pictures[0]) and book.contains(smaller) and not book.contains(pictures[2])
    assert not HashBook.of_pictures([]).contains(pictures[0])


def objective(soft: SoftTargets | None, smoothing: float = 0.1) -> NoisyStudent:
    torch.manual_seed(0)
    task = ClassificationTask(MODEL.model_copy(update={"backbone": "test_resnet"}), smoothing, NAMES)
    return NoisyStudent(task, task.build_model().eval(), soft)


def test_soft_loss_is_mean_labeled_plus_ratio_times_mean_pool() -> None:
    given = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.1, 0.9]], dtype=torch.float16)
    # second stream of 6 rows, in which image 1 stands four times; the batch shows rows 0 .. 3
    method = objective(SoftTargets(given, torch.tensor([1, 0, 1, 1, 0, 1])))
    batches = {"labeled": batch([0, 2]), "second": batch([-1, -1, -1, -1])}
    targets = method.prepare(batches)
    sums, counts = method(batches, targets), method.counts(targets)

    soft = given.double()[[1, 0, 1, 1]]
    soft = (soft / soft.sum(dim=1, keepdim=True)).float()
    model = copy.deepcopy(method.model)
    labeled, pool = (model(batches[name].images[:, 0], batches[name].valid[:, 0]) for name in ("labeled", "second"))
    human = F.cross_entropy(labeled, torch.tensor([0, 2]), label_smoothing=0.1, reduction="sum")
    teacher = -(soft * pool.log_softmax(dim=1)).sum()
    torch.testing.assert_close(method.total(sums, counts), (human + teacher) / (2 + 1))  # images + 1


def test_hard_loss_takes_the_classes_of_the_images_smoothed() -> None:
    method = objective(None)
    batches = {"labeled": batch([0, 2]), "second": batch([1, 1, 0])}
    targets = method.prepare(batches)
    sums = method(batches, targets)
    logits = method.model(batches["second"].images[:, 0], batches["second"].valid[:, 0])
    expected = F.cross_entropy(logits, torch.tensor([1, 1, 0]), label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(sums["second"]["class"], expected)
    assert method.counts(targets).tolist() == [2, 3]
