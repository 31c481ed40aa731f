"""bitsandbytes' formats, written tensor by tensor without running the model.

On a CPU, a forward pass repacks the weights in place and a checkpoint saved afterwards is corrupt;
a quantized model that was loaded cannot be saved again. Therefore no model is loaded here: each
weight is quantized by bitsandbytes, and the results are stored under the names that transformers
reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from emb_tool.checkpoint.meta_model import model_on_meta
from emb_tool.compress.linears import Linear, find_linears, refuse_without_linears
from emb_tool.compress.step import CompressStep
from emb_tool.compress.tensors import use_native_names
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.install import require_extra
from emb_tool.plan import TensorSpec

if TYPE_CHECKING:
    import torch

BLOCK = 64
"""Weights that share a scale in the 4-bit formats."""

NESTED_BLOCK = 256
"""Scales that share a second-level scale in double quantization."""


class Bnb(CompressStep):
    """A format of bitsandbytes for the linear layers that transformers converts.

    Attributes:
        multiples: The outputs and the inputs of a layer must be multiples of these numbers.
    """

    stage = "weights"
    packs = True
    multiples: ClassVar[tuple[int, int]] = (1, 1)

    def settings(self, dtype: str) -> dict[str, Any]:
        """Arguments of `BitsAndBytesConfig` for a model of the given dtype."""
        raise NotImplementedError

    def parts(self, spec: TensorSpec) -> list[TensorSpec]:
        """Specs of the tensors that replace a weight."""
        raise NotImplementedError

    def quantize(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors that replace a weight, by name."""
        raise NotImplementedError

    def plan(self, draft: CheckpointEditor) -> None:
        """Replace the weights of the linear layers and set `quantization_config`."""
        require_extra("bnb", f"-m {self.name}")
        draft.refuse_quantized(self.name)
        if draft.packed:
            raise InvalidInput(
                f"-m {self.name} after packing {min(draft.packed)}: a checkpoint has one"
                " quantization_config",
                "use embtool's formats for everything (-m int, -m gptq), or bitsandbytes for the"
                f" linear layers only: -m cast:dtype=fp16 -m {self.name}",
            )
        if draft.layout.family == "static" or not draft.config:
            refuse_without_linears(draft.checkpoint.name, draft.layout.family)
        use_native_names(draft)
        linears, incompatible, skipped = self._converted(draft)
        if not linears and not incompatible:
            refuse_without_linears(draft.checkpoint.name, draft.layout.family)
        if incompatible:
            outputs, inputs = self.multiples
            message = (
                f"{self.name}: {_summarize_widths(incompatible)}: on CPUs with AVX512-BF16"
                f" bitsandbytes runs only layers whose inputs are a multiple of {inputs}, and"
                f" outputs of {outputs}"
            )
            if not linears:
                raise InvalidInput(message, "use -m int:bits=4 or -m bnb-int8, which fit any width")
            draft.notes.append(f"{message}; they are not converted (llm_int8_skip_modules)")
        for linear, name in linears:
            _replace(self, draft, name, linear.transposed)
        draft.config["quantization_config"] = _config(draft, self, skipped)
        _compare(draft, self)

    def _converted(
        self, draft: CheckpointEditor
    ) -> tuple[list[tuple[Linear, str]], dict[str, tuple[int, int]], list[str] | None]:
        """The layers that transformers converts, and the modules that it must skip.

        Returns:
            The layers to convert, each with the name of its weight; the widths (outputs, inputs) of
            the layers that do not fit `multiples`, by module; and the module names to skip, None if
            transformers' defaults are enough.
        """
        from transformers.quantizers.base import HfQuantizer
        from transformers.quantizers.quantizers_utils import should_convert_module

        model: Any = model_on_meta(draft.config)
        skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        candidates = [
            linear
            for linear in find_linears(model, draft.tensors)
            if should_convert_module(linear.module, skipped)
        ]
        incompatible: dict[str, tuple[int, int]] = {}
        for linear in candidates:
            if linear.tensor:
                outputs, inputs = _row_major_spec(
                    draft.spec(linear.tensor), linear.transposed
                ).shape
                if outputs % self.multiples[0] or inputs % self.multiples[1]:
                    incompatible[linear.module] = outputs, inputs
        excluded = [linear.module for linear in candidates if linear.tensor is None] + [
            *incompatible
        ]
        if excluded:  # a skipped name also skips modules whose names end with it
            skipped = HfQuantizer.get_modules_to_not_convert(model, excluded, None, True)
        linears = [
            (linear, linear.tensor)
            for linear in candidates
            if linear.tensor and should_convert_module(linear.module, skipped)
        ]
        return linears, incompatible, sorted(skipped) if excluded else None


def _row_major_spec(spec: TensorSpec, transposed: bool) -> TensorSpec:
    """The spec of a weight in the order (outputs, inputs)."""
    return replace(spec, shape=spec.shape[::-1]) if transposed else spec


def _summarize_widths(widths: Mapping[str, tuple[int, int]]) -> str:
    """The number of layers, and the first of them with its widths."""
    module, (outputs, inputs) = next(iter(widths.items()))
    first = f"{module} with {inputs} inputs and {outputs} outputs"
    return first if len(widths) == 1 else f"{len(widths)} layers, the first is {first}"


