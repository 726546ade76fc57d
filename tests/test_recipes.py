"""The numbers of the recipes for pre-training and joint training, against what their sources state."""

import pytest

from tutelage.config import RunConfig, load_config
from tutelage.engine.optim import lr_at, num_steps_for, peak_lr

IMAGENET = 1_281_167


@pytest.mark.parametrize(
    ("recipe", "batch", "steps", "peak", "warmup", "optimizer", "decay"),
    [
        ("pretrain-b7", 2048, 218_949, 0.128, 3128, "rmsprop", 1e-5),  # arXiv:1905.11946; TPU code, efficientnet
        ("pretrain-r50", 1024, 112_603, 0.4, 6255, "sgd", 1e-4),  # TPU detection code, classification_config.py
        ("pretrain-simclr-r50", 4096, 312_785, 4.8, 3128, "lars", 1e-6),  # arXiv:2002.05709, sec. 2.2 and app. B.1
        ("pretrain-noisy-student", 4096, 109_474, 0.256, 1564, "rmsprop", 1e-5),  # arXiv:1911.04252 and its code
    ],
)
def test_pretraining_has_the_published_schedules(
    recipe: str, batch: int, steps: int, peak: float, warmup: int, optimizer: str, decay: float
) -> None:
    train = load_config(recipe).train
    assert (train.batch_size, train.optimizer, train.weight_decay) == (batch, optimizer, decay)
    assert num_steps_for(train, IMAGENET) == pytest.approx(steps, abs=1)  # theirs are rounded down, ours up
    assert (train.warmup_steps, train.momentum) == (warmup, 0.9)
    assert peak_lr(train) == pytest.approx(peak)
    assert lr_at(0, train, steps) == 0
    assert lr_at(warmup // 2, train, steps) == pytest.approx(peak / 2, rel=1e-3)
    decayed = 0.97**2 if train.schedule == "exponential" else 1  # its steps of 2.4 epochs count from the start
    assert lr_at(warmup, train, steps) == pytest.approx(peak * decayed)


@pytest.mark.parametrize("recipe", ["pretrain-b7", "pretrain-noisy-student"])
def test_rates_of_efficientnets_fall_every_2_4_of_350_epochs(recipe: str) -> None:
    train = load_config(recipe).train
    assert (train.schedule, train.passes, train.decay_rate) == ("exponential", 350, 0.97)
    assert train.decay_every * train.passes == pytest.approx(2.4)
    steps = num_steps_for(train, IMAGENET)
    for epoch in (6, 9.5, 100, 349):
        rate = lr_at(round(epoch / 350 * steps), train, steps)
        assert rate == pytest.approx(peak_lr(train) * 0.97 ** int(epoch / 2.4))


def test_pretrain_b7_is_noised_as_published() -> None:
    _is_efficientnet_b7(config := load_config("pretrain-b7"))
    assert (config.pretrain.method, config.pretrain.policy) == ("supervised", "autoaugment")


def test_pretrain_noisy_student_is_as_published() -> None:
    _is_efficientnet_b7(config := load_config("pretrain-noisy-student"))
    pretrain, options = config.pretrain, config.pretrain.noisy_student
    assert (pretrain.method, pretrain.policy) == ("noisy-student", "randaugment")
    assert (pretrain.layers, pretrain.magnitude) == (2, 27)
    assert (options.floor, options.per_class, options.ratio, options.soft) == (0.3, 130_000, 3, True)


def _is_efficientnet_b7(config: RunConfig) -> None:
    model = config.model
    assert (model.backbone, model.init, model.backbone_norm) == ("tf_efficientnet_b7", "random", "own")
    assert (config.pretrain.size, config.pretrain.least_area, config.pretrain.label_smoothing) == (600, 0.08, 0.1)
    assert (model.drop_path, config.pretrain.dropout, config.train.ema_decay) == (0.2, 0.5, 0.9999)


def test_pretrain_r50_is_as_the_tpu_detection_code() -> None:
    config = load_config("pretrain-r50")
    assert (config.model.backbone, config.model.backbone_norm, config.train.schedule) == ("resnet50", "own", "cosine")
    assert (config.pretrain.method, config.pretrain.size, config.pretrain.policy) == ("supervised", 224, "none")
    assert (config.pretrain.label_smoothing, config.pretrain.least_area, config.train.passes) == (0.0, 0.08, 90)


def test_pretrain_simclr_is_as_published() -> None:
    config = load_config("pretrain-simclr-r50")
    options = config.pretrain.simclr
    assert (config.model.backbone, config.train.schedule, config.train.passes) == ("resnet50", "cosine", 1000)
    assert (config.pretrain.method, config.pretrain.size, config.pretrain.least_area) == ("simclr", 224, 0.08)
    assert (options.temperature, options.color_strength, options.blur) == (0.1, 1.0, 0.5)
    assert (options.projection_layers, options.projection_width) == (2, 128)
    doubled = config.train.model_copy(update={"batch_size": 8192})
    assert peak_lr(doubled) == pytest.approx(0.075 * 8192**0.5, rel=1e-6)  # app. B.1


@pytest.mark.parametrize("recipe", ["pretrain-b7", "pretrain-r50", "pretrain-noisy-student", "pretrain-simclr-r50"])
def test_full_recipes_hold_out_a_hundredth_and_compute_in_bfloat16(recipe: str) -> None:
    config = load_config(recipe)
    simclr = config.pretrain.method == "simclr"
    assert (config.pretrain.simclr.probe_fraction if simclr else config.pretrain.test_fraction) == 0.01
    assert config.runtime.precision == "bfloat16"


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_joint_recipes_have_the_papers_weights(task: str) -> None:
    config = load_config(f"{task}-joint")  # arXiv:2006.06882, sec. 5 and app. H
    assert (config.task, config.joint.required, config.joint.update_norms) == (task, True, False)
    assert (config.joint.weight, config.joint.student_weight, config.student.alpha) == (0.5, 0.2, 2.0)
    assert (config.joint.size, config.joint.least_area, config.joint.label_smoothing) == (224, 0.08, 0.0)
