"""Registration of the packed format: `import emb_tool.hub` lets stock loaders open it.

`AutoModel.from_pretrained` and `SentenceTransformer` then create packed modules (`emb_tool.packed`)
as `quantization_config` of `config.json` specifies. Importing this module only registers them:
static embeddings of sentence-transformers are patched when that library is imported.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec as ImportSpec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from emb_tool.checkpoint.files import read_json, write_json
from emb_tool.checkpoint.quantization import PACKED, VERSION, packed_modules
from emb_tool.errors import InvalidInput
from emb_tool.ops import attention
from emb_tool.ops.matrices import row_factor
from emb_tool.packed.expand import expand as expand
from emb_tool.progress import quiet

if TYPE_CHECKING:
    from emb_tool.packed.base import Packed

# -- transformers ---------------------------------------------------------------------------------


@register_quantization_config(PACKED)
class PackedConfig(QuantizationConfigMixin):
    """`quantization_config` of a packed checkpoint.

    Args:
        modules: Specs of `emb_tool.packed` by module name.
        version: Version of the format.
        rest: Further attributes, stored unchanged.
    """

    quant_method: Any = PACKED

    def __init__(
        self, modules: Mapping[str, Any] | None = None, version: int = VERSION, **rest: Any
    ) -> None:
        self.quant_method = PACKED
        self.version = version
        for key, value in rest.items():
            if key != "quant_method":
                setattr(self, key, value)
        self.modules = packed_modules(
            {"quantization_config": {**rest, "quant_method": PACKED, "version": version,
                                     "modules": dict(modules or {})}}
        )  # fmt: skip


@register_quantizer(PACKED)
class PackedQuantizer(HfQuantizer):
    """Replaces modules on `meta`, before transformers reads the weights."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        modules = dict(model.named_modules())
        base = f"{model.base_model_prefix}."
        placed: dict[str, Packed] = {}
        named: dict[str, Packed] = {}
        config: Any = self.quantization_config
        for name, spec in config.modules.items():
            spellings = (name, name.removeprefix(base), base + name)
            # transformers handles modules that this class lacks: it raises if a shape differs
            target = next((n for n in spellings if n in modules), None)
            if target is not None:
                placed[target] = named[name] = _place(model, target, modules[target], spec)
        for module in placed.values():
            module.link(named)
        self.shared = _untie(model, placed)
        state = model.state_dict()
        self.shapes = {name: tensor.shape for name, tensor in state.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in state.items()}
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for (
            name,
            tensor,
        ) in model.state_dict().items():  # old versions do not check shapes if quantized
            if tensor.shape != (shape := self.shapes.get(name, tensor.shape)):
                raise InvalidInput(
                    f"{model.name_or_path}: {name} has shape {[*tensor.shape]}, its config.json"
                    f" says {[*shape]}",
                    "the weights are damaged, or another model's: restore the original files",
                )
        fp32_names = {
            *(model._keep_in_fp32_modules or ()),
            *(model._keep_in_fp32_modules_strict or ()),
        }
        # old versions leave some floats in their stored dtype
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            dtype = self.dtypes.get(name, tensor.dtype)
            if (
                tensor.is_floating_point()
                and tensor.dtype != dtype
                and not fp32_names & {*name.split(".")}
            ):
                tensor.data = tensor.data.to(dtype)
        for name, source in self.shared.items():
            _put(model, name, model.get_submodule(source))
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[Any, dict[str, str]]:
        """The state to save; shared modules are saved once."""
        shared = tuple(f"{name}." for name in self.shared)
        state = model.state_dict()
        return {name: value for name, value in state.items() if not name.startswith(shared)}, {}

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Loaded models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Parameters that are not packed can be trained."""
        return True


def _place(model: Any, name: str, old: Any, spec: Mapping[str, Any]) -> Packed:
    """Replace a plain module by a packed one."""
    import torch

    from emb_tool import packed

    role = "table" if isinstance(old, torch.nn.Embedding) else "linear"
    weight = getattr(old, "weight", None)
    shape = () if weight is None else tuple(weight.shape)
    if shape != tuple(spec["shape"]):
        raise InvalidInput(
            f"quantization_config: {name} is packed as {spec['shape']}, the model has"
            f" {list(shape)}",
            "config.json is not that of these weights",
        )
    new = packed.empty({**spec, "bias": getattr(old, "bias", None) is not None}, name, role)
    new.padding_idx = getattr(old, "padding_idx", None)
    factor = row_factor(old) if role == "table" else 1.0
    if factor is None:
        raise InvalidInput(
            f"quantization_config: {name} is packed, and {type(old).__name__} does more than look"
            " rows up",
            "config.json is not that of these weights",
        )
    if factor != 1:
        new.register_forward_hook(partial(_scaled, factor))
    _put(model, name, new)
    return new


def _scaled(factor: float, module: Any, inputs: Any, output: Any) -> Any:
    return output * output.new_tensor(factor)


def _put(model: Any, name: str, module: Any) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, module)


def _untie(model: Any, placed: Mapping[str, Packed]) -> dict[str, str]:
    """Take packed weights out of transformers' ties.

    Returns:
        Further places of a packed table: their modules wait, empty, until it is read.

    Raises:
        InvalidInput: An output head that is tied to a packed table, of which it would need the
            matrix.
    """
    import torch

    shared = {}
    tied = model.all_tied_weights_keys
    for target, source in list(tied.items()):
        name, origin = target.removesuffix(".weight"), source.removesuffix(".weight")
        if origin not in placed and name not in placed:
            continue
        del tied[target]
        if name in placed:
            continue
        if not isinstance(model.get_submodule(name), torch.nn.Embedding):
            raise InvalidInput(
                f"{type(model).__name__}: its output head {name} is the packed table {origin}",
                "load it with AutoModel, or make it plain first: embtool expand",
            )
        _put(model, name, torch.nn.Identity())
        shared[name] = origin
    return shared


# -- sentence-transformers' static embeddings -----------------------------------------------------


def _patch_sentence_transformers() -> None:
    """Register parallel windows, and support for packed static tables."""
    from emb_tool import windows

    windows.register()
    _patch_static_embedding()


def _patch_static_embedding() -> None:
    """Patch StaticEmbedding to load and save packed tables."""
    with quiet():
        from sentence_transformers.models import StaticEmbedding

    static: Any = StaticEmbedding
    if hasattr(static.load, "__wrapped__"):
        return
    load, save = static.load.__func__, static.save

    @wraps(load)
    def load_packed(cls: Any, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        config = _static_config(cls, model_name_or_path, kwargs)
        spec = packed_modules(config).get("embedding")
        if spec is None:
            return load(cls, model_name_or_path, *args, **kwargs)
        return _load_static(cls, model_name_or_path, spec, config, kwargs)

    @wraps(save)
    def save_packed(self: Any, output_path: str, *args: Any, **kwargs: Any) -> None:
        save(self, output_path, *args, **kwargs)
        if config := getattr(self, "packed_config", None):
            write_json(Path(output_path) / "config.json", config)

    static.load = classmethod(load_packed)
    static.save = save_packed


def _static_config(cls: Any, name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a static table; {} if it is missing."""
    hub = {key: kwargs[key] for key in _HUB if key in kwargs}
    path = cls.load_file_path(name, filename="config.json", **hub)
    if path is None or not Path(path).is_file():
        return {}
    return read_json(Path(path).parent, Path(path).name) or {}


