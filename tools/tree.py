"""Figures of the package's tree: files and lines a wing, names of its face, longest import chain.

python tools/tree.py

A chain follows the imports at the top of modules; a face counts as the module that it is. Nothing
is imported: everything is read from the source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dmnn_convert"
FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def source(file: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"))


def lines(file: Path) -> int:
    """Return the number of lines of a file."""
    return len(file.read_text(encoding="utf-8").splitlines())


def shown(file: Path) -> str:
    """Return a file's path in the package; a face by its wing's name."""
    path = file.relative_to(PACKAGE)
    return f"{path.parent}/" if path.name == "__init__.py" else str(path)


def exports(face: Path) -> list[str]:
    """Return the names that a face exports, those of the wing's ``public.py`` among them."""
    late = face.with_name("public.py")
    return sorted({*_exports(face), *(_exports(late) if late.is_file() else ())})


def _exports(face: Path) -> list[str]:
    """Return the names of ``__all__``; the imported ones where a file has none."""
    for node in source(face).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    imports = (node for node in source(face).body if isinstance(node, ast.ImportFrom))
    return [alias.name for node in imports if node.level == 1 for alias in node.names]


def module_at(place: Path) -> Path | None:
    """Return the file of a module or of a package's face; None if there is neither."""
    found = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def imported(file: Path) -> Iterator[Path]:
    """Yield the package's modules that a module imports when it is imported itself."""
    for node in source(file).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            place = file.parents[node.level - 1]
            place = place.joinpath(*node.module.split(".")) if node.module else place
            for alias in node.names:
                found = module_at(place / alias.name) if place.is_dir() else None
                yield found or module_at(place) or file


@cache
def chain(file: Path) -> tuple[Path, ...]:
    """Return the longest chain of imports that begins at a file."""
    below = (chain(other) for other in set(imported(file)) if other != file)
    return (file, *max(below, key=lambda c: (len(c), c), default=()))


def main() -> None:
    """Print the figures."""
    wings = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
    print(f"{'wing':12} {'files':>5} {'lines':>6} {'names':>5}  longest file")
    for wing in wings:
        own = [file for file in FILES if wing in file.parents]
        longest = max(own, key=lines)
        names = exports(wing / "__init__.py")
        counts = f"{len(own):5} {sum(map(lines, own)):6,} {len(names):5}"
        print(f"{wing.name:12} {counts}  {longest.relative_to(wing)}, {lines(longest)}")
    top = [file for file in FILES if file.parent == PACKAGE]
    print(f"{'(top)':12} {len(top):5} {sum(map(lines, top)):6,}")
    longest = max(FILES, key=lines)
    print(f"\n{len(FILES)} files in {len(wings)} wings, {sum(map(lines, FILES)):,} lines")
    print(f"longest file: {shown(longest)}, {lines(longest)} lines")
    links = max((chain(file) for file in FILES if file.parent != PACKAGE), key=len)
    print(f"longest import chain: {len(links)} modules")
    print("  " + "\n  ".join(map(shown, links)))


if __name__ == "__main__":
    main()
