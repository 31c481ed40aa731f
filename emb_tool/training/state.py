"""The state of a training run on disk: tensors in safetensors, the rest in JSON, never a pickle.

States are written to two folders in turn; the file `latest` names the one that is whole and is
replaced atomically, so that a kill at any moment leaves a state that can be gone on from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emb_tool.checkpoint.files import write_atomically
from emb_tool.checkpoint.result_cache import save_tensors
from emb_tool.errors import InvalidInput
from emb_tool.runtime.distributed import distribute_like, full_tensor


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise InvalidInput(
            f"{path}: the saved state cannot be read: {error}", "start anew with --overwrite"
        ) from error
    return tensors


_FILES = ("model.safetensors", "optimizer.safetensors")


def checksum(path: Path) -> str:
    """Of a file; `none` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "none"


def check_saved(path: Path, wanted: str) -> None:
    """Refuse a file that is not as it was saved.

    Args:
        path: The file.
        wanted: Its `checksum` then.
    """
    if checksum(path) != wanted:
        raise InvalidInput(
            f"{path}: the saved state is damaged (its checksum is another)",
            "start anew with --overwrite",
        )


class States:
    """The states of one run.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        module: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        facts: dict[str, Any],
        write: bool = True,
    ) -> None:
        """Write a state and let go of the one before.

        Where weights are cut over processes all of them must call it, and one writes.

        Args:
            module: The student.
            optimizers: What they remember of each parameter is kept, their settings are not.
            facts: Anything that JSON holds.
            write: Whether this process does.
        """
        weights = {name: full_tensor(value) for name, value in module.state_dict().items()}
        tensors = {"rng": torch.get_rng_state()}
        numbers: dict[str, float] = {}
        for which, optimizer in enumerate(optimizers):
            for index, entry in optimizer.state_dict()["state"].items():
                for key, value in entry.items():
                    if isinstance(value, Tensor):
                        tensors[f"{which}.{index}.{key}"] = full_tensor(value)
                    else:
                        numbers[f"{which}.{index}.{key}"] = value
        if not write:
            return
        before = self._latest()
        name = "b" if before == "a" else "a"
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        save_tensors(target / "model.safetensors", weights)
        save_tensors(target / "optimizer.safetensors", tensors)
        sums = {file: checksum(target / file) for file in _FILES}
        told = {**facts, "optimizer": numbers, "checksums": sums}
        write_atomically(target / "facts.json", json.dumps(told))
        write_atomically(self.folder / "latest", name)
        if before:
            shutil.rmtree(self.folder / before, ignore_errors=True)

    def _latest(self) -> str | None:
        file = self.folder / "latest"
        return file.read_text(encoding="utf-8") if file.exists() else None

    def texts(self) -> int | None:
        """The texts used before the newest state; None where there is none."""
        latest = self._latest()
        if latest is None:
            return None
        return int(self._facts(self.folder / latest)["place"][3])

    @staticmethod
    def _facts(source: Path) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((source / "facts.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{source / 'facts.json'}: the saved state cannot be read: {error}",
                "start anew with --overwrite",
            ) from error
        return facts

    def load(
        self, module: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> dict[str, Any] | None:
        """Take up the newest state; None where there is none."""
        latest = self._latest()
        if latest is None:
            return None
        source = self.folder / latest
        facts = self._facts(source)
        for name, wanted in facts.pop("checksums").items():
            check_saved(source / name, wanted)
        now = module.state_dict()
        weights = load_tensors(source / "model.safetensors")
        module.load_state_dict(
            {name: distribute_like(weights[name], now[name]) for name in weights}
        )
        tensors = load_tensors(source / "optimizer.safetensors")
        torch.set_rng_state(tensors.pop("rng"))
        remembered: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
        for name, value in (*tensors.items(), *facts.pop("optimizer").items()):
            which, index, key = name.split(".", 2)
            remembered[int(which)].setdefault(int(index), {})[key] = value
        for optimizer, state in zip(optimizers, remembered, strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, entry in state.items():
                for key, value in entry.items():
                    if isinstance(value, Tensor):
                        entry[key] = distribute_like(value, parameters[index])
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        return facts