_HUB = ("subfolder", "token", "cache_folder", "revision", "local_files_only")


def _load_static(
    cls: Any, name: str, spec: Mapping[str, Any], config: dict[str, Any], kwargs: Mapping[str, Any]
) -> Any:
    """A StaticEmbedding whose table is packed."""
    import torch
    from tokenizers import Tokenizer

    from emb_tool import packed

    hub = {k: kwargs[k] for k in _HUB if k in kwargs}
    tokenizer = Tokenizer.from_file(cls.load_file_path(name, filename="tokenizer.json", **hub))
    weights = cls.load_torch_weights(model_name_or_path=name, **hub)
    module = cls(tokenizer, embedding_weights=torch.zeros(1, int(spec["shape"][1])))
    with torch.device("meta"):  # no memory is allocated for a size in the config
        module.embedding = packed.empty(spec, "embedding", "bag")
    module.embedding.link({})
    module.num_embeddings = module.embedding.num_embeddings
    module.load_state_dict(weights, assign=True)
    module.packed_config = config
    return module


class _AfterImport(MetaPathFinder, Loader):
    """Calls a function after a module has been imported (PEP 302).

    sentence-transformers has no registry of formats, so its class must be patched after import.
    Importing it here would increase the CPU time of `AutoModel` users from about 8 to 14 seconds.
    """

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then
        self.asking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ImportSpec | None:
        if name != self.name or self.asking:
            return None
        self.asking = True  # use the other finders, which follow this one
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ImportSpec) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        sys.meta_path.remove(self)
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.then()


attention.register()
if "sentence_transformers" in sys.modules:
    _patch_sentence_transformers()
else:
    sys.meta_path.insert(0, _AfterImport("sentence_transformers", _patch_sentence_transformers))
