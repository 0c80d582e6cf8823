"""A run's folder: whose it is, who writes to it, and where its run goes on."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simco_zoo.files import check_disk_space, remove_partial, write_text
from simco_zoo.hub.config import section
from simco_zoo.hub.download import WeightsError
from simco_zoo.hub.folder import from_path
from simco_zoo.lock import FolderLock
from simco_zoo.publishing.save import OWN_FILES, check_target
from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint
from simco_zoo.training.identity import Identity, as_stored, differences

RUN_FILE = "run.json"
PUBLISHED = ("last", "best")
# what a run writes; files of these names that are not a run's are never overwritten
RESERVED = (RUN_FILE, "log.csv", "curves.png", "summary.json", "checkpoints", "tensorboard", *PUBLISHED)


@dataclass
class Start:
    """How a run begins.

    Attributes:
        run: The run's id.
        checkpoint: State of the checkpoint from which it goes on, or None.
        path: That checkpoint's file.
        finished: Whether there is nothing left to do.
        branched: Whether the checkpoint is another run's, whose settings may differ.
    """

    run: str
    checkpoint: dict[str, Any] | None = None
    path: Path | None = None
    finished: bool = False
    branched: bool = False

    def without_state(self) -> Start:
        """Returns a copy that can be sent to other processes cheaply."""
        return replace(self, checkpoint=None)


class RunFolder:
    """One run in one folder.

    Args:
        path: The folder.
        say: Tells a person something.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self._lock: FolderLock | None = None
        self._entry: dict[str, Any] = {}

    def open(self, resume: str, identity: Identity, weights: str, size: int, reserved: Collection[str]) -> Start:
        """Locks the folder and finds out how the run begins.

        Args:
            resume: "auto", "never", or a checkpoint's path.
            identity: The run's identity.
            weights: Hash of the model's present weights; they may be those of the checkpoint instead of the first ones.
            size: Bytes that will be written.
            reserved: Names of files, besides the run's own, that the caller is going to write.

        Raises:
            ValueError: If the folder holds other files, or a run with which this one may not be mixed.
            FileNotFoundError: If ``resume`` names a file that does not exist.
            OSError: If another process writes to the folder, or it cannot hold the run.
        """
        if not isinstance(resume, str | Path):
            raise ValueError(f"resume is {resume!r}, but has to be auto, never, or the path of a step-*.pt file.")
        if resume not in ("auto", "never") and not Path(resume).is_file():
            raise FileNotFoundError(f"there is no checkpoint {resume}; pass --resume auto, never or a step-*.pt file.")
        self._refuse_foreign([*RESERVED, *reserved])
        made = not self.path.exists()
        check_disk_space(self.path, 0)
        self._lock = FolderLock(self.path)
        try:
            self._clean()
            start = self._find_start(resume, identity, weights)
            if not start.finished:
                check_disk_space(self.path, size)
        except BaseException:
            self.close()
            if made:
                self.path.rmdir()
            raise
        return start

    def close(self) -> None:
        """Sets the folder free for other processes."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def write_entry(self, start: Start, identity: Identity, total_steps: int, resume: str) -> None:
        """Writes ``run.json``, which makes the folder this run's.

        Raises:
            ValueError: If a published folder holds files that are not a published model's.
        """
        for name in PUBLISHED:
            make_room(self.path / name, self.say)
        entry = {
            "format": 1,
            "run": start.run,
            "schedule": identity.schedule,
            "total_steps": total_steps,
            "identity": as_stored(identity.values),
            "branched_from": str(Path(resume).absolute()) if start.branched else self._entry.get("branched_from"),
        }
        if entry != self._entry:
            write_text(self.path / RUN_FILE, json.dumps(entry, indent=2) + "\n")
            self._entry = entry
        # it says that the run is finished, which it is no more when it goes on from an earlier step or for longer
        (self.path / "summary.json").unlink(missing_ok=True)

    # Whose it is

    def _refuse_foreign(self, reserved: Collection[str]) -> None:
        """Raises ValueError if the folder has files of a run's names without being a run's."""
        if not self.path.is_dir() or (self.path / RUN_FILE).is_file() or list_checkpoints(self.path / "checkpoints"):
            return
        summary = _read_json(self.path / "summary.json")
        if summary is not None and {"seconds", "steps"} & summary.keys():  # a run's of an earlier version
            return
        found = [name for name in reserved if (self.path / name).exists()]
        if found:
            raise ValueError(
                f"{self.path} holds {', '.join(found)}, but no run of simco-zoo (no {RUN_FILE}); "
                "choose another output, so that nothing is overwritten."
            )

    def _clean(self) -> None:
        """Removes what a process left that was killed while it wrote; a published folder on its way is put back."""
        for folder in (self.path, self.path / "checkpoints"):
            remove_partial(folder)
        for name in PUBLISHED:
            for left in sorted(self.path.glob(f".{name}-*")):
                if left.name.startswith(f".{name}-old-") and not (self.path / name).exists():
                    os.replace(left, self.path / name)
                elif left.is_dir():
                    shutil.rmtree(left)

    @property
    def _worth_keeping(self) -> bool:
        """Whether a run has left something here that took time to make."""
        if list_checkpoints(self.path / "checkpoints"):
            return True
        return any((self.path / name).exists() for name in ("summary.json", *PUBLISHED))

    def _set_aside(self) -> None:
        """Moves the folder to NAME.old-N and goes on in an empty one."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        assert self._lock is not None
        try:
            os.rename(self.path, aside)
        except OSError as error:
            raise OSError(
                f"the run in {self.path} cannot be moved to {aside} ({error.strerror}); choose another output."
            ) from error
        self._lock.moved_to(aside)
        self._lock.release()
        self.path.mkdir()
        self._lock = FolderLock(self.path)
        self.say(f"the run that was in {self.path} is in {aside} now")

    # Where it goes on

    def _find_start(self, resume: str, identity: Identity, weights: str) -> Start:
        self._entry = _read_entry(self.path / RUN_FILE)
        fresh = Start(uuid.uuid4().hex)
        if resume == "never":
            if self._worth_keeping:
                self._set_aside()
            self._entry = {}
            return fresh
        if resume != "auto" and self._entry.get("branched_from") != str(Path(resume).absolute()):
            return self._start_from(Path(resume), identity, fresh)
        if not self._worth_keeping:
            same = bool(self._entry) and not self._differences(identity, weights, None)
            return Start(self._entry.get("run", fresh.run)) if same else fresh
        found = newest_checkpoint(self.path / "checkpoints", self._entry.get("run"))
        path, checkpoint = found if found is not None else (None, None)
        self._compare(self._differences(identity, weights, checkpoint))
        run = self._entry.get("run") or (checkpoint or {}).get("run") or fresh.run
        return Start(run, checkpoint, path, finished=self._is_finished(identity))

    def _start_from(self, file: Path, identity: Identity, fresh: Start) -> Start:
        """Goes back to an earlier checkpoint of this folder's run, or branches off another run."""
        checkpoint = load_checkpoint(file)
        own = file.resolve().parent.parent == self.path.resolve() or (
            bool(self._entry) and checkpoint.get("run") == self._entry.get("run")
        )
        then, now = checkpoint["identity"], identity.values
        if own:
            self._compare(differences(then, now, identity.defaults, [*identity.free, "model.weights"]))
            return Start(self._entry.get("run", fresh.run), checkpoint, file)
        if self._worth_keeping:
            raise ValueError(
                f"{file} is a checkpoint of another run than the one in {self.path}; choose a new output for the run "
                "that starts from it."
            )
        free = [key for key in {*then, *now} if key not in identity.branch_fixed]
        self._compare(differences(then, now, identity.defaults, free))
        return Start(fresh.run, checkpoint, file, branched=True)

    def _differences(self, identity: Identity, weights: str, checkpoint: dict[str, Any] | None) -> list[str]:
        then = self._entry.get("identity") or (checkpoint or {}).get("identity")
        if then is None:
            return ["its run.json cannot be read"]
        # a model that has been trained here and was interrupted goes on as it is
        trained = checkpoint is not None and checkpoint.get("weights") == weights
        ignored = [*identity.free, *(["model.weights"] if trained else [])]
        return differences(then, identity.values, identity.defaults, ignored)

    def _compare(self, found: list[str]) -> None:
        if found:
            raise ValueError(
                f"the run in {self.path} was started with other settings ({'; '.join(found)}); use the same, another "
                "output, or resume='never', which sets that run aside."
            )

    def _is_finished(self, identity: Identity) -> bool:
        """Whether the run was finished, and no more steps are asked for than it has."""
        steps = (_read_json(self.path / "summary.json") or {}).get("steps")
        planned = identity.total_steps
        if planned is None and self._entry.get("schedule") == as_stored(identity.schedule):
            planned = self._entry.get("total_steps")
        if not isinstance(steps, int) or not isinstance(planned, int):
            return False
        return steps >= planned and all(published_step(self.path / name) is not None for name in identity.published)


