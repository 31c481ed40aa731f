"""bitsandbytes' formats, written tensor by tensor without running the model.

A forward pass on a CPU repacks the weights in place, and what is saved after it is corrupt; a
loaded checkpoint cannot be saved again at all. So nothing is loaded here: each weight goes through
bitsandbytes' own quantiser, and its parts are stored under the names that stock loaders read.
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
"""Weights that share a scale in 4 bits."""

NESTED = 256
"""Scales that share a scale, with double quantisation."""


class Bnb(CompressStep):
    """A format of bitsandbytes: the linear layers that transformers would convert, nothing else.

    Attributes:
        multiples: What the outputs and the inputs of a layer must be multiples of.
    """

    stage = "weights"
    packs = True
    multiples: ClassVar[tuple[int, int]] = (1, 1)

    def settings(self, dtype: str) -> dict[str, Any]:
        """Arguments of `BitsAndBytesConfig`, for a model of a dtype."""
        raise NotImplementedError

    def parts(self, spec: TensorSpec) -> list[TensorSpec]:
        """What stands for a weight."""
        raise NotImplementedError

    def quantize(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those tensors, by name."""
        raise NotImplementedError

    def plan(self, draft: CheckpointEditor) -> None:
        """Replace the linear layers' weights, and state the format in the config."""
        require_extra("bnb", f"-m {self.name}")
        draft.refuse_quantized(self.name)
        if draft.packed:
            raise InvalidInput(
                f"-m {self.name} after packing {min(draft.packed)}: a checkpoint has one"
                " quantization_config",
                "pack everything (-m int, -m gptq), or let bitsandbytes have the linear layers"
                f" alone: -m cast:dtype=fp16 -m {self.name}",
            )
        if draft.layout.family == "static" or not draft.config:
            refuse_without_linears(draft.checkpoint.name, draft.layout.family)
        use_native_names(draft)
        chosen, odd, skip = self._converted(draft)
        if not chosen and not odd:
            refuse_without_linears(draft.checkpoint.name, draft.layout.family)
        if odd:
            outputs, inputs = self.multiples
            said = (
                f"{self.name}: {_told(odd)}: on CPUs with AVX512-BF16 bitsandbytes runs only layers"
                f" whose inputs are a multiple of {inputs}, and outputs of {outputs}"
            )
            if not chosen:
                raise InvalidInput(said, "take -m int:bits=4 or -m bnb-int8, which fit any width")
            draft.notes.append(f"{said}; they stay as they are (llm_int8_skip_modules)")
        for linear, name in chosen:
            _replace(self, draft, name, linear.transposed)
        draft.config["quantization_config"] = _config(draft, self, skip)
        _compare(draft, self)

    def _converted(
        self, draft: CheckpointEditor
    ) -> tuple[list[tuple[Linear, str]], dict[str, tuple[int, int]], list[str] | None]:
        """The layers that transformers converts, and those that it must be kept from.

        Returns:
            The former, each with its weight's name; the widths (outputs, inputs) of those that do
            not fit `multiples`, by module; and the names to skip: None where those that
            transformers skips by itself are all.
        """
        from transformers.quantizers.base import HfQuantizer
        from transformers.quantizers.quantizers_utils import should_convert_module

        model: Any = model_on_meta(draft.config)
        skip = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        found = [
            linear
            for linear in find_linears(model, draft.tensors)
            if should_convert_module(linear.module, skip)
        ]
        odd: dict[str, tuple[int, int]] = {}
        for linear in found:
            if linear.tensor:
                outputs, inputs = _oriented(draft.spec(linear.tensor), linear.transposed).shape
                if outputs % self.multiples[0] or inputs % self.multiples[1]:
                    odd[linear.module] = outputs, inputs
        apart = [linear.module for linear in found if linear.tensor is None] + [*odd]
        if apart:  # a skipped name also skips what ends alike
            skip = HfQuantizer.get_modules_to_not_convert(model, apart, None, True)
        chosen = [
            (linear, linear.tensor)
            for linear in found
            if linear.tensor and should_convert_module(linear.module, skip)
        ]
        return chosen, odd, sorted(skip) if apart else None


def _oriented(spec: TensorSpec, transposed: bool) -> TensorSpec:
    """A weight's spec as (outputs, inputs)."""
    return replace(spec, shape=spec.shape[::-1]) if transposed else spec


def _told(odd: Mapping[str, tuple[int, int]]) -> str:
    """How many layers, and the first of them with its widths."""
    module, (outputs, inputs) = next(iter(odd.items()))
    first = f"{module} with {inputs} inputs and {outputs} outputs"
    return first if len(odd) == 1 else f"{len(odd)} layers, the first is {first}"


