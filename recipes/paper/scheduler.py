"""Running the cells of reproduce.py: a process each, several at once, ended together."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from paper.cells import Cell, flags, paper_figure
from paper.table import add_row

POLL = 0.2  # seconds between looks at the running cells


def command(cell: Cell, args: argparse.Namespace, recipe: str) -> list[str]:
    """Returns the command of a cell: ``recipe`` with pretrain.py's flags."""
    running = ("device", "compile", "compile_mode", "workers", "knn_every", "checkpoint_every")
    settings = {**cell.settings(), **{name: getattr(args, name) for name in running}}
    settings["output"] = (args.output / cell.folder).absolute()
    return [sys.executable, str(Path(__file__).parents[1] / recipe), *flags(settings)]


class Job:
    """A cell that runs."""

    def __init__(self, cell: Cell, args: argparse.Namespace, lock: int) -> None:
        self.cell, self.run = cell, (args.output / cell.folder).absolute()
        self.together = 1  # the most cells that ran at the same time as this one, itself counted
        self.run.mkdir(parents=True, exist_ok=True)
        self.epochs = epochs_done(self.run)
        self.log = self.run / "output.log"
        environment = dict(os.environ)
        if args.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
        with self.log.open("ab") as log:
            self.read = log.tell()
            self.process = subprocess.Popen(
                command(cell, args, "paper/cell.py"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which passes on SIGTERM
                pass_fds=(lock,),
            )

    def advance(self) -> int:
        """Returns the epochs done since the last look."""
        seen, self.epochs = self.epochs, epochs_done(self.run)
        return self.epochs - seen

    def warnings(self) -> list[str]:
        """Returns the warnings that the cell gave since the last look."""
        with self.log.open("rb") as log:
            log.seek(self.read)
            whole = log.read().rpartition(b"\n")[0]
        self.read += len(whole)
        return re.findall(r"^.*: \w*Warning: (.*)$", whole.decode(errors="replace"), re.MULTILINE)

    def reason(self) -> str:
        """Says why the cell failed."""
        code = self.process.returncode
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else f"status {code}"

    def row(self, args: argparse.Namespace) -> dict[str, Any]:
        """Returns the finished cell's row of the table."""
        cell = self.cell
        row = json.loads((self.run / "measured.json").read_text(encoding="utf-8"))
        row.update({name: getattr(cell, name) for name in ("dataset", "backbone", "method", "batch_size", "seed")})
        row.update({"epochs": cell.epochs, "stem_padding": cell.stem_padding, "amp": cell.amp, "folder": cell.folder})
        row.update({"jobs": self.together, "compile": args.compile_mode if args.compile else "none"})
        return {**row, "paper": paper_figure(row)}


def epochs_done(run: Path) -> int:
    """Counts the rows of a run's log."""
    log = run / "log.csv"
    return len(log.read_text(encoding="utf-8").splitlines()) - 1 if log.is_file() else 0


@contextmanager
def only_one(output: Path) -> Iterator[int]:
    """Holds a lock on the output folder. The cells inherit it, so that one left behind by a killed command keeps it."""
    import fcntl

    output.mkdir(parents=True, exist_ok=True)
    lock = os.open(output / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another command, or a cell that a killed one left behind, still works in {output}; "
                "wait for it, end it, or pass another --output."
            ) from error
        yield lock
    finally:
        os.close(lock)


@contextmanager
def listening() -> Iterator[list[int]]:
    """Gives a list to which signals add their number instead of ending the process."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # what a job in the background ignores, it goes on ignoring
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_cells(waiting: list[Cell], args: argparse.Namespace, lock: int) -> tuple[int, dict[str, str], int]:
    """Runs cells, ``args.jobs`` at once, and adds each to the table when it is done.

    Returns:
        The number that are done, the reasons of those that failed by folder, and the status of an early end or 0.
    """
    waiting, jobs = list(waiting), list[Job]()
    failed: dict[str, str] = {}
    warned: set[str] = set()
    done, status = 0, 0
    deadline = time.monotonic() + 60 * args.time_limit if args.time_limit is not None else float("inf")
    total, before = sum(cell.epochs for cell in waiting), sum(epochs_done(args.output / c.folder) for c in waiting)
    with listening() as received, tqdm(total=total, initial=before, unit="epoch", disable=None) as bar:
        try:
            while jobs or (waiting and not status):
                while waiting and not status and len(jobs) < args.jobs:
                    jobs.append(Job(waiting.pop(0), args, lock))
                    say(f"started {jobs[-1].cell.folder}")
                time.sleep(POLL)
                ends = [128 + received.pop(0) for _ in received[:]]
                if not status and time.monotonic() > deadline:
                    ends.append(124)
                for end in ends:
                    say("ending: the running cells write checkpoints")
                    status = status or end
                    end_all(jobs)
                for job in list(jobs):
                    code = job.process.poll()
                    job.together = max(job.together, len(jobs))
                    bar.update(job.advance())
                    for warning in job.warnings():
                        if warning not in warned:
                            say(f"{job.cell.folder}: {warning}")
                        warned.add(warning)
                    if code is None:
                        continue
                    jobs.remove(job)
                    if code == 0:
                        row = job.row(args)
                        add_row(args.table, row)
                        done += 1
                        say(f"done {job.cell.folder}: {describe(row)}")
                    elif not (status and code in (-signal.SIGTERM, 128 + signal.SIGTERM)):
                        failed[job.cell.folder] = job.reason()
                        say(f"failed {job.cell.folder}: {failed[job.cell.folder]}")
        finally:  # an error here must not leave cells running unseen
            end_all(jobs)
            for job in jobs:
                job.process.wait()
    return done, failed, status


def end_all(jobs: list[Job]) -> None:
    """Lets cells write checkpoints and end; a second time, lets them end at once."""
    for job in jobs:
        job.process.send_signal(signal.SIGTERM)


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # above the bar, and at once where it goes to a file


def describe(row: dict[str, Any]) -> str:
    measured = (f"{name} {row[name]}" for name in ("online_last", "linear_last", "knn_last"))
    paper = f" (paper {row['paper']})" if row["paper"] is not None else ""
    return f"{', '.join(measured)}{paper} after {row['seconds'] / 60:.1f} min of training"
