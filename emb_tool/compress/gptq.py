"""Few bits for the linear layers, rounded so that their outputs on real texts change least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from emb_tool.checkpoint.result_cache import Result
from emb_tool.compress.matrix_method import MatrixMethod
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    import torch

    from emb_tool.compress.calibration import CalibrationContext
    from emb_tool.model.encoder import Encoder
    from emb_tool.ops.layer_inputs import Batch, InputMoments
    from emb_tool.ops.matrices import Matrix

BATCH_TOKENS = 8192
"""Padded tokens of a calibration batch."""

LAYERS = "layers rounded"
"""What is kept for a run that is taken up."""


class Gptq(MatrixMethod):
    """Every linear layer in groupwise whole numbers (the format of `int`), by GPTQ.

    Layers are done in the order in which the model runs them, each on the inputs that the ones
    before it, rounded already, give. A layer that no text reaches is rounded to nearest.
    """

    name: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "arXiv:2210.17323"
    kind: ClassVar[str] = "int"
    calibrated: ClassVar[bool] = True

    bits: Annotated[int, Field(ge=2, le=8, description="bits of a weight")] = 4
    group_size: Annotated[
        int,
        Field(ge=0, multiple_of=8, description="weights that share a scale; row or 0 is a row"),
        BeforeValidator(lambda value: 0 if value == "row" else value),
    ] = 64
    damping: Annotated[
        float, Field(gt=0, le=1, description="added to the diagonal, relative to its mean")
    ] = 0.01
    tokens: Annotated[int, Field(ge=1, description="tokens to calibrate on, about")] = 32768
    integer_zero_point: Annotated[
        bool, Field(description="whole zero points, which the compressed-tensors format needs")
    ] = False

    def settings(self, matrix: Matrix) -> dict[str, Any] | None:
        """Of linear layers alone."""
        if matrix.role != "linear":
            return None
        rest = {"integer_zero_point": True} if self.integer_zero_point else {}
        return {"bits": self.bits, "group_size": self.group_size or None, **rest}

    def plan(self, draft: CheckpointEditor) -> None:
        """Announce a packed module for each linear layer, rounded to nearest as yet."""
        from emb_tool.compress.linears import refuse_without_linears

        if draft.layout.family == "static" or not draft.config:
            refuse_without_linears(draft.checkpoint.name, draft.layout.family)
        super().plan(draft)

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, work: CalibrationContext
    ) -> None:
        """Round the layers on the calibration texts."""
        import numpy as np
        import torch

        from emb_tool.ops.layer_inputs import second_moments, without_cache
        from emb_tool.ops.rounding import QuantizedGroups, dequantize
        from emb_tool.packed.int import Int

        encoder, runtime = work.encoder(before), work.runtime
        model = encoder.model[0].auto_model
        place = runtime.device if runtime.has_float64 else torch.device("cpu")
        names = _by_module(model, [name for name in draft.packed if name not in before.packed])
        layers = {name: model.get_submodule(name) for name in names}
        done: dict[str, Mapping[str, Any]] = {}
        with work.progress.task("gptq", len(layers), "layers") as advance, without_cache(model):

            def take(name: str, result: Result, count: Callable[[int], None] = advance) -> None:
                found, weight = QuantizedGroups(**result.tensors), layers[name].weight.data
                there = QuantizedGroups(*(part.to(place) for part in found))
                weight.copy_(dequantize(*there, self.group_size or None))
                made = Int(draft.packed[names[name]])
                made.store(found)
                draft.repack(names[name], made)
                done[name] = result.facts
                count(1)

            for name in layers:  # a run that was killed has rounded the first of them
                if held := work.kept.find(LAYERS, [*draft.chain, name]):
                    take(name, held, advance.skip)
            batches = list(self._batches(encoder, work))
            for seen in second_moments(model, layers, batches, runtime, [*done]):
                for name in seen.names:
                    if name not in done:
                        where = f"{encoder.checkpoint.name}: {name}"
                        weight = layers[name].weight.data.to(place)
                        rounding = partial(self._round, where, weight, seen)
                        take(name, work.result(draft, LAYERS, rounding, name))
        work.close()  # its model is no longer that of `before`
        gains = [facts["errors"] for facts in done.values()]
        tokens = max(facts["tokens"] for facts in done.values())
        widest = max(layers[name].weight.shape[1] for name in done)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = float(np.nanmedian(np.divide(*np.array(gains).T)))
        draft.notes.append(
            f"gptq: calibrated on {tokens:,} tokens; the layers' outputs change by {share:.0%} of"
            " what rounding to nearest does (squared, median)"
        )
        if tokens < 2 * widest:
            work.progress.warn(
                f"gptq: {tokens:,} tokens to calibrate layers of {widest:,} inputs are few; give"
                " more --texts"
            )

    def _round(self, where: str, weight: torch.Tensor, seen: InputMoments) -> Result:
        """One layer, and what its outputs lose by GPTQ and by rounding to nearest.

        Raises:
            InvalidInput: Inputs that are not finite, or whose damped moments are not positive
                definite.
        """
        from torch.linalg import LinAlgError  # type: ignore[attr-defined]

        from emb_tool.compress.gptq_rounding import gptq, output_error
        from emb_tool.ops.rounding import quantize_groups

        bits, group_size, integer_zero_point = (
            self.bits,
            self.group_size or None,
            self.integer_zero_point,
        )
        if not seen.moments.isfinite().all():
            raise InvalidInput(
                f"{where}: its inputs on the calibration texts are not finite (NaN or infinity)",
                "the weights are finite, so look at config.json (an epsilon of 0, a wrong scale)"
                " or restore the original files",
            )
        try:
            found = gptq(
                weight,
                seen.moments,
                bits,
                group_size,
                damping=self.damping,
                integer_zero_point=integer_zero_point,
            )
        except LinAlgError:  # sums of float32 products are positive to 1e-7 of their size
            raise InvalidInput(
                f"{where}: damping={self.damping:g} is too little for its inputs, whose second"
                " moments are singular",
                f"give more: -m gptq:damping={max(10 * self.damping, 0.01):g}",
            ) from None
        plain = quantize_groups(weight, bits, group_size, integer_zero_point=integer_zero_point)
        errors = [output_error(weight, seen.moments, x, group_size) for x in (found, plain)]
        facts = {"errors": [float(error.sum()) for error in errors], "tokens": seen.tokens}
        return Result(found._asdict(), facts)

    def _batches(self, encoder: Encoder, work: CalibrationContext) -> Iterator[Batch]:
        """Texts in a random order until the tokens are enough, in batches of like length."""
        import numpy as np

        from emb_tool.data.batches import plan_batches
        from emb_tool.ops.layer_inputs import Batch

        ids = encoder.tokenize(work.sample, work.prompt(encoder))
        order = np.random.default_rng(work.seed).permutation(len(ids))
        ends = np.cumsum([len(ids[i]) for i in order])
        chosen = [ids[i] for i in order[: 1 + int(np.searchsorted(ends, self.tokens))]]
        lengths = np.array([len(row) for row in chosen])
        for batch in plan_batches(lengths, BATCH_TOKENS, None):
            yield Batch(encoder.forward, encoder.collate([chosen[i] for i in batch]))


def _by_module(model: Any, packed: list[str]) -> dict[str, str]:
    """Name in the model to name of the packed module, which may have the base model's prefix."""
    modules = dict(model.named_modules())
    base = f"{model.base_model_prefix}."
    spelled = {module: next((n for n in (module, module.removeprefix(base)) if n in modules), None)
               for module in packed}  # fmt: skip
    return {name: module for module, name in spelled.items() if name}
