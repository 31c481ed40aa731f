"""GPTQ: linear layers in few bits, rounded to minimize the error of their outputs on texts."""

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
"""Padded tokens per calibration batch."""

RESULT_KIND = "layers rounded"
"""Kind of the cached results, see `CalibrationContext.result`."""


class Gptq(MatrixMethod):
    """Linear layers as groupwise integers (the format of `int`), rounded by GPTQ.

    Layers are rounded in execution order, each on the outputs of the layers that are already
    rounded. A layer that no text reaches is rounded to nearest.
    """

    name: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "arXiv:2210.17323"
    kind: ClassVar[str] = "int"
    calibrated: ClassVar[bool] = True

    bits: Annotated[int, Field(ge=2, le=8, description="bits per weight")] = 4
    group_size: Annotated[
        int,
        Field(ge=0, multiple_of=8, description="weights that share a scale; row or 0: a whole row"),
        BeforeValidator(lambda value: 0 if value == "row" else value),
    ] = 64
    damping: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="added to the diagonal of the second moments, relative to its mean",
        ),
    ] = 0.01
    tokens: Annotated[
        int, Field(ge=1, description="approximate number of tokens to calibrate on")
    ] = 32768
    integer_zero_point: Annotated[
        bool, Field(description="integer zero points, as --format compressed-tensors requires")
    ] = False

    def settings(self, matrix: Matrix) -> dict[str, Any] | None:
        """Settings of linear layers; None for tables."""
        if matrix.role != "linear":
            return None
        extra = {"integer_zero_point": True} if self.integer_zero_point else {}
        return {"bits": self.bits, "group_size": self.group_size or None, **extra}

    def plan(self, draft: CheckpointEditor) -> None:
        """Announce a packed module for each linear layer, rounded to nearest as yet."""
        from emb_tool.compress.linears import refuse_without_linears

        if draft.layout.family == "static" or not draft.config:
            refuse_without_linears(draft.checkpoint.name, draft.layout.family)
        super().plan(draft)

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, context: CalibrationContext
    ) -> None:
        """Round the layers on the calibration texts, in execution order."""
        import numpy as np
        import torch

        from emb_tool.ops.layer_inputs import second_moments, without_cache
        from emb_tool.ops.rounding import QuantizedGroups, dequantize
        from emb_tool.packed.int import Int

        encoder, runtime = context.encoder(before), context.runtime
        model = encoder.model[0].auto_model
        device = runtime.device if runtime.has_float64 else torch.device("cpu")
        names = _by_module(model, [name for name in draft.packed if name not in before.packed])
        layers = {name: model.get_submodule(name) for name in names}
        done: dict[str, Mapping[str, Any]] = {}
        with context.progress.task("gptq", len(layers), "layers") as advance, without_cache(model):

            def store_layer(
                name: str, result: Result, count: Callable[[int], None] = advance
            ) -> None:
                groups, weight = QuantizedGroups(**result.tensors), layers[name].weight.data
                on_device = QuantizedGroups(*(part.to(device) for part in groups))
                weight.copy_(dequantize(*on_device, self.group_size or None))
                packed = Int(draft.packed[names[name]])
                packed.store(groups)
                draft.repack(names[name], packed)
                done[name] = result.facts
                count(1)

            for name in layers:  # an interrupted run has rounded the first of them
                if cached := context.cache.find(RESULT_KIND, [*draft.chain, name]):
                    store_layer(name, cached, advance.skip)
            batches = list(self._batches(encoder, context))
            for inputs in second_moments(model, layers, batches, runtime, [*done]):
                for name in inputs.names:
                    if name not in done:
                        where = f"{encoder.checkpoint.name}: {name}"
                        weight = layers[name].weight.data.to(device)
                        rounding = partial(self._round, where, weight, inputs)
                        store_layer(name, context.result(draft, RESULT_KIND, rounding, name))
        context.close()  # its model is no longer that of `before`
        gains = [facts["errors"] for facts in done.values()]
        tokens = max(facts["tokens"] for facts in done.values())
        widest = max(layers[name].weight.shape[1] for name in done)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = float(np.nanmedian(np.divide(*np.array(gains).T)))
        draft.notes.append(
            f"gptq: calibrated on {tokens:,} tokens; squared error of the layers' outputs:"
            f" {share:.0%} of that of rounding to nearest (median)"
        )
        if tokens < 2 * widest:
            context.progress.warn(
                f"gptq: {tokens:,} tokens are few to calibrate layers with {widest:,} inputs; give"
                " more --texts"
            )

    def _round(self, where: str, weight: torch.Tensor, inputs: InputMoments) -> Result:
        """Round one layer; also compute its output error by GPTQ and by rounding to nearest.

        Raises:
            InvalidInput: The inputs are not finite, or their damped second moments are not positive
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
        if not inputs.moments.isfinite().all():
            raise InvalidInput(
                f"{where}: its inputs on the calibration texts are not finite (NaN or infinity)",
                "the weights are finite, so check config.json (an epsilon of 0, a wrong scale)"
                " or restore the original files",
            )
        try:
            rounded = gptq(
                weight,
                inputs.moments,
                bits,
                group_size,
                damping=self.damping,
                integer_zero_point=integer_zero_point,
            )
        except LinAlgError:  # sums of float32 products are positive to 1e-7 of their size
            raise InvalidInput(
                f"{where}: damping={self.damping:g} is too small for its inputs, whose second"
                " moments are singular",
                f"use more damping: -m gptq:damping={max(10 * self.damping, 0.01):g}",
            ) from None
        nearest = quantize_groups(weight, bits, group_size, integer_zero_point=integer_zero_point)
        errors = [output_error(weight, inputs.moments, x, group_size) for x in (rounded, nearest)]
        facts = {"errors": [float(error.sum()) for error in errors], "tokens": inputs.tokens}
        return Result(rounded._asdict(), facts)

    def _batches(self, encoder: Encoder, context: CalibrationContext) -> Iterator[Batch]:
        """Texts in random order up to `tokens`, in batches of similar length."""
        import numpy as np

        from emb_tool.data.batches import plan_batches
        from emb_tool.ops.layer_inputs import Batch

        ids = encoder.tokenize(context.sample, context.prompt(encoder))
        order = np.random.default_rng(context.seed).permutation(len(ids))
        ends = np.cumsum([len(ids[i]) for i in order])
        chosen = [ids[i] for i in order[: 1 + int(np.searchsorted(ends, self.tokens))]]
        lengths = np.array([len(row) for row in chosen])
        for batch in plan_batches(lengths, BATCH_TOKENS, None):
            yield Batch(encoder.forward, encoder.collate([chosen[i] for i in batch]))


def _by_module(model: Any, packed: list[str]) -> dict[str, str]:
    """Map module names of the model to those of packed modules, which may have a base prefix."""
    modules = dict(model.named_modules())
    base = f"{model.base_model_prefix}."
    names = {module: next((n for n in (module, module.removeprefix(base)) if n in modules), None)
               for module in packed}  # fmt: skip
    return {name: module for module, name in names.items() if name}
