"""The output folder: written under `OUT.partial`, renamed to `OUT` when all is there.

| OUT / OUT.partial found                  | plain   | --resume             | --overwrite       |
| ---------------------------------------- | ------- | -------------------- | ----------------- |
| neither, or OUT an empty folder          | starts  | starts               | starts            |
| OUT finished by the same job             | refused | finished, no work    | replaced when done |
| OUT holds anything else                  | refused | refused              | replaced when done |
| `.partial` of the same job               | refused | taken up             | made anew         |
| `.partial` of another job, or not ours   | refused | refused              | made anew         |
| `.partial` that another process writes   | refused | refused              | refused           |

With both flags a job is taken up where it can be and made anew where it cannot.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from emb_tool.checkpoint.files import read_json, write_atomically, write_json
from emb_tool.checkpoint.own_files import PROVENANCE, own_file
from emb_tool.errors import EmbToolError, InvalidInput, RunFailed


class OutputFolder:
    """A folder that is either whole under its name or a `.partial` to be taken up.

    `OUT.partial/.state/` holds the lock, the job's digest and whatever the job needs to go on;
    `seal` removes it. After an exception the partial stays, except where the input is at fault
    (`InvalidInput`) and this run began it.

    Args:
        out: The folder to be.
        job_digest: Names the job; a partial is taken up only by the same job.
        overwrite: Replace what is there.
        resume: Take up the partial of the same job.

    Attributes:
        path: The folder to be, resolved.
        partial: Where to write.
        resumed: Whether an earlier run's partial is taken up.
        finished: Whether `OUT` is already the result of this job: there is nothing to do.

    Raises:
        InvalidInput: On entering, see the table above.
        RunFailed: On leaving, if the disk was full.
    """

    def __init__(
        self, out: str | Path, *, job_digest: str, overwrite: bool = False, resume: bool = False
    ) -> None:
        self.path = Path(out).expanduser().resolve()
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.state = self.partial / ".state"
        self.digest = job_digest
        self._digest_file = self.state / "digest"
        self._replaced = self.state / "replaced"  # what OUT was, between the renames of `seal`
        self.overwrite = overwrite
        self.resume = resume
        self.resumed = False
        self.finished = False
        self._lock: int | None = None
        self._made: list[Path] = []

    def check(self) -> bool:
        """Refuse what entering would refuse, and change nothing.

        Returns:
            Whether the output is finished.

        Raises:
            InvalidInput: See the table of this module.
        """
        if self._is_done():
            return True
        with suppress(FileNotFoundError), (self.state / "lock").open("rb") as lock:
            self._flock(lock.fileno(), fcntl.LOCK_SH)
        self._decide()
        return False

    def __enter__(self) -> OutputFolder:
        if self._is_done():
            shutil.rmtree(self.path / ".state", ignore_errors=True)  # killed while sealing
            self.finished = True
            return self
        try:
            self._make_parents()
            self._take_lock()
        except OSError as error:
            self._remove_parents()
            if disk_full(error):
                raise self._full() from error
            raise InvalidInput(
                f"{error.filename}: cannot write there ({error.strerror})", "choose another -o"
            ) from None
        try:
            self._put_back()
            self.finished = self._is_done()  # again: who held the lock may have sealed it
            if self.finished:
                self.discard()
            else:
                self._check_partial()
        except BaseException:
            self._release()
            raise
        return self

    def _put_back(self) -> None:
        """Undo the first rename of `seal` where a kill came before the second."""
        free = not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))
        if free and self._replaced.is_dir():
            self._replaced.rename(self.path)

    def _is_done(self) -> bool:
        """Whether OUT is finished by this very job; refuses what may not be replaced."""
        if self.path.is_file():
            raise InvalidInput(f"{self.path} is a file", "name a folder with -o")
        if self.path.is_mount():
            raise InvalidInput(f"{self.path} is a mount point", "name a folder inside it with -o")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return False
        if self.resume and sealed_digest(self.path / PROVENANCE) == self.digest:
            return True
        if not self.overwrite:
            other = (
                " with the result of another job" if sealed_digest(self.path / PROVENANCE) else ""
            )
            raise InvalidInput(
                f"output folder {self.path} is not empty{other}",
                "choose another -o, or replace it with --overwrite",
            )
        if Path.cwd().is_relative_to(self.path) or Path.home().is_relative_to(self.path):
            raise InvalidInput(
                f"{self.path} holds your working or home folder and is not overwritten",
                "choose another -o",
            )
        return False

    def _check_partial(self) -> None:
        """Take the partial up or make it anew, once it is locked."""
        self.resumed = self._decide()
        if not self.resumed:
            self._empty()
            write_atomically(self._digest_file, self.digest + "\n")

    def _decide(self) -> bool:
        """Whether the partial is taken up; refuses what may be neither that nor made anew."""
        if self.resume and self._ours():
            return True
        found = self.partial.is_dir() and any(p != self.state for p in self.partial.iterdir())
        if self.overwrite or not (found or self._digest_file.exists()):
            return False
        if self.resume:
            raise InvalidInput(
                f"{self.partial} is not of this job: its settings or inputs differ",
                "give the same settings as before, or begin anew with --overwrite",
            )
        raise InvalidInput(
            f"{self.partial} was left by an interrupted job",
            "go on with --resume, or begin anew with --overwrite",
        )

    def _ours(self) -> bool:
        """Whether the partial is of this job."""
        file = self._digest_file
        return file.is_file() and file.read_text(encoding="utf-8").strip() == self.digest

    def _empty(self) -> None:
        for path in [*self.partial.iterdir(), *self.state.iterdir()]:
            if path in (self.state, self.state / "lock"):
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _make_parents(self) -> None:
        for path in [*reversed(self.path.parents), self.partial, self.state]:
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                self._made.append(path)

    def _remove_parents(self) -> None:
        """Remove the folders made on entering, as far as they are empty."""
        for path in reversed(self._made):
            try:
                path.rmdir()
            except OSError:
                return

    def _take_lock(self) -> None:
        path = self.state / "lock"
        while True:
            self.state.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._flock(lock, fcntl.LOCK_EX)
            except InvalidInput:
                os.close(lock)
                raise
            # the holder may have sealed or removed the folder between our open and our lock
            if path.exists() and path.stat().st_ino == os.fstat(lock).st_ino:
                break
            os.close(lock)
        os.ftruncate(lock, 0)
        os.write(lock, f"pid {os.getpid()} on {os.uname().nodename}".encode())
        self._lock = lock

    def _flock(self, lock: int, kind: int) -> None:
        """Lock the open lock file, or refuse: another process has it."""
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise InvalidInput(
                    f"{self.state / 'lock'} cannot be locked ({error.strerror})",
                    "write to a file system that has locks (flock)",
                ) from None
            holder = os.read(lock, 64).decode("ascii", "replace").strip()
            raise InvalidInput(
                f"another process ({holder or 'unknown'}) is writing {self.path}",
                "wait for it or stop it, or choose another -o",
            ) from None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def seal(self) -> Path:
        """Flush the partial to disk and give it its name; what stood there before is removed.

        `provenance.json` gets the job's digest, by which a later `--resume` knows the result.

        Returns:
            The finished folder.
        """
        provenance = read_json(self.partial, PROVENANCE) or {}
        write_json(own_file(self.partial, PROVENANCE), provenance | {"digest": self.digest})
        sync_tree(self.partial)
        if self.path.is_dir():
            shutil.rmtree(self._replaced, ignore_errors=True)  # of a kill, if OUT was made again
            self.path.rename(self._replaced)
        self.partial.rename(self.path)
        sync_folder(self.path.parent)
        shutil.rmtree(self.path / ".state")
        self._release()
        return self.path

    def discard(self) -> None:
        """Remove the partial, and the parent folders made for it."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self._release()
        self._made = [p for p in self._made if p not in (self.partial, self.state)]
        self._remove_parents()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, InvalidInput) and self._lock is not None and not self.resumed:
            self.discard()
        self._release()
        if error is not None and disk_full(error):
            raise self._full() from error
        if error is not None:
            check_file_size(error)

    def _full(self) -> RunFailed:
        written = sum(512 * p.stat().st_blocks for p in self.partial.rglob("*") if p.is_file())
        place = next(p for p in self.partial.parents if p.exists())
        return RunFailed(
            f"no space left on the disk of {place}: {shutil.disk_usage(place).free / 1e6:,.1f} MB"
            f" free, {written / 1e6:,.1f} MB taken by {self.partial.name}",
            f"free space on the disk of {place} and go on with --resume",
        )


