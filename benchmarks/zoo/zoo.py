"""Convert every model of a zoo, prove it equal to its source, and write docs/coverage.{csv,md}.

python benchmarks/zoo/zoo.py --library timm --jobs 2
python benchmarks/zoo/zoo.py --library timm --models "resnet*,convnext*" --resume
python benchmarks/zoo/zoo.py --library timm --models "resnet*" --split nested --output-dir /tmp
python benchmarks/zoo/zoo.py --summary

Each model runs in a process of its own with limits of memory and time, so that one that crashes
costs its own row only. Rows are written as they come; --resume continues an interrupted sweep. The
nested split has a file of its own, coverage-nested.csv, and no summary.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch
import zoo_coverage as coverage
from torch import nn
from tqdm import tqdm
from zoo_check import check, one_line, out_of_memory
from zoo_coverage import Row, totals
from zoo_libraries import LIBRARIES, human_count

from dmnn_convert import dynamize

try:
    import resource
except ImportError:  # pragma: no cover  (not on Windows, where nothing forks either)
    resource = None

__all__ = ["main", "sweep", "totals"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
FILES = {"exact": "coverage.csv", "nested": "coverage-nested.csv"}
"""Which split is checked -> the table in the output directory."""
GIB = 2**30


class Limits(NamedTuple):
    """What one model may use: seconds, and bytes of memory."""

    seconds: float
    memory: int


class _Job(NamedTuple):
    model: str
    process: BaseProcess
    row: connection.Connection
    started: float


# --- one process a model ----------------------------------------------------------------------


def sweep(
    library: str, models: Sequence[str], jobs: int, limits: Limits, split: str = "exact"
) -> Iterator[Row]:
    """Check models, several at a time, and yield their rows as they come."""
    waiting = list(reversed(models))
    running: list[_Job] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_started(library, waiting.pop(), limits, split))
            for job in _ended(running, limits):
                running.remove(job)
                yield _row(library, job, limits)
    finally:
        for job in running:
            _kill(job)


def _started(library: str, model: str, limits: Limits, split: str) -> _Job:
    context = get_context("fork")  # the child has torch and the zoos imported already
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(library, model, limits, split, sender))
    with warnings.catch_warnings():
        # Forking beside threads is warned about, though no child needs what they may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    sender.close()  # so that the pipe ends when the child does
    return _Job(model, process, receiver, time.monotonic())


def _ended(running: Sequence[_Job], limits: Limits) -> list[_Job]:
    """Wait until jobs have sent their row, died, or passed their time; return these."""
    now = time.monotonic()
    left = min(job.started for job in running) + limits.seconds - now
    ready = connection.wait([job.row for job in running], timeout=max(left, 0))
    now = time.monotonic()
    return [job for job in running if job.row in ready or now - job.started >= limits.seconds]


def _row(library: str, job: _Job, limits: Limits) -> Row:
    """Return what the job sent, or why it sent nothing."""
    seconds = time.monotonic() - job.started
    try:
        row = job.row.recv() if job.row.poll() else None
        reason = f"timeout: more than {limits.seconds:.0f} s"
    except EOFError:
        row = None
        job.process.join(5)
        code = job.process.exitcode or 0
        reason = f"crash: {signal.Signals(-code).name}" if code < 0 else f"crash: exit code {code}"
    _kill(job)
    return row or Row(library, job.model, "failed", reason, seconds=seconds)


def _kill(job: _Job) -> None:
    """End the job's process with all that it may have started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(job.process.pid or 0, signal.SIGKILL)
    job.process.kill()  # it may have had no time to make a group of its own
    job.process.join()
    job.row.close()


