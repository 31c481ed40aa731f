"""An output file: written in `FILE.partial/` and moved to its place when complete.

The table of `checkpoint.output` also applies here, with FILE in place of OUT.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import write_atomically
from emb_tool.checkpoint.output import OutputFolder, sealed_digest, sync_folder, sync_tree
from emb_tool.errors import InvalidInput


class OutputFile(OutputFolder):
    """A file that either is complete or exists as a folder `FILE.partial`, which can be resumed.

    Args:
        out: The output file, in an existing folder.
        provenance: JSON file in the same folder; its `digest` identifies the job for `--resume`.
        companions: Further output files in the same folder; old ones are removed.
        **flags: See `OutputFolder`.
    """

    def __init__(
        self, out: Path, *, provenance: Path, companions: Sequence[Path] = (), **flags: Any
    ) -> None:
        super().__init__(out, **flags)
        self.provenance = self.path.with_name(provenance.name)
        # the file itself is moved last: if it exists, the output is complete
        self.files = [*(self.path.with_name(p.name) for p in (*companions, provenance)), self.path]
        self._sealing = self.state / "sealing"

    def _is_done(self) -> bool:
        if not self.path.parent.is_dir():
            raise InvalidInput(
                f"{self.path}: there is no folder {self.path.parent}", "create it first"
            )
        if self.path.is_dir():
            raise InvalidInput(f"{self.path} is a folder", "give a file")
        if self.resume and self._is_same_job() and self._sealing.is_file():  # killed while sealing
            if self._lock is None:
                return False
            self._move(json.loads(self._sealing.read_text(encoding="utf-8")))
            return True
        if self.resume and self.path.is_file() and sealed_digest(self.provenance) == self.digest:
            # a partial folder whose removal was interrupted is removed under the lock
            return self._lock is not None or not self.partial.exists()
        for file in self.files:
            if file != self.provenance and file.exists() and not self.overwrite:
                raise InvalidInput(f"{file} exists already", "use another file, or --overwrite")
        return False

    def seal(self) -> Path:
        """Flush the files to disk and move them to their place; returns the output file."""
        sync_tree(self.partial)
        names = [file.name for file in self.files if (self.partial / file.name).exists()]
        write_atomically(self._sealing, json.dumps(names))
        self._move(names)
        sync_folder(self.path.parent)
        shutil.rmtree(self.partial)
        self._release()
        return self.path

    def _move(self, names: Sequence[str]) -> None:
        """Move the files, or the rest of them after a kill."""
        for file in self.files:
            if file.name not in names:
                file.unlink(missing_ok=True)
            elif (self.partial / file.name).exists():
                (self.partial / file.name).replace(file)
