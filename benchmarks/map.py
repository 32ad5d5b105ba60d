"""Write docs/map.md: every source file by the first line of its docstring, room by room."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "map.md"

HEAD = """# Every file

Made by `make map` from the first line of each file's docstring.
`tests/test_layout.py` fails where this page is older than the files.
"""


def first_line(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return said.splitlines()[0] if said else ""


def text() -> str:
    """The page as it should be now."""
    parts = [HEAD]
    source = ROOT / "src" / "drivekd"
    folders = [source, *sorted(path.parent for path in source.rglob("*/__init__.py"))]
    for folder in (*folders, ROOT / "benchmarks", ROOT / "benchmarks" / "world_models"):
        files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        package = folder / "__init__.py"
        room = folder.relative_to(source.parent if folder.is_relative_to(source) else ROOT)
        if files:
            parts.append(f"## {room.as_posix()}/\n")
            parts += [f"{first_line(package)}\n"] if package.is_file() else []
            parts.append("".join(f"- `{path.name}`: {first_line(path)}\n" for path in files))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(text().splitlines())} lines")
