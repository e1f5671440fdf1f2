"""Long runs of a benchmark: rows as they finish, each run in one process, stops that resume."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import fcntl
import fnmatch
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dmnn_convert import DmnnError
from dmnn_convert.files import write_all
from dmnn_convert.finetune import Interrupted

Rows = list[dict[str, str]]


def finished(file: Path) -> Rows:
    """Return the rows that the file holds."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def change_rows(file: Path, kind: type, change: Callable[[Rows], Rows]) -> None:
    """Put what becomes of a file's rows, with the columns of a dataclass, in their place."""
    with locked(file.with_name(f".{file.name}.lock")):
        rows = change(finished(file))
        write_all(file.parent, {file.name: lambda path: _write_rows(rows, kind, path)})


def _write_rows(rows: Rows, kind: type, file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as lines:
        names = [entry.name for entry in dataclasses.fields(kind)]
        writer = csv.DictWriter(lines, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock, which ends with the process if that dies.

    Raises:
        BlockingIOError: if another process holds it, and this one is not to wait.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def attempt(name: str, folder: Path, work: Callable[[], Sequence[str]]) -> bool:
    """Do a run, unless another process does, and print what comes of it.

    Args:
        name: of the run.
        folder: its own.
        work: returns lines to print.

    Returns:
        whether it failed.
    """
    try:
        with locked(folder.with_name(f".{folder.name}.lock"), wait=False):
            lines = work()
    except BlockingIOError:
        print(f"{name}: another process is at it", flush=True)
        return False
    except Interrupted:
        raise
    except DmnnError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return True
    for line in lines:
        print(f"{name}: {line}", flush=True)
    return False


def options_of(
    parser: argparse.ArgumentParser, known: Iterable[str], output: Path
) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; return its options, and the runs to do. Print these for --list.

    Args:
        parser: has the benchmark's own options.
        known: names of all runs.
        output: where rows go, if --csv is not given.
    """
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--only", default="*", help="runs by name or pattern, with commas between")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--csv", type=Path, default=output, help="where finished rows go")
    parser.add_argument("--list", action="store_true", help="name the runs")
    options, known = parser.parse_args(), list(known)
    patterns = options.only.split(",")
    names = [name for p in patterns for name in known if fnmatch.fnmatch(name, p)]
    if not names:
        parser.error(f"--only {options.only}: no such run; --list names them")
    if options.list:
        print("\n".join(names))
        sys.exit()
    if options.data is None or options.checkpoints is None:
        parser.error("give --data DIR and --checkpoints DIR")
    # A run that goes on compares its recipe, files included, with what it began with.
    options.data, options.checkpoints = options.data.resolve(), options.checkpoints.resolve()
    return options, names


def do_all(names: Iterable[str], finish: Callable[[str], bool]) -> None:
    """Do one run after another; end with an error if some failed, or one was stopped."""
    try:
        failed = [name for name in names if finish(name)]
    except Interrupted as error:
        sys.exit(f"{error}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