def _work(
    library: str, model: str, limits: Limits, split: str, sender: connection.Connection
) -> None:
    """Check one model; runs in the child."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(int(limits.seconds) + 30)  # should nobody be left to end it
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    started = time.monotonic()
    try:
        _limit_memory(limits.memory)
        row = check(LIBRARIES[library], library, model, split)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if out_of_memory(error):
            reason = f"memory: more than {limits.memory / GIB:.1f} GiB"
        seconds = time.monotonic() - started
        row = Row(library, model, "failed", one_line(reason), seconds=seconds)
    sender.send(row)
    sender.close()


def _limit_memory(limit: int) -> None:
    # Data, not address space: libraries map far more than they use.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


class _Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def _warm_up() -> None:
    """Import, once for all children, what a conversion imports late."""
    dynamize(_Sum(), split="exact", input_size=(3, 8, 8))
    gc.collect()
    gc.freeze()  # a collection in a child would otherwise copy every page


# --- files ------------------------------------------------------------------------------------


def _chosen(library: str, patterns: str) -> list[str]:
    """Return the models that a pattern matches, the costly ones spread evenly."""
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    names = LIBRARIES[library].names()
    matching = [name for name in names if any(fnmatchcase(name, p) for p in wanted)]
    return sorted(matching, key=lambda name: (zlib.crc32(name.encode()), name))


def _write_summary(folder: Path, rows: Sequence[Row]) -> None:
    def family(row: Row) -> str:
        return LIBRARIES[row.library].family(row.model) if row.library in LIBRARIES else ""

    coverage.write_text(folder / "coverage.md", coverage.summary(rows, family, human_count))


def _run(options: argparse.Namespace, models: Sequence[str]) -> list[Row]:
    """Sweep, writing rows as they come; return all rows that the file then has."""
    table = options.output_dir / FILES[options.split]
    again = set(models)
    rows = [
        row
        for row in coverage.read(table)
        if options.resume or row.library != options.library or row.model not in again
    ]
    if not options.resume and options.models == "*":  # models that the library lacks by now
        rows = [row for row in rows if row.library != options.library]
    done = {row.model for row in rows if row.library == options.library}
    coverage.write(table, rows)
    left = [model for model in models if model not in done]
    limits = Limits(options.timeout, int(options.memory * GIB))
    counts = Counter(row.status for row in rows if row.library == options.library)
    with (
        table.open("a", encoding="utf-8", newline="") as file,
        tqdm(total=len(models), initial=len(models) - len(left), unit="model") as bar,
    ):
        bar.set_postfix(counts)
        for row in sweep(options.library, left, options.jobs, limits, options.split):
            file.write(coverage.line(row.cells()))
            file.flush()
            rows.append(row)
            counts[row.status] += 1
            if row.status == "failed":
                bar.write(f"{row.model} failed: {row.reason}", file=sys.stderr)
            bar.set_postfix(counts, refresh=False)
            bar.update()
    coverage.write(table, rows)
    return rows


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a polite end (SIGTERM) do what Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--library", choices=sorted(LIBRARIES))
    parser.add_argument("--models", default="*", metavar="PATTERN", help="several: A*,B*")
    parser.add_argument("--split", default="exact", choices=FILES)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, one thread each")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--summary", action="store_true", help="only write coverage.md again")
    parser.add_argument("--output-dir", type=Path, default=DOCS)
    parser.add_argument("--timeout", type=float, default=180, help="seconds a model")
    parser.add_argument("--memory", type=float, default=9, help="GiB a model")
    options = parser.parse_args(arguments)
    if not options.summary and not options.library:
        parser.error("give --library, or --summary")
    if options.jobs < 1 or options.timeout <= 0 or options.memory <= 0:
        parser.error("--jobs, --timeout and --memory must be positive")
    if not options.summary and not _chosen(options.library, options.models):
        parser.error(f"--models {options.models}: no model of {options.library} matches")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep or summarise; return 1 if a model failed, 130 if interrupted."""
    options = _options(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.summary:
        rows = coverage.read(options.output_dir / "coverage.csv")
        _write_summary(options.output_dir, rows)
        print(totals(rows))
        return 0
    torch.set_num_threads(1)  # no pool of threads, which would not survive the fork
    tqdm.monitor_interval = 0  # nor this thread
    _warm_up()
    models = _chosen(options.library, options.models)
    try:
        with _interruptible():
            rows = _run(options, models)
    except KeyboardInterrupt:
        again = f"--library {options.library} --models '{options.models}' --resume"
        again += f" --split {options.split}" if options.split != "exact" else ""
        print(
            f"\nInterrupted; the finished rows are kept. Go on with: zoo.py {again}",
            file=sys.stderr,
        )
        return 130
    finally:
        gc.unfreeze()
    if options.split == "exact":
        _write_summary(options.output_dir, rows)
    print(totals(rows))
    own = (row for row in rows if row.library == options.library and row.model in set(models))
    return int(any(row.status == "failed" for row in own))


if __name__ == "__main__":
    sys.exit(main())
