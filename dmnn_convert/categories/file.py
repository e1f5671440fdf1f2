"""Big categories from a user's JSON or CSV file."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..foreign import parsed_json
from ..text import shown, some
from .mapping import Categories, check_class_names

_HEADER = ["class", "category"]


def read_categories(
    path: str | os.PathLike[str], class_names: Sequence[str] | None, num_classes: int
) -> Categories:
    """Return the big categories that a JSON or CSV file gives the classes.

    A `.json` file holds an object {class: category}, or a list of the categories in class order. A
    `.csv` file has two columns, class and category, and may start with the line `class,category`.
    A class is given by its name, or by its index from 0 where no class is called like that.
    Categories are numbered in numerical order where all of them are whole numbers, else in the
    order of their first class.

    Args:
        path: the file.
        class_names: name of each class, in class order; None where the file gives indices.
        num_classes: number of classes.

    Raises:
        ArgumentError: for a file that is empty or cannot be read, for classes that are missing,
            unknown or given twice, and for fewer than two categories.

    Example:
        >>> Path("pets.json").write_text('["cat", "cat", "dog"]')
        21
        >>> read_categories("pets.json", None, num_classes=3).labels
        (0, 0, 1)
    """
    file = Path(path)
    check_class_names(class_names, num_classes, f"read_categories({str(file)!r})")
    classes = _Classes(file, class_names, num_classes)
    readers = {".json": _read_json, ".csv": _read_csv}
    if file.suffix.lower() not in readers:
        raise ArgumentError(f"{file}: is it JSON or CSV? Its name must end in .json or .csv.")
    given = readers[file.suffix.lower()](_text(file), classes)
    return _numbered([_category(value, file) for value in given], file)


class _Classes:
    """The classes that a file may name."""

    def __init__(self, file: Path, names: Sequence[str] | None, count: int) -> None:
        self.file, self.names, self.count = file, names, count
        self.named: dict[str, list[int]] = {}
        for index, name in enumerate(names or ()):
            self.named.setdefault(name, []).append(index)

    def index(self, given: str) -> int | None:
        """Return the index of the class with this name or number."""
        found = self.named.get(given, [])
        if len(found) > 1:
            raise ArgumentError(
                f"{self.file}: {len(found)} classes are called {given!r}; give their indices, "
                f"{some(found)}, in place of the name."
            )
        if found:
            return found[0]
        number = int(given) if re.fullmatch("[0-9]{1,9}", given) else self.count
        return number if number < self.count else None

    def called(self, indices: Sequence[int]) -> str:
        """Return the names of some classes for a message."""
        return some([self.names[index] if self.names else index for index in indices])

    def in_order(self, pairs: Sequence[tuple[str, Any]]) -> list[Any]:
        """Return the categories in class order, from (class, category) in any order."""
        found = [(self.index(given), category) for given, category in pairs]
        unknown = [pair[0] for pair, (index, _) in zip(pairs, found, strict=True) if index is None]
        if unknown:
            known = self.called(range(self.count)) if self.names else f"0 to {self.count - 1}"
            raise ArgumentError(f"{self.file}: unknown classes {some(unknown)}; known are {known}.")
        times = Counter(index for index, _ in found if index is not None)
        twice = [index for index in times if times[index] > 1]
        if twice:
            raise ArgumentError(
                f"{self.file}: classes given twice: {self.called(twice)}; leave one of each."
            )
        missing = [index for index in range(self.count) if index not in times]
        if missing:
            raise ArgumentError(
                f"{self.file}: {len(missing)} of {self.count} classes have no category: "
                f"{self.called(missing)}. Give every class one."
            )
        category = dict(found)
        return [category[index] for index in range(self.count)]


def _text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ArgumentError(
            f"{file}: cannot be read ({error}); give a JSON or CSV file in UTF-8."
        ) from error
    if not text.strip():
        raise ArgumentError(f"{file}: is empty; give every class a category.")
    return text


def _read_json(text: str, classes: _Classes) -> list[Any]:
    try:
        content = parsed_json(text, object_pairs_hook=_Object)
    except ValueError as error:
        raise ArgumentError(
            f"{classes.file}: is not valid JSON: {error}. Give an object or a list."
        ) from error
    if isinstance(content, _Object):
        return classes.in_order(content)
    if not isinstance(content, list):
        raise ArgumentError(
            f"{classes.file}: holds a {type(content).__name__}; give an object "
            '{"class": "category"}, or a list of the categories in class order.'
        )
    if len(content) != classes.count:
        raise ArgumentError(
            f"{classes.file}: a list of {len(content)} categories for {classes.count} classes; "
            "give one for each class, in class order."
        )
    return content


class _Object(tuple[tuple[str, Any], ...]):
    """A JSON object as it was written, with the keys that occur twice."""


def _read_csv(text: str, classes: _Classes) -> list[Any]:
    try:
        lines = csv.reader(text.splitlines(), skipinitialspace=True, strict=True)
        rows = [[cell.strip() for cell in line] for line in lines if any(map(str.strip, line))]
    except csv.Error as error:
        raise ArgumentError(
            f"{classes.file}: is not valid CSV: {error}. Give class,category on each line."
        ) from error
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None:
        raise ArgumentError(
            f"{classes.file}: the row {wrong} has {len(wrong)} columns; give two, class and "
            "category, with quotes around a comma."
        )
    if [cell.lower() for cell in rows[0]] == _HEADER and classes.index(rows[0][0]) is None:
        del rows[0]
    return classes.in_order([(row[0], row[1]) for row in rows])


def _category(value: Any, file: Path) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ArgumentError(
            f"{file}: got {shown(value)} for a category; give a name or a whole number."
        )
    return str(value).strip()


def _numbered(given: Sequence[str], file: Path) -> Categories:
    if all(re.fullmatch("-?[0-9]{1,9}", name) for name in given):
        keys: list[Any] = list(map(int, given))
        values = sorted(set(keys))
    else:
        keys, values = list(given), list(dict.fromkeys(given))
    if len(values) < 2:
        raise ArgumentError(
            f"{file}: all classes have one category, {some(given[:1])}, which would teach the "
            "controllers nothing; give two or more."
        )
    number = {value: i for i, value in enumerate(values)}
    return Categories(tuple(number[key] for key in keys), tuple(map(str, values)))
