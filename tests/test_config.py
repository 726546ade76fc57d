"""Options: recipes are whole, overrides win, mistakes are named with their remedy, the hash covers results alone."""

from pathlib import Path

import pytest

from tutelage.config import (
    RunConfig,
    changed_keys,
    config_hash,
    load_config,
    option_table,
    parse_config,
    recipe_names,
)
from tutelage.types import InputError


def test_teacher_and_student_lie_over_train() -> None:
    config = parse_config({"train": {"lr": 0.1, "batch_size": 4}, "student": {"lr": 0.2}}, "test")
    assert (config.teacher.lr, config.student.lr) == (0.1, 0.2)
    assert config.student.batch_size == 4


def test_jitter_follows_the_level_unless_given() -> None:
    config = parse_config({"train": {"augment": {"level": "s4"}}, "student": {"augment": {"jitter": [0.9, 1.1]}}}, "x")
    assert config.teacher.augment.jitter == (0.5, 2.0)
    assert config.student.augment.jitter == (0.9, 1.1)
    assert config.student.augment.level == "s4"


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("recipe", "teacher_steps", "student_steps", "alpha", "fraction"),
    [
        ("detection-paper-b7", 120_000, 90_000, 0.5, 1.0),  # arXiv:2006.06882, app. H
        ("detection-paper-b7-50", 90_000, 90_000, 1.0, 0.5),
        ("detection-paper-b7-20", 45_000, 90_000, 3.0, 0.2),
        ("detection-paper-r50", 200_000, 120_000, 0.25, 1.0),
        ("detection-paper-r101", 180_000, 180_000, 0.25, 1.0),
    ],
)
def test_recipes_of_the_paper(
    recipe: str, teacher_steps: int, student_steps: int, alpha: float, fraction: float
) -> None:
    config = load_config(recipe)
    assert (config.teacher.min_steps, config.student.min_steps) == (teacher_steps, student_steps)
    assert (config.teacher.passes, config.student.passes) == (0, 0)
    assert (config.student.alpha, config.data.labeled_fraction) == (alpha, fraction)
    assert (config.student.batch_size, config.pseudo.ratio, config.student.lr) == (256, 1, 0.32)
    assert (config.student.schedule, config.student.warmup_steps, config.student.warmup_start) == ("cosine", 1000, 0.01)
    assert (config.student.augment.level, config.student.augment.jitter) == ("s4", (0.5, 2.0))
    assert config.student.augment.magnitude == (15 if recipe == "detection-paper-r101" else 10)
    assert config.student.decay_norms == (recipe == "detection-paper-r101")
    assert config.runtime.precision == ("float32" if recipe == "detection-paper-r101" else "bfloat16")
    assert config.model.num_classes == 91


def test_overrides_win_over_parts_and_recipe() -> None:
    config = load_config("detection-demo", ["seed=7", "student.alpha=3", "label.views=[identity]"], seed=1)
    assert (config.seed, config.student.alpha, config.label.views) == (7, 3.0, ("identity",))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.schedul=cosine", ["train.schedul", "unknown key", "train.schedule"]),
        ("augment.level=s4", ["augment", "unknown key", "Did you mean 'train.augment'"]),
        ("lr=0.1", ["lr", "train.lr"]),
        ("train.schedule=cosin", ["train.schedule", "'cosin'", "'cosine'"]),
        ("train.lr=fast", ["train.lr", "'fast'", "number"]),
        ("train.lr=-1", ["train.lr", "greater than 0"]),
        ("train.lr", ["key=value"]),
        ("train.lr=[", ["not valid YAML"]),
    ],
)
def test_mistakes_are_named(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_config("detection-demo", [override])
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.count("\n") == 0, "one mistake, one line"


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"detection-small.*did you mean 'detection-demo'"):
        load_config("detection-dem")


def test_a_broken_recipe_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: [1, 2\n")
    with pytest.raises(InputError, match=r"mine\.yaml: not valid YAML"):
        load_config(tmp_path / "mine.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="must be a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "mine.yaml").write_bytes(b"\x80\x02model")
    with pytest.raises(InputError, match=r"mine\.yaml: is no text .*must be YAML"):
        load_config(tmp_path / "mine.yaml")


def test_a_config_cannot_be_changed_and_runtime_is_not_compared() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    other = load_config({}, ["runtime.workers=3", "student.alpha=2"])
    assert changed_keys(config, other) == ["student.alpha: 1.0 -> 2.0"]


def test_hash_depends_on_content_not_on_order() -> None:
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_every_option_is_described() -> None:
    undescribed = [key for key, _, description in option_table() if not description and key.count(".")]
    assert undescribed == []


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match=r"pseudo\.unsure=ignore needs student\.ignored=mask"):
        load_config("detection-demo", ["pseudo.unsure=ignore", "train.ignored=drop"])


@pytest.mark.parametrize("value", ["2", "certifed", "[0.5]", "{star: 2}"])
def test_a_threshold_of_no_kind_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(InputError) as refused:
        load_config("detection-demo", (f"pseudo.score_threshold={value}",))
    (line,) = str(refused.value).splitlines()
    assert line.startswith("config pseudo.score_threshold: found ") and "by class name" in line
