"""A file made in `FILE.partial/` and moved to its place when all is there.

The table of `checkpoint.output` holds here, too, with FILE in place of OUT.
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
    """A file that is either whole under its name or a folder `FILE.partial` to be taken up.

    Args:
        out: The file to be; its folder exists.
        provenance: A JSON file beside it, by whose `digest` a later `--resume` knows the result.
        beside: Further files that may lie beside it; those of an earlier output go.
        **flags: As for `OutputFolder`.
    """

    def __init__(
        self, out: Path, *, provenance: Path, beside: Sequence[Path] = (), **flags: Any
    ) -> None:
        super().__init__(out, **flags)
        self.provenance = self.path.with_name(provenance.name)
        # the file itself goes last: where it is, all is
        self.files = [*(self.path.with_name(p.name) for p in (*beside, provenance)), self.path]
        self._sealing = self.state / "sealing"

    def _is_done(self) -> bool:
        if not self.path.parent.is_dir():
            raise InvalidInput(
                f"{self.path}: there is no folder {self.path.parent}", "make it first"
            )
        if self.path.is_dir():
            raise InvalidInput(f"{self.path} is a folder", "name a file")
        if self.resume and self._ours() and self._sealing.is_file():  # killed while sealing
            if self._lock is None:
                return False
            self._move(json.loads(self._sealing.read_text(encoding="utf-8")))
            return True
        if self.resume and self.path.is_file() and sealed_digest(self.provenance) == self.digest:
            # a partial that was being removed goes, too, once nobody else can hold it
            return self._lock is not None or not self.partial.exists()
        for file in self.files:
            if file != self.provenance and file.exists() and not self.overwrite:
                raise InvalidInput(
                    f"{file} exists already", "name another file, or give --overwrite"
                )
        return False

    def seal(self) -> Path:
        """Flush what was written to disk and move it to its place; returns the finished file."""
        sync_tree(self.partial)
        made = [file.name for file in self.files if (self.partial / file.name).exists()]
        write_atomically(self._sealing, json.dumps(made))
        self._move(made)
        sync_folder(self.path.parent)
        shutil.rmtree(self.partial)
        self._release()
        return self.path

    def _move(self, made: Sequence[str]) -> None:
        """Also what is left of it, where a kill came in between."""
        for file in self.files:
            if file.name not in made:
                file.unlink(missing_ok=True)
            elif (self.partial / file.name).exists():
                (self.partial / file.name).replace(file)
