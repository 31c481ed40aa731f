"""The output folder: written to `OUT.partial`, renamed to `OUT` when complete.

| state of OUT and OUT.partial             | plain   | --resume             | --overwrite       |
| ---------------------------------------- | ------- | -------------------- | ----------------- |
| neither, or OUT is an empty folder       | starts  | starts               | starts            |
| OUT is complete, from the same job       | refused | finished, no work    | replaced at the end |
| OUT has anything else                    | refused | refused              | replaced at the end |
| `.partial` of the same job               | refused | resumed              | restarted         |
| `.partial` of another job, or unknown    | refused | refused              | restarted         |
| `.partial` locked by another process     | refused | refused              | refused           |

With both flags a job is resumed if possible and restarted otherwise.
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
    """A folder that either is complete or exists as `.partial`, which can be resumed.

    `OUT.partial/.state/` has the lock, the digest of the job and the state for resuming; `seal`
    removes it. After an exception the partial folder stays, except after `InvalidInput` in the run
    that created it.

    Args:
        out: The output folder.
        job_digest: Identifies the job; a partial folder is resumed only by the same job.
        overwrite: Replace an existing folder.
        resume: Resume the partial folder of the same job.

    Attributes:
        path: The output folder, resolved.
        partial: The folder to write to.
        resumed: Whether the partial folder of an earlier run is resumed.
        finished: Whether the output of this job is complete already.

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
        self._replaced = self.state / "replaced"  # the old OUT, between the renames of `seal`
        self.overwrite = overwrite
        self.resume = resume
        self.resumed = False
        self.finished = False
        self._lock: int | None = None
        self._created: list[Path] = []

    def check(self) -> bool:
        """Refuse what `__enter__` would refuse, without changing anything.

        Returns:
            Whether the output is complete.

        Raises:
            InvalidInput: See the table of this module.
        """
        if self._is_done():
            return True
        with suppress(FileNotFoundError), (self.state / "lock").open("rb") as lock:
            self._flock(lock.fileno(), fcntl.LOCK_SH)
        self._should_resume()
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
                raise self._disk_full_error() from error
            raise InvalidInput(
                f"{error.filename}: cannot write there ({error.strerror})", "choose another -o"
            ) from None
        try:
            self._restore_replaced()
            self.finished = self._is_done()  # again: the last owner of the lock may have sealed it
            if self.finished:
                self.discard()
            else:
                self._check_partial()
        except BaseException:
            self._release()
            raise
        return self

    def _restore_replaced(self) -> None:
        """Undo the first rename of `seal` after a kill before the second one."""
        is_empty = not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))
        if is_empty and self._replaced.is_dir():
            self._replaced.rename(self.path)

    def _is_done(self) -> bool:
        """Whether OUT is the complete output of this job; refuses what must not be replaced."""
        if self.path.is_file():
            raise InvalidInput(f"{self.path} is a file", "give a folder with -o")
        if self.path.is_mount():
            raise InvalidInput(f"{self.path} is a mount point", "give a folder inside it with -o")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return False
        if self.resume and sealed_digest(self.path / PROVENANCE) == self.digest:
            return True
        if not self.overwrite:
            detail = (
                " with the result of another job" if sealed_digest(self.path / PROVENANCE) else ""
            )
            raise InvalidInput(
                f"output folder {self.path} is not empty{detail}",
                "choose another -o, or replace it with --overwrite",
            )
        if Path.cwd().is_relative_to(self.path) or Path.home().is_relative_to(self.path):
            raise InvalidInput(
                f"{self.path} contains your working or home folder and is not overwritten",
                "choose another -o",
            )
        return False

    def _check_partial(self) -> None:
        """Resume or restart the partial folder, after it is locked."""
        self.resumed = self._should_resume()
        if not self.resumed:
            self._empty()
            write_atomically(self._digest_file, self.digest + "\n")

    def _should_resume(self) -> bool:
        """Whether the partial folder is resumed; refuses it if it must not be restarted either."""
        if self.resume and self._is_same_job():
            return True
        has_files = self.partial.is_dir() and any(p != self.state for p in self.partial.iterdir())
        if self.overwrite or not (has_files or self._digest_file.exists()):
            return False
        if self.resume:
            raise InvalidInput(
                f"{self.partial} belongs to another job: its settings or inputs differ",
                "use the same settings as before, or restart with --overwrite",
            )
        raise InvalidInput(
            f"{self.partial} was left by an interrupted job",
            "continue with --resume, or restart with --overwrite",
        )

    def _is_same_job(self) -> bool:
        """Whether the partial folder belongs to this job."""
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
                self._created.append(path)

    def _remove_parents(self) -> None:
        """Remove the folders created on entering that are empty."""
        for path in reversed(self._created):
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
            # the owner may have sealed or removed the folder between our open and our lock
            if path.exists() and path.stat().st_ino == os.fstat(lock).st_ino:
                break
            os.close(lock)
        os.ftruncate(lock, 0)
        os.write(lock, f"pid {os.getpid()} on {os.uname().nodename}".encode())
        self._lock = lock

    def _flock(self, lock: int, kind: int) -> None:
        """Lock the open lock file; refuse if another process has the lock."""
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise InvalidInput(
                    f"{self.state / 'lock'} cannot be locked ({error.strerror})",
                    "write to a file system that supports locks (flock)",
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
        """Flush the partial folder to disk and rename it to `OUT`, replacing an existing folder.

        The digest of the job is added to `provenance.json`, where a later `--resume` looks for it.

        Returns:
            The output folder.
        """
        provenance = read_json(self.partial, PROVENANCE) or {}
        write_json(own_file(self.partial, PROVENANCE), provenance | {"digest": self.digest})
        sync_tree(self.partial)
        if self.path.is_dir():
            shutil.rmtree(self._replaced, ignore_errors=True)  # left by a kill
            self.path.rename(self._replaced)
        self.partial.rename(self.path)
        sync_folder(self.path.parent)
        shutil.rmtree(self.path / ".state")
        self._release()
        return self.path

    def discard(self) -> None:
        """Remove the partial folder and the parents that were created for it."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self._release()
        self._created = [p for p in self._created if p not in (self.partial, self.state)]
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
            raise self._disk_full_error() from error
        if error is not None:
            raise_file_too_large(error)

    def _disk_full_error(self) -> RunFailed:
        written = sum(512 * p.stat().st_blocks for p in self.partial.rglob("*") if p.is_file())
        parent = next(p for p in self.partial.parents if p.exists())
        return RunFailed(
            f"no space left on the disk of {parent}: {shutil.disk_usage(parent).free / 1e6:,.1f} MB"
            f" free, {written / 1e6:,.1f} MB used by {self.partial.name}",
            f"free space on the disk of {parent} and continue with --resume",
        )


def disk_full(error: BaseException) -> bool:
    """Whether an error is a full disk, also if a library reports it only as text."""
    return _matches_error(
        error, (errno.ENOSPC, errno.EDQUOT), "No space left on device", "os error 28"
    )


def raise_file_too_large(error: BaseException) -> None:
    """Translate errors about a file that is too large.

    Raises:
        RunFailed: `error` is about the size of a file.
    """
    if _matches_error(error, (errno.EFBIG,), "File too large", "os error 27"):
        raise RunFailed(
            "a file is larger than its file system or `ulimit -f` permits",
            "raise the limit, or write to another disk, then continue with --resume",
        ) from error


def _matches_error(error: BaseException, numbers: tuple[int, ...], *texts: str) -> bool:
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return not isinstance(error, EmbToolError) and any(text in str(error) for text in texts)


def sealed_digest(provenance: Path) -> str | None:
    """Digest of the job of a complete output; None if unknown."""
    try:
        digest = json.loads(provenance.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(digest)


def sync_folder(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """Flush a folder and its contents to disk."""
    for path in [root, *root.rglob("*")]:
        if path.is_file() or path.is_dir():
            sync_folder(path)


def remove_folder(folder: Path, state: Path, *more: Path) -> None:
    """Remove the files of an interrupted run from `folder`, except `state`.

    Args:
        folder: The `.partial` folder.
        state: The folder in it with the state for resuming.
        more: Further paths to remove.
    """
    for path in [*(p for p in folder.iterdir() if p != state), *more]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
