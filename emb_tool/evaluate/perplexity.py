"""Perplexity of a causal checkpoint, by the length of its context."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PrivateAttr

from emb_tool.data.text_options import Delimiter, Header, TextField, TextOptions
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.long_tasks import LongTask, Window, format_cell, readable_lengths
from emb_tool.evaluate.task import Score
from emb_tool.fields import FlagInfo
from emb_tool.method import IntList
from emb_tool.report import Measure, Table

if TYPE_CHECKING:
    from emb_tool.evaluate.model_pair import ModelPair


class Perplexity(LongTask):
    """Perplexity of a causal checkpoint at each length of its context."""

    name: ClassVar[str] = "perplexity"
    paper: ClassVar[str] = "arXiv:2309.00071"
    main: ClassVar[str | None] = "perplexity"
    units: ClassVar[dict[str, str]] = {"tokens": "tokens"}

    path: Annotated[
        str, Field(description="texts: a file, a folder or hub:NAME"), FlagInfo(metavar="PATH")
    ]
    lengths: Annotated[IntList, Field(description="context lengths in tokens")] = (512, 1024, 2048)
    tokens: Annotated[int, Field(ge=64, description="maximum number of tokens of all texts")] = (
        65536
    )
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None
    window: Window = None

    _text: str | None = PrivateAttr(None)

    def check(self) -> list[str]:
        """Read the texts."""
        if not self._texts().strip():
            raise InvalidInput(f"{self.path}: there is no text", "give a file with texts")
        return self._notes

    def score(self, pair: ModelPair, reference: ModelPair | None = None) -> Score:
        """Exp of the mean loss, without each context's first token, at each length it reads."""
        limit = pair.document.encoder.max_length
        lengths = readable_lengths(self.lengths, limit)
        if not lengths:  # a short reference is measured only for its baselines
            return Score({})
        figures: dict[str, float | int] = dict(self._at(pair, lengths))
        return Score({"perplexity": figures[f"perplexity@{max(lengths)}"], **figures})

    def beside(self, pair: ModelPair) -> Score:
        """The model with contexts of the window, and unmodified at every length."""
        from emb_tool.evaluate.length_baselines import computed_positions

        window = self._window(pair)
        encoder = pair.document.encoder
        longer = [n for n in self.lengths if n > window and computed_positions(encoder)]
        measured = self._at(pair, [window, *longer])
        figures = {
            f"perplexity@{n} truncation": measured[f"perplexity@{window}"] for n in self.lengths
        }
        figures |= {f"perplexity@{n} untreated": measured[f"perplexity@{n}"] for n in longer}
        return Score(dict(figures))

    def verdicts(self, rows: Mapping[str, Mapping[str, Measure]], reference: str) -> list[str]:
        """A message for each figure of a model that is worse than the unextended reference."""
        messages = []
        for model, row in rows.items():
            for name, measure in row.items():
                for other in ("untreated", "truncation"):
                    base = rows.get(reference, {}).get(f"{name} {other}")
                    if model == reference or base is None or not base.value or not measure.value:
                        continue
                    if measure.value > base.value:
                        kind = "contexts of the window" if other == "truncation" else "untreated"
                        messages.append(
                            f"{self.label}: {model} has {measure.value:.1f} in {name}, worse than "
                            f"{reference} {kind} ({base.value:.1f})"
                        )
                        break
        return messages

    def table(self, rows: Mapping[str, Mapping[str, Measure]]) -> Table:
        """One row per model or baseline, one column per length."""
        title = f"{self.label}: perplexity, by tokens of the context"
        table = Table(title, ["model", *(f"{n:,}" for n in self.lengths)])
        for model, row in rows.items():
            for suffix in ("", " truncation", " untreated"):
                cells = [format_cell(row, f"perplexity@{n}{suffix}") for n in self.lengths]
                if any(cells):
                    table.rows.append([f" {suffix}" if suffix else model, *cells])
        return table

    def _at(self, pair: ModelPair, lengths: list[int]) -> dict[str, float]:
        import torch
        from transformers import AutoModelForCausalLM

        from emb_tool.checkpoint.unwrapped_copy import unwrapped_folder
        from emb_tool.model.loaded_weights import loading_reports, refuse_unloaded
        from emb_tool.progress import quiet

        encoder: Any = pair.document.encoder
        with quiet(), unwrapped_folder(encoder.checkpoint) as folder, loading_reports() as loaded:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
        for loading_report in loaded:
            refuse_unloaded(loading_report, encoder.checkpoint.name, head=True)
        model.to(encoder.runtime.device).eval()
        with quiet():
            ids = encoder._tokenizer(self._texts(), return_tensors="pt")["input_ids"][0]
        ids = ids[: self.tokens]
        figures = {}
        with torch.inference_mode():
            for length in lengths:
                total, count = 0.0, 0
                for start in range(0, len(ids) - length + 1, length):
                    context = encoder.runtime.move(ids[start : start + length][None])
                    logits = model(context).logits[0, :-1].float()
                    loss = torch.nn.functional.cross_entropy(
                        logits, context[0, 1:], reduction="sum"
                    )
                    total, count = total + float(loss), count + length - 1
                if not count:
                    raise InvalidInput(
                        f"{self.path}: fewer than {length} tokens", "give longer texts"
                    )
                figures[f"perplexity@{length}"] = exp(total / count)
        return figures

    def _texts(self) -> str:
        if self._text is None:
            from emb_tool.data.texts import read_texts, scan

            scan([self.path], TextOptions.of(self))
            texts, size = [], 0
            for record in read_texts([self.path], TextOptions.of(self), note=self.note):
                texts.append(record.text)
                size += len(record.text)
                if size > 8 * self.tokens:
                    break
            self._text = "\n".join(texts)
        return self._text
