"""The shape of the house: who imports whom, how long things are, and that pages know the files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import map as file_map
import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "drivekd"
FILES = sorted(SRC.rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

#: room → the rooms it may import besides itself; `demo` and `cli` may import anything
ALLOWED: dict[str, set[str]] = {
    "files": set(),
    "statistics": set(),
    "method": set(),
    "data": {"files"},
    "models": {"data", "files"},
    "recipe": {"data", "files"},
    "report": {"data", "files", "statistics"},
    "distill": {"method", "models", "recipe", "data", "files"},
    "evaluate": {"models", "data", "statistics", "files", "world"},
    "world": {"data", "files"},
    "study": {"method", "distill", "models", "recipe", "data", "statistics", "files"},
    "deploy": {"models", "data", "evaluate", "files"},
}
#: of the world, an evaluation may know the questions alone
FROM_WORLD = {"evaluate": {"world.questions"}}
MAX_FILES = 15
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "factory", "misc"}
#: loading one of these takes longer than all of `drivekd --help` may
HEAVY = {"torch", "transformers", "numpy", "matplotlib", "scipy", "panda3d", "highway_env", "PIL"}
MAX_LINES, MAX_FUNCTION = 400, 60


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def module_of(path: Path) -> str:
    """`distill/train.py` → `distill.train`, `world/__init__.py` → `world`."""
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every import of a file, wherever it stands, as an absolute dotted name and its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def ours(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of drivekd that a file imports, `distill.train`, without the file itself."""
    for name, line in imports(path):
        if name.startswith("drivekd."):
            rest = name.removeprefix("drivekd.")
            module = rest if rest in MODULES else rest.rpartition(".")[0]
            if module and module != module_of(path):
                yield module, line


def permitted(path: Path, module: str) -> bool:
    """Whether a file may import a module of ours."""
    room, target = (name.partition(".")[0] for name in (module_of(path), module))
    if room in {"demo", "cli", "__main__"}:
        return target != "cli" or room != "demo"
    if target == "world" and room in FROM_WORLD:
        return module in FROM_WORLD[room]
    return target == room or target in ALLOWED[room]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_in_the_fixed_direction(path: Path) -> None:
    wrong = [f"line {n}: {m}" for m, n in ours(path) if not permitted(path, m)]
    assert not wrong, f"{name_of(path)} must not import {wrong}"


def test_the_rule_itself_refuses() -> None:
    assert not permitted(SRC / "data/x.py", "models.vlm")
    assert not permitted(SRC / "method/signals/losses.py", "data.sample")
    assert not permitted(SRC / "files/lock.py", "data.sample")
    assert not permitted(SRC / "world/scene.py", "models.vlm")
    assert not permitted(SRC / "report/page.py", "models.vlm")
    assert not permitted(SRC / "evaluate/run.py", "distill.train")
    assert not permitted(SRC / "evaluate/run.py", "world.scene")
    assert not permitted(SRC / "recipe/recipe.py", "models.vlm")
    assert not permitted(SRC / "demo/run.py", "cli.app")
    assert not permitted(SRC / "models/vlm.py", "demo.run")
    assert permitted(SRC / "distill/train.py", "method.signals.losses")


def test_no_folder_shows_more_than_fifteen_files() -> None:
    for folder in {path.parent for path in FILES}:
        shown = sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")
        assert len(shown) <= MAX_FILES, f"{folder.relative_to(SRC)}: {len(shown)} files: {shown}"


def test_no_import_cycles() -> None:
    graph = {module: {m for m, _ in ours(path)} for module, path in MODULES.items()}
    assert cycle(graph) == []
    assert cycle({"a": {"b"}, "b": {"a"}})


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One of the cycles of a graph, [] where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_and_lengths(path: Path) -> None:
    assert not FORBIDDEN_NAMES & set(path.relative_to(SRC).with_suffix("").parts)
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: does the file hold two ideas?"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name}, line {node.lineno}: {length} lines"


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=name_of)
def test_packages_do_nothing_when_imported(path: Path) -> None:
    if path.parent == SRC:
        return
    docstring, *rest = tree(path).body
    assert isinstance(docstring, ast.Expr)
    others = [ast.unparse(node) for node in rest if not isinstance(node, ast.ImportFrom)]
    assert all(each.startswith("__all__ = ") for each in others), f"{name_of(path)}: {others}"


def test_every_third_party_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[<>=\[ ]", requirement)[0].lower().replace("-", "_")
        for group in (project["dependencies"], *project["optional-dependencies"].values())
        for requirement in group
    }
    module_to_package = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "direct": "panda3d",
        "markupsafe": "jinja2",
    }
    used = {
        name.partition(".")[0]: f"{name_of(path)}:{line}"
        for path in FILES
        for name, line in imports(path)
    }
    for module, where in used.items():
        if module != "drivekd" and module not in sys.stdlib_module_names:
            package = module_to_package.get(module, module).lower()
            assert package in declared, f"{where} imports {module}, pyproject.toml does not name it"


def test_the_map_is_that_of_the_files() -> None:
    assert file_map.PAGE.read_text(encoding="utf-8") == file_map.text(), (
        "docs/map.md is older than the files: run `make map`"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_files_that_are_there(page: Path) -> None:
    named = set(re.findall(r"[`(]([\w/]+/\w+\.py)\b", page.read_text(encoding="utf-8")))
    gone = {
        name
        for name in named
        if not any((base / name).is_file() for base in (SRC, ROOT, ROOT / "tests"))
    }
    assert not gone, f"{page.name} names files that are not there: {sorted(gone)}"


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, drivekd.cli.app; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_public_names_resolve() -> None:
    import drivekd

    for name in drivekd.__all__:
        assert getattr(drivekd, name) is not None
    assert set(drivekd.__all__) <= set(dir(drivekd))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        drivekd.nonsense  # noqa: B018


def test_no_source_file_names_the_machine_it_was_written_on() -> None:
    for path in (*FILES, *(ROOT / "tests").rglob("*.py"), *SRC.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(work|root|home)/", text), path
