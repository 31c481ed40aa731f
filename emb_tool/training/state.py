"""Saved states of a training run: tensors in safetensors, other data in JSON, no pickle.

States are written alternately to two folders; the file `latest` names the complete one and is
replaced atomically, so a killed process always leaves a state that can be resumed.
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
    """Load the tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise InvalidInput(
            f"{path}: the saved state cannot be read: {error}", "start again with --overwrite"
        ) from error
    return tensors


_FILES = ("model.safetensors", "optimizer.safetensors")


def checksum(path: Path) -> str:
    """SHA-256 of a file, `none` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "none"


def check_saved(path: Path, expected: str) -> None:
    """Refuse a file that has changed since it was saved.

    Args:
        path: The file.
        expected: Its `checksum` when it was saved.
    """
    if checksum(path) != expected:
        raise InvalidInput(
            f"{path}: the saved state is damaged (checksum mismatch)",
            "start again with --overwrite",
        )


class States:
    """The saved states of one run.

    Args:
        folder: Their folder.
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
        """Write a state and remove the previous one.

        If the weights are sharded, all processes must call it, and one writes.

        Args:
            module: The student.
            optimizers: Their per-parameter state is saved, but not their settings.
            facts: Other data, serializable as JSON.
            write: Whether this process writes.
        """
        weights = {name: full_tensor(value) for name, value in module.state_dict().items()}
        tensors = {"rng": torch.get_rng_state()}
        numbers: dict[str, float] = {}
        for number, optimizer in enumerate(optimizers):
            for index, entry in optimizer.state_dict()["state"].items():
                for key, value in entry.items():
                    if isinstance(value, Tensor):
                        tensors[f"{number}.{index}.{key}"] = full_tensor(value)
                    else:
                        numbers[f"{number}.{index}.{key}"] = value
        if not write:
            return
        previous = self._latest()
        name = "b" if previous == "a" else "a"
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        save_tensors(target / "model.safetensors", weights)
        save_tensors(target / "optimizer.safetensors", tensors)
        sums = {file: checksum(target / file) for file in _FILES}
        data = {**facts, "optimizer": numbers, "checksums": sums}
        write_atomically(target / "facts.json", json.dumps(data))
        write_atomically(self.folder / "latest", name)
        if previous:
            shutil.rmtree(self.folder / previous, ignore_errors=True)

    def _latest(self) -> str | None:
        file = self.folder / "latest"
        return file.read_text(encoding="utf-8") if file.exists() else None

    def texts(self) -> int | None:
        """Texts used before the latest state; None without a state."""
        latest = self._latest()
        if latest is None:
            return None
        return int(self._facts(self.folder / latest)["cursor"][3])

    @staticmethod
    def _facts(source: Path) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((source / "facts.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{source / 'facts.json'}: the saved state cannot be read: {error}",
                "start again with --overwrite",
            ) from error
        return facts

    def load(
        self, module: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> dict[str, Any] | None:
        """Load the latest state; returns its facts, None without a state."""
        latest = self._latest()
        if latest is None:
            return None
        source = self.folder / latest
        facts = self._facts(source)
        for name, expected in facts.pop("checksums").items():
            check_saved(source / name, expected)
        current = module.state_dict()
        weights = load_tensors(source / "model.safetensors")
        module.load_state_dict(
            {name: distribute_like(weights[name], current[name]) for name in weights}
        )
        tensors = load_tensors(source / "optimizer.safetensors")
        torch.set_rng_state(tensors.pop("rng"))
        restored: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
        for name, value in (*tensors.items(), *facts.pop("optimizer").items()):
            number, index, key = name.split(".", 2)
            restored[int(number)].setdefault(int(index), {})[key] = value
        for optimizer, state in zip(optimizers, restored, strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, entry in state.items():
                for key, value in entry.items():
                    if isinstance(value, Tensor):
                        entry[key] = distribute_like(value, parameters[index])
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        return facts
