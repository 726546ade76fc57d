"""Rules of the house that hold for every file: imports go down, randomness is an argument, no machine's paths."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tutelage"
LAYERS = [
    {"errors"},
    {"types"},
    {"config", "cores", "files", "ops", "processes", "stats"},
    {"augment"},
    {"data"},
    {"models"},
    {"tasks"},
    {"engine"},
    {"reporting", "reviews", "deployment"},
    {"workflows"},
    {"cli"},
]
DOORS = {
    "timm": {"models/backbones.py", "engine/optim.py"},
    "lightning_fabric": {"engine/runtime.py"},
    "faster_coco_eval": {"tasks/metrics"},
    "matplotlib": {"reporting/figures.py"},
    "onnx": {"deployment"},
    "onnxruntime": {"deployment"},
    "supervision": {"deployment/found.py"},
}
SEEDED = {"default_rng", "Generator", "SeedSequence", "PCG64", "BitGenerator", "Philox"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "rand_like", "randn_like"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> int:
    name = module.split(".")[1]
    return next((level for level, names in enumerate(LAYERS) if name in names), -1)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    own = path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    if own in ("tutelage.__init__", "tutelage.__main__"):
        return
    level = layer_of(own)
    assert level >= 0, f"{own} belongs to no layer"
    for target in imported(parse(path)):
        if target.startswith("tutelage.") and target.split(".")[1] != own.split(".")[1]:
            assert layer_of(target) < level, f"{own} imports {target}, which lies beside or above it"


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules()
        if any(name.split(".")[0] == library for name in imported(parse(path)))
    }
    assert users, f"{library} is not used: drop it from the dependencies"
    assert all(any(user.startswith(door) for door in DOORS[library]) for user in users), users


def global_draws(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names):
            yield f"line {node.lineno}: import random"
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        seeded_by_argument = any(keyword.arg == "generator" for keyword in node.keywords)
        if owner in ("np.random", "numpy.random") and name not in SEEDED:
            yield f"line {node.lineno}: {owner}.{name}"
        if name == "default_rng" and not node.args:
            yield f"line {node.lineno}: default_rng without a seed"
        if owner == "torch" and name in TORCH_DRAWS and not seeded_by_argument:
            yield f"line {node.lineno}: torch.{name} without a generator"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_global_random_state(path: Path) -> None:
    assert list(global_draws(parse(path))) == []


def test_the_random_rule_sees_what_it_forbids() -> None:
    bad = "import random\nnp.random.rand(3)\nnp.random.default_rng()\ntorch.randn(2)\n"
    assert len(list(global_draws(ast.parse(bad)))) == 4
    assert list(global_draws(ast.parse("np.random.default_rng(0)\ntorch.randn(2, generator=g)"))) == []


MACHINE_PATH = re.compile(
    "|".join(["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/\\w", "index-" + "url", "hosted" + "\\.org", "/Us" + "ers/\\w"])
)


def test_no_machine_path_and_no_registry_host_in_a_tracked_file() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in (".png", ".jpg", ".safetensors") or not path.is_file():
            continue
        found = MACHINE_PATH.search(path.read_text(errors="replace"))
        assert found is None, f"{name} holds {found and found.group()!r}"