def _replace(method: Bnb, draft: CheckpointEditor, name: str, transposed: bool) -> None:
    spec = draft.spec(name)
    if spec.dtype not in ("F32", "F16", "BF16"):
        raise InvalidInput(f"{name} is {spec.dtype}", f"{method.name} needs float weights")
    spec = _row_major_spec(spec, transposed)

    def fn(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if not bool(weight.isfinite().all()):
            raise InvalidInput(f"{name} has NaN or infinite values", "repair the checkpoint first")
        return method.quantize(name, (weight.T if transposed else weight).contiguous())

    draft.split(name, method.parts(spec), fn)


def _config(draft: CheckpointEditor, method: Bnb, skipped: list[str] | None) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    dtype = draft.config.get("dtype") or draft.config.get("torch_dtype") or "float32"
    config = BitsAndBytesConfig(llm_int8_skip_modules=skipped, **method.settings(str(dtype)))
    settings: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return settings


def _compare(draft: CheckpointEditor, method: Bnb) -> None:
    """Add a note with smaller alternatives if the result is larger than a float16 cast."""
    from emb_tool.compress.cast import FLOATS

    checkpoint = draft.checkpoint
    before = [s for w in checkpoint.weights.values() for s in w.tensors.values()]
    float16_bytes = sum(s.numel * 2 if s.dtype in FLOATS else s.nbytes for s in before)
    if draft.nbytes <= float16_bytes:
        return
    quantized = {f"{n}{part}" for n in checkpoint.tensors for part in _PARTS}
    cast_bytes = sum(
        s.numel * 2 for s in draft.specs() if s.dtype in FLOATS and s.name not in quantized
    )
    other_bytes = sum(
        s.nbytes for s in draft.specs() if s.dtype not in FLOATS or s.name in quantized
    )
    draft.notes.append(
        f"{method.name} gives {_mb(draft.nbytes)}, more than a float16 cast"
        f" ({_mb(float16_bytes)}), because it does not convert the tables; smaller are"
        f" -m cast:dtype=fp16 -m {method.name} ({_mb(cast_bytes + other_bytes)}) and"
        f" -m int:bits=8 (about {_mb(sum(s.numel for s in before) * 17 // 16)})"
    )


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


class Bnb4(Bnb):
    """4-bit formats: blocks of 64 weights in row-major order, scaled by their largest magnitude.

    On CPUs with AVX512-BF16, bitsandbytes repacks the weights in the first forward pass
    (`_convert_weight_packed_for_cpu`), which needs whole blocks in each row and a number of rows
    that is a multiple of 32.
    """

    multiples: ClassVar[tuple[int, int]] = (32, BLOCK)

    double_quant: bool

    def settings(self, dtype: str) -> dict[str, Any]:
        """See `Bnb.settings`; the type is set because the config's default is fp4."""
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.kind,
            "bnb_4bit_use_double_quant": self.double_quant,
            "bnb_4bit_compute_dtype": dtype,
        }

    @property
    def kind(self) -> str:
        """`nf4` or `fp4`."""
        return self.name.removeprefix("bnb-")

    def parts(self, spec: TensorSpec) -> list[TensorSpec]:
        """See `Bnb.parts`."""
        name, blocks = spec.name, -(-spec.numel // BLOCK)
        specs = [
            TensorSpec(name, (-(-spec.numel // 2), 1), "U8"),
            TensorSpec(f"{name}.absmax", (blocks,), "U8" if self.double_quant else "F32"),
            TensorSpec(f"{name}.quant_map", (16,), "F32"),
        ]
        if self.double_quant:
            specs += [
                TensorSpec(f"{name}.nested_absmax", (-(-blocks // NESTED_BLOCK),), "F32"),
                TensorSpec(f"{name}.nested_quant_map", (256,), "F32"),
            ]
        state = f"{name}.quant_state.bitsandbytes__{self.kind}"
        return [*specs, TensorSpec(state, (self._state_size(spec),), "U8")]

    def _state_size(self, spec: TensorSpec) -> int:
        """Bytes of the quantization state of a weight, which is stored as JSON."""
        from emb_tool.checkpoint.header import TORCH_DTYPES

        state: dict[str, Any] = {
            "quant_type": self.kind, "blocksize": BLOCK, "dtype": TORCH_DTYPES[spec.dtype],
            "shape": spec.shape,
        }  # fmt: skip
        if self.double_quant:
            state |= {
                "nested_blocksize": NESTED_BLOCK, "nested_dtype": TORCH_DTYPES["F32"],
                "nested_offset": WIDEST_FLOAT,
            }  # fmt: skip
        return len(json.dumps(state))

    def quantize(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `Bnb.quantize`."""
        import torch
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(
            weight, blocksize=BLOCK, compress_statistics=self.double_quant, quant_type=self.kind
        )
        state_tensors = state.as_dict(packed=True)
        size = self._state_size(TensorSpec(name, tuple(weight.shape), _dtype_name(weight)))
        key = f"quant_state.bitsandbytes__{self.kind}"
        # the number of digits of the offset is not known in advance: pad the JSON with spaces
        text = bytes(state_tensors[key].tolist()).ljust(size)
        state_tensors[key] = torch.tensor(list(text), dtype=torch.uint8)
        return {name: codes, **{f"{name}.{part}": value for part, value in state_tensors.items()}}


WIDEST_FLOAT = -1.2345678901234567e-100
"""A float with the largest number of characters in JSON."""


def _dtype_name(weight: torch.Tensor) -> str:
    from emb_tool.checkpoint.header import SAFETENSORS_DTYPES

    return SAFETENSORS_DTYPES[str(weight.dtype).removeprefix("torch.")]
