"""From recipes, files and `key=value` to a `RunConfig`, and on to hashes; mistakes are said with their remedy."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tutelage.config.part import Part
from tutelage.config.parts import RunConfig, merge
from tutelage.types import InputError

NO_RESULT = ("runtime", "sources", "guard")
"""Parts that change no result: devices, where data lies, and what happens to a run that is lost."""


def load_config(
    recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), **parts: Mapping[str, Any]
) -> RunConfig:
    """A resolved config from a recipe's name or a YAML file, with `key=value` overrides on top.

    Args:
        recipe: name of a shipped recipe, path of a YAML file, or plain data.
        overrides: `dotted.key=value`, the value in YAML syntax; they win over everything.
        parts: options by part (`sources={...}`), laid on the recipe before the overrides.

    Raises:
        InputError: unknown recipe, key or value; the message names the dotted key and the nearest valid one.
    """
    raw = merge(recipe if isinstance(recipe, Mapping) else _read_recipe(recipe), parts)
    for override in overrides:
        raw = merge(raw, _nested(*_split_override(override)))
    return parse_config(raw, "the model's card" if isinstance(recipe, Mapping) else str(recipe))


def parse_config(raw: Mapping[str, Any], place: str) -> RunConfig:
    """A `RunConfig` from plain data; `place` names its origin in errors (`InputError`)."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError("\n".join(_explain(place, problem) for problem in _own_problems(error))) from None


def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    folder = resources.files("tutelage") / "recipes"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def config_hash(*parts: Part | Mapping[str, Any] | str | int | float | bool | None) -> str:
    """Hex digest of config parts and plain values, the same on every machine."""
    plain = [part.model_dump(mode="json") if isinstance(part, Part) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def changed_keys(one: RunConfig, other: RunConfig) -> list[str]:
    """Dotted keys in which results of two configs differ, each as `key: one -> other`; see `NO_RESULT`."""
    left, right = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    keys = [key for key in sorted({*left, *right}) if key.partition(".")[0] not in NO_RESULT]
    return [f"{key}: {left.get(key)} -> {right.get(key)}" for key in keys if left.get(key) != right.get(key)]


def option_table() -> list[tuple[str, str, str]]:
    """Every option as (dotted key, default, description), for help and docs."""
    return list(_options(RunConfig, ""))


def _options(part: type[Part], prefix: str) -> Iterable[tuple[str, str, str]]:
    for name, field in part.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Part):
            yield from _options(field.annotation, f"{prefix}{name}.")
        else:
            description, words = field.description or "", _words(field.annotation)
            told = description if all(word in description for word in words) else f"{description} ({', '.join(words)})"
            yield f"{prefix}{name}", json.dumps(field.default), told


def _words(annotation: Any) -> list[str]:
    """The words that a field takes, if it is a choice."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _words(part)]


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    if str(recipe) in recipe_names():
        text = (resources.files("tutelage") / "recipes" / f"{recipe}.yaml").read_text()
    elif Path(recipe).is_file():
        text = _text_of(Path(recipe))
    else:
        raise InputError(
            f"recipe {recipe}: neither a shipped recipe nor a file; choose one of {', '.join(recipe_names())}"
            f"{_suggestion(str(recipe), recipe_names())}."
        )
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also dates that there are not, and endless depth
        raise InputError(f"recipe {recipe}: not valid YAML: {' '.join(str(error).split())}. Mend the file.") from None
    if not isinstance(raw, dict):
        raise InputError(f"recipe {recipe}: holds {type(raw).__name__}; it must be a mapping of config parts.")
    return raw


def _text_of(recipe: Path) -> str:
    try:
        return recipe.read_text()
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {recipe}: is no text ({error}); it must be YAML in UTF-8. Give a recipe.") from None


def _split_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"option {override!r}: must have the form key=value, for example train.lr=0.1.")
    try:
        return key, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"option {override!r}: the value is not valid YAML. Quote it.") from None


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def _own_problems(error: ValidationError) -> list[ErrorDetails]:
    """Problems as the user wrote them: one under `train` shows again under the parts that were laid over it."""
    problems = error.errors()
    in_train = {problem["loc"][1:] for problem in problems if problem["loc"][:1] == ("train",)}
    return [
        problem
        for problem in problems
        if not (problem["loc"][:1] in (("teacher",), ("student",)) and problem["loc"][1:] in in_train)
    ]


def _explain(place: str, problem: ErrorDetails) -> str:
    """One line for one pydantic problem: where, what was found, what is allowed."""
    path = [str(step) for step in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        names = [name.split(".") for name, _, _ in option_table()]
        known = dict.fromkeys(".".join(steps[:count]) for steps in names for count in range(1, len(steps) + 1))
        siblings = _fields_at(path[:-1])
        near = difflib.get_close_matches(path[-1], siblings, 1) or [
            name for name in known if name.rsplit(".", 1)[-1] == path[-1]
        ]
        hint = f" Did you mean '{'.'.join([*path[:-1], near[0]]) if near[0] in siblings else near[0]}'?" if near else ""
        return f"config {key}: unknown key in {place}; this part knows {', '.join(siblings)}.{hint}"
    hint = ""
    if problem["type"] == "literal_error":
        hint = _suggestion(str(problem["input"]), [word.strip("' ") for word in _allowed(problem).split(",")])
    message = (problem["msg"][0].lower() + problem["msg"][1:]).removeprefix("value error, ")
    if not key:  # of several parts together
        return f"config: {message}, in {place}. Change one of them."
    return f"config {key}: found {problem['input']!r} in {place}; {message}{hint}. Change {key}."


def _allowed(problem: ErrorDetails) -> str:
    return str(problem.get("ctx", {}).get("expected", "")).replace(" or ", ", ")


def _fields_at(path: list[str]) -> list[str]:
    part: type[Part] = RunConfig
    for name in path:
        annotation = part.model_fields[name].annotation if name in part.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Part)):
            return []
        part = annotation
    return list(part.model_fields)


def _suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