def disk_full(error: BaseException) -> bool:
    """Also where a library has turned the errno into a text."""
    return _is(error, (errno.ENOSPC, errno.EDQUOT), "No space left on device", "os error 28")


def check_file_size(error: BaseException) -> None:
    """Say so where an error means that a file may not be so large.

    Raises:
        RunFailed: It does.
    """
    if _is(error, (errno.EFBIG,), "File too large", "os error 27"):
        raise RunFailed(
            "a file has become larger than its file system or `ulimit -f` permits",
            "lift the limit, or write to another disk, then go on with --resume",
        ) from error


def _is(error: BaseException, numbers: tuple[int, ...], *texts: str) -> bool:
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return not isinstance(error, EmbToolError) and any(text in str(error) for text in texts)


def sealed_digest(provenance: Path) -> str | None:
    """The job that a finished output is the result of; None where that is not known."""
    try:
        digest = json.loads(provenance.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(digest)


def sync_folder(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """Flush a folder and all that is in it to the disk."""
    for path in [root, *root.rglob("*")]:
        if path.is_file() or path.is_dir():
            sync_folder(path)


def remove_folder(folder: Path, state: Path, *more: Path) -> None:
    """Remove what a killed run was writing into `folder`, but for `state`.

    Args:
        folder: The `.partial`.
        state: The folder in it that a run which is taken up reads.
        more: What goes, too.
    """
    for path in [*(p for p in folder.iterdir() if p != state), *more]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
