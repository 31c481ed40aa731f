"""The checks of outputs that are tensor files rather than loadable models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from emb_tool.checkpoint.reader import Checkpoint, check_finite
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table
from emb_tool.runtime.check_process import Check


class TensorsCheck(Check):
    """Read the written tensors back, and check that they are finite."""

    kind: Literal["tensors"] = "tensors"

    def run(self, progress: Progress) -> Report:
        """See `Check.run`."""
        paths = sorted(self.target.folder.glob("*.safetensors"))
        files = [Checkpoint.open(path) for path in paths]
        for file in files:
            check_finite(file)
        size = sum(file.weight_bytes() for file in files)
        return Report("check", measures=[Measure("weights", size, "B")])


class TablesCheck(Check):
    """Read packed tables back, and compare them with the source file.

    Args:
        source: The source file.
    """

    kind: Literal["tables"] = "tables"
    source: Path

    def run(self, progress: Progress) -> Report:
        """See `Check.run`."""
        from emb_tool.checkpoint.quantization import packed_modules
        from emb_tool.ops.rows import fit_context, relative_error
        from emb_tool.packed.plain import read_module

        name = self.target.name
        written = Checkpoint.open(self.target.folder, need_tokenizer=False)
        source = Checkpoint.open(self.source)
        size = written.weight_bytes()
        report = Report("check", measures=[Measure("weights", size, "B", model=name)])
        table = Table("tables, as read back", ["", "rows", "columns", "MB", "relative error"])
        modules = packed_modules(written.config)
        packed = {module: read_module(written, module, spec) for module, spec in modules.items()}
        for module, table_module in packed.items():
            table_module.link(packed)
            tensor = next(n for n in (module, f"{module}.weight") if n in source.tensors)
            rows, columns = source.tensors[tensor].shape
            original = source.tensor(tensor)
            cell = "-"
            if original.is_floating_point():
                with fit_context(None, progress):
                    error, _ = relative_error(original, table_module.rows, None)
                cell = f"{error:.4f}"
                report.measures.append(Measure("relative error", error, of=tensor, model=name))
            nbytes = f"{table_module.nbytes / 1e6:,.2f}"
            table.rows.append([tensor, f"{rows:,}", f"{columns:,}", nbytes, cell])
        report.tables.append(table)
        return report