def make_room(folder: Path, say: Callable[[str], None]) -> None:
    """Makes sure that a model can be published in a run's folder later on; a damaged one is removed.

    Raises:
        ValueError: If files of a person's are there.
    """
    damaged = folder.is_dir() and published_step(folder) is None
    if damaged and all(path.name in OWN_FILES for path in folder.iterdir()):
        say(f"{folder} is damaged and will be written anew")
        shutil.rmtree(folder)
    check_target(folder)


def published_step(folder: Path) -> int | None:
    """Returns the step of the run at which a model was published, -1 if its recipe does not tell.

    None if there is no such folder, or it is damaged.
    """
    try:
        found = from_path(folder, folder_only=True)
        for name in found.file_names:
            found.verified_bytes(name)
    except WeightsError:
        return None
    step = section(found.config).get("recipe", {}).get("steps", -1)
    return step if isinstance(step, int) else -1


def stored_identity(folder: Path, resume: str) -> dict[str, Any]:
    """Returns the identity of the run that will be continued in a folder, empty if there is none."""
    if resume == "never":
        return {}
    source = folder if resume == "auto" else Path(resume).absolute().parent.parent
    return _read_entry(source / RUN_FILE).get("identity", {})


def _read_entry(path: Path) -> dict[str, Any]:
    """Returns what ``run.json`` holds, without what is damaged."""
    kinds = {"run": str, "schedule": dict, "total_steps": int, "identity": dict, "branched_from": str | None}
    entry = _read_json(path) or {}
    return {key: value for key, value in entry.items() if isinstance(value, kinds.get(key, object))}


def _read_json(path: Path) -> dict[str, Any] | None:
    """Returns what a JSON file holds if that is an object, else None."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