def _replace(method: Bnb, draft: CheckpointEditor, name: str, transposed: bool) -> None:
    spec = draft.spec(name)
    if spec.dtype not in ("F32", "F16", "BF16"):
        raise InvalidInput(f"{name} is {spec.dtype}", f"{method.name} takes float weights")
    spec = _oriented(spec, transposed)

    def fn(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if not bool(weight.isfinite().all()):
            raise InvalidInput(f"{name} holds NaN or infinities", "mend the checkpoint first")
        return method.quantize(name, (weight.T if transposed else weight).contiguous())

    draft.split(name, method.parts(spec), fn)


def _config(draft: CheckpointEditor, method: Bnb, skip: list[str] | None) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    dtype = draft.config.get("dtype") or draft.config.get("torch_dtype") or "float32"
    config = BitsAndBytesConfig(llm_int8_skip_modules=skip, **method.settings(str(dtype)))
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return plain


def _compare(draft: CheckpointEditor, method: Bnb) -> None:
    """Say so where the result is no smaller than a float16 cast, and what is."""
    from emb_tool.compress.cast import FLOATS

    checkpoint = draft.checkpoint
    before = [s for w in checkpoint.weights.values() for s in w.tensors.values()]
    half = sum(s.numel * 2 if s.dtype in FLOATS else s.nbytes for s in before)
    if draft.nbytes <= half:
        return
    made = {f"{n}{part}" for n in checkpoint.tensors for part in _PARTS}
    kept = sum(s.numel * 2 for s in draft.specs() if s.dtype in FLOATS and s.name not in made)
    rest = sum(s.nbytes for s in draft.specs() if s.dtype not in FLOATS or s.name in made)
    draft.notes.append(
        f"{method.name} gives {_mb(draft.nbytes)}, more than a plain float16 cast ({_mb(half)}):"
        " it leaves the tables as they are; smaller are"
        f" -m cast:dtype=fp16 -m {method.name} ({_mb(kept + rest)}) and"
        f" -m int:bits=8 (about {_mb(sum(s.numel for s in before) * 17 // 16)})"
    )


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


class Bnb4(Bnb):
    """Blocks of 64 weights of one row after the other, each with its largest magnitude.

    On CPUs with AVX512-BF16, bitsandbytes repacks the weights when the model first runs, in a way
    that takes whole blocks in each row, and rows by 32: `_convert_weight_packed_for_cpu`.
    """

    multiples: ClassVar[tuple[int, int]] = (32, BLOCK)

    double_quant: bool

    def settings(self, dtype: str) -> dict[str, Any]:
        """See `Bnb.settings`; the config's own default would be fp4 whatever is stored."""
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
        found = [
            TensorSpec(name, (-(-spec.numel // 2), 1), "U8"),
            TensorSpec(f"{name}.absmax", (blocks,), "U8" if self.double_quant else "F32"),
            TensorSpec(f"{name}.quant_map", (16,), "F32"),
        ]
        if self.double_quant:
            found += [
                TensorSpec(f"{name}.nested_absmax", (-(-blocks // NESTED),), "F32"),
                TensorSpec(f"{name}.nested_quant_map", (256,), "F32"),
            ]
        state = f"{name}.quant_state.bitsandbytes__{self.kind}"
        return [*found, TensorSpec(state, (self._state_size(spec),), "U8")]

    def _state_size(self, spec: TensorSpec) -> int:
        """Bytes of the JSON that closes the description of a weight."""
        from emb_tool.checkpoint.header import TORCH_DTYPES

        state: dict[str, Any] = {
            "quant_type": self.kind, "blocksize": BLOCK, "dtype": TORCH_DTYPES[spec.dtype],
            "shape": spec.shape,
        }  # fmt: skip
        if self.double_quant:
            state |= {
                "nested_blocksize": NESTED, "nested_dtype": TORCH_DTYPES["F32"],
                "nested_offset": LONGEST,
            }  # fmt: skip
        return len(json.dumps(state))

    def quantize(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `Bnb.quantize`."""
        import torch
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(
            weight, blocksize=BLOCK, compress_statistics=self.double_quant, quant_type=self.kind
        )
        held = state.as_dict(packed=True)
        size = self._state_size(TensorSpec(name, tuple(weight.shape), _name(weight)))
        key = f"quant_state.bitsandbytes__{self.kind}"
        # the offset's digits are not known beforehand: JSON may end with spaces
        text = bytes(held[key].tolist()).ljust(size)
        held[key] = torch.tensor(list(text), dtype=torch.uint8)
        return {name: codes, **{f"{name}.{part}": value for part, value in held.items()}}


LONGEST = -1.2345678901234567e-100
"""As many characters as a float can have in JSON."""


def _name(weight: torch.Tensor) -> str:
    from emb_tool.checkpoint.header import SAFETENSORS_DTYPES

    return SAFETENSORS_DTYPES[str(weight.dtype).removeprefix("torch.")]
