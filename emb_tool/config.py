"""Resolution of settings to one frozen job: defaults < preset < recipe < flags < `--set`.

A key belongs either to the job (`teacher`, `texts`) or to its method (`lr`, `head`); both are
pydantic classes, so recipes, flags and `--set` are validated by the same fields.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, Field

from emb_tool import registry
from emb_tool.errors import InvalidInput
from emb_tool.fields import MODEL, RUNNING, TRAINING, FlagInfo, flag, flag_info
from emb_tool.method import Method, Settings


class Value(NamedTuple):
    """A given setting and its origin."""

    value: Any
    origin: str


GivenSettings = dict[str, Value]
"""Settings by field name."""


Dtype = Literal["auto", "fp32", "bf16", "fp16"]
"""Dtype of matrix products; `auto` is the fastest one of the device."""

BatchTokens = Annotated[
    int | None,
    Field(ge=1, description="padded tokens of a batch [8,192; on a GPU 65,536]"),
    FlagInfo(RUNNING),
]
"""Batch size of jobs that encode."""

PICTURES = (".png", ".svg", ".pdf")


def _picture(value: str) -> str:
    if PurePath(value).suffix.lower() not in PICTURES:
        raise ValueError("not an image file: use .png, .svg or .pdf")
    return value


Picture = Annotated[str, AfterValidator(_picture)]
"""Path of an image file to draw."""


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value):
        raise ValueError("no such device: use auto, cpu, cuda, cuda:N or mps")
    return value


MIN_HELD_OUT = 3
"""Minimum number of held-out texts; the neighbors of fewer cannot be compared."""


def _check_holdout(count: int) -> int:
    if 0 < count < MIN_HELD_OUT:
        raise ValueError(f"at least {MIN_HELD_OUT}, or 0 for none: fewer are not informative")
    return count


Holdout = Annotated[int, Field(ge=0), AfterValidator(_check_holdout)]
"""Maximum number of held-out texts; 0 disables holding out."""


TuneEpochs = Annotated[float, Field(gt=0, description="epochs of --tune"), FlagInfo(TRAINING)]

TuneRate = Annotated[
    float, Field(gt=0, le=1, description="peak learning rate of --tune"), FlagInfo(TRAINING)
]


class Job(Settings):
    """Base class of jobs; `job.py` of each verb adds its own fields.

    Attributes:
        verb: The command.
        default_method: The method if none is given; None for verbs without methods.
        positional: Positional fields of the command line.
        parent: The field of the model that an output is derived from; None if there is none.
    """

    verb: ClassVar[str]
    parent: ClassVar[str | None] = None
    default_method: ClassVar[str | None] = None
    positional: ClassVar[tuple[str, ...]] = ()

    device: Annotated[
        str,
        AfterValidator(_device),
        Field(description="auto, cpu, cuda, cuda:N or mps"),
        FlagInfo(RUNNING, "DEVICE"),
    ] = "auto"
    dtype: Annotated[
        Dtype,
        Field(description="dtype of matrix products; sums and weights in training are fp32"),
        FlagInfo(RUNNING),
    ] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63, description="random seed"), FlagInfo(RUNNING)] = 0

    @classmethod
    def spell(cls, key: str) -> str:
        """The name of a field on the command line: `-o/--output`, or `MODEL` if positional."""
        if key in cls.positional:
            return flag_info(cls.model_fields[key]).metavar
        return flag(key)

    def output_path(self) -> Path | None:
        """The folder or file that the job writes; None if it only reports."""
        output: str | None = getattr(self, "output", None)
        return Path(output).expanduser() if output else None

    def map_models(self, change: Callable[[str], str]) -> Self:
        """A copy in which `change` is applied to every model name.

        Models are the fields with the metavar MODEL.
        """
        new: dict[str, Any] = {}
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if value and flag_info(field).metavar == MODEL:
                new[key] = change(value) if isinstance(value, str) else tuple(map(change, value))
        return self.model_copy(update=new)

    def recipe(self) -> dict[str, Any]:
        """The job as a recipe that reproduces it."""
        fields = self.model_dump(mode="json", exclude_none=True, exclude={"method"})
        method: Method | tuple[Method, ...] | None = getattr(self, "method", None)
        if isinstance(method, tuple):
            fields["method"] = [dump(step) for step in method]
        elif method is not None:
            fields["method"] = dump(method)
        return {"verb": self.verb, **{key.rstrip("_"): value for key, value in fields.items()}}

    def digest(self) -> str:
        """Identity of the job: sha256 of the settings that determine its result.

        Names of hub models contain commits (`engine.pin_models`), so a changed branch is another
        job, and `org/name` is the same job as `org/name@1f2e` in its recipe.
        """
        fields = {k: v for k, v in self.recipe().items() if k not in ("output", "device", "store")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class MethodJob(Job):
    """A job with one method."""

    method: Method


class ChainJob(Job):
    """A job with a chain of methods.

    Attributes:
        shared: Module and class of settings that can be given once for all steps that have them.
    """

    shared: ClassVar[tuple[str, str] | None] = None

    method: tuple[Method, ...] = ()


def field_name(key: str) -> str:
    """The field of a key or flag: `min-retention` is min_retention."""
    return key.strip().replace("-", "_")


def dump(method: Method) -> dict[str, Any]:
    """A method as a mapping, with the fields of its own class."""
    return {"name": method.name, **method.model_dump(mode="json", exclude_none=True)}


def job_class(verb: str) -> type[Job]:
    """The job class of a verb."""
    module, attribute = registry.package(verb).JOB
    cls: type[Job] = getattr(import_module(module), attribute)
    return cls


def method_class(verb: str, name: str | None = None) -> type[Method] | None:
    """The class of a method of a verb, by default of its default method; None without methods."""
    name = name or job_class(verb).default_method
    return registry.load(verb, name) if name else None


def flag_classes(verb: str) -> list[type[Any]]:
    """The classes whose fields are flags: job, default method and shared settings of steps."""
    job = job_class(verb)
    classes: list[type[Any]] = [job]
    if method := method_class(verb):
        classes.append(method)
    if issubclass(job, ChainJob) and job.shared:
        module, attribute = job.shared
        classes.append(getattr(import_module(module), attribute))
    return classes


def resolve(
    verb: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    recipe_name: str = "recipe",
    flags: Mapping[str, Any] | None = None,
    method: str | Sequence[str] | None = None,
    sets: Sequence[str] = (),
) -> Job:
    """Resolve the settings of a job.

    Args:
        verb: The command.
        recipe: Keys of the recipe.
        recipe_name: File of the recipe, for messages.
        flags: Flags by field name; None without a command line.
        method: `-m name:key=value,...`; several for a chain.
        sets: `--set key=value`.

    Raises:
        InvalidInput: Unknown keys, wrong types and values out of range, each with its origin.
    """
    cls = job_class(verb)
    spell = cls.spell if flags is not None else f"{{}} ({recipe_name})".format
    if issubclass(cls, ChainJob):
        chain = [method] if isinstance(method, str) else method or ()
        return _resolve_chain(cls, recipe or {}, recipe_name, flags or {}, chain, sets, spell)
    assert method is None or isinstance(method, str)
    chosen = cls.default_method
    given: GivenSettings = {}
    for key, value in (recipe or {}).items():
        if key == "method":
            name, settings = _step(value)
            chosen = name or chosen
            given |= _given(settings, recipe_name)
        elif key != "verb":
            given |= _given({key: value}, recipe_name)
    given |= _given_flags(flags or {})
    if method:
        chosen, settings = registry.parse(method)
        given |= _given(settings, f"-m {method}")
    given |= _given_sets(sets)

    methods = method_class(verb, chosen)
    if methods and "preset" in given:
        presets: Mapping[str, Mapping[str, Any]] = getattr(methods, "presets", {})
        preset = registry.match_name(str(given.pop("preset").value), presets, f"{chosen} preset")
        given = _given(presets[preset], f"preset {preset}") | given
    method_fields = set(methods.model_fields) if methods else set()
    job_fields = set(cls.model_fields) - {"method"}
    for key, (_, origin) in given.items():
        if key not in job_fields | method_fields:
            raise _unknown(
                key, f"{verb} {chosen}" if chosen else verb, origin, job_fields | method_fields
            )
    hint = f"see embtool methods {verb} {chosen}"
    method_kwargs = {"method": _build(methods, given, method_fields, hint)} if methods else {}
    job: Job = _build(cls, given, job_fields, f"see embtool {verb} --help", spell, **method_kwargs)
    return job


def _resolve_chain(
    cls: type[ChainJob],
    recipe: Mapping[str, Any],
    recipe_name: str,
    flags: Mapping[str, Any],
    methods: Sequence[str],
    sets: Sequence[str],
    spell: Callable[[str], str],
) -> Job:
    """`resolve` for a chain: settings that the job lacks go to every step that has them."""
    if methods:  # a chain on the command line replaces that of the recipe
        steps = [(*registry.parse(text), f"-m {text}") for text in methods]
    else:
        listed = recipe.get("method") or []
        listed = listed if isinstance(listed, list | tuple) else [listed]
        steps = [(*_step(step), recipe_name) for step in listed]
    given = _given({k: v for k, v in recipe.items() if k not in ("verb", "method")}, recipe_name)
    given |= _given_flags(flags) | _given_sets(sets)
    classes = [registry.load(cls.verb, name) for name, _, _ in steps]
    job_fields = set(cls.model_fields) - {"method"}
    # steps with shared settings take precedence: the budget of `-m pq -m int:bits=8` is pq's
    common = getattr(import_module(cls.shared[0]), cls.shared[1]) if cls.shared else None
    for key in [key for key in given if key not in job_fields]:
        value, origin = given.pop(key)
        matching = [i for i, step in enumerate(classes) if key in step.model_fields]
        if common and key in common.model_fields:
            matching = [i for i in matching if issubclass(classes[i], common)] or matching
        if not matching:
            known = {*job_fields, *(k for step in classes for k in step.model_fields)}
            raise _unknown(
                key, " ".join([cls.verb, *(name for name, _, _ in steps)]), origin, known
            )
        for i in matching:
            steps[i][1].setdefault(key, value)
    built = tuple(
        registry.build(step, settings, origin, f"see embtool methods {cls.verb} {step.name}")
        for step, (_, settings, origin) in zip(classes, steps, strict=True)
    )
    job: Job = _build(cls, given, job_fields, f"see embtool {cls.verb} --help", spell, method=built)
    return job


def _given(settings: Mapping[str, Any], origin: str) -> GivenSettings:
    return {field_name(key): Value(value, origin) for key, value in settings.items()}


def _given_flags(flags: Mapping[str, Any]) -> GivenSettings:
    origins = {key: flag(key) for key in flags}
    return {field_name(key): Value(value, origins[key]) for key, value in flags.items()}


def _given_sets(sets: Sequence[str]) -> GivenSettings:
    given: GivenSettings = {}
    for text in sets:
        key, sep, value = text.partition("=")
        if not sep:
            raise InvalidInput(f"--set {text}: not key=value", "write --set seed=1")
        given[field_name(key)] = Value(value.strip(), f"--set {text}")
    return given


def _step(given: Any) -> tuple[str, dict[str, Any]]:
    """Name and settings of a method in a recipe: `{name: pq, ...}` or `pq:...`."""
    if not isinstance(given, Mapping):
        return registry.parse(str(given))
    settings = {field_name(key): value for key, value in given.items()}
    return str(settings.pop("name", None) or ""), settings


def _build(
    cls: type[BaseModel],
    given: GivenSettings,
    fields: set[str],
    hint: str,
    spell: Callable[[str], str] = str,
    **extra: Any,
) -> Any:
    values = {key: value for key, (value, _) in given.items() if key in fields}
    origins = {key: given[key].origin for key in values}
    return registry.build(cls, values | extra, origins, hint, spell)


def _unknown(key: str, of: str, origin: str, known: Iterable[str]) -> InvalidInput:
    return InvalidInput(
        f"unknown setting {key!r} of {of} ({origin})", registry.did_you_mean(key, sorted(known))
    )


def known_settings(recipe: Mapping[str, Any]) -> set[str]:
    """All settings of the job of a recipe and of its methods."""
    verb = recipe["verb"]
    given = recipe.get("method")
    steps = given if isinstance(given, list) else [given]
    names = [_step(step)[0] for step in steps if step]
    fields = set(job_class(verb).model_fields) - {"method"}
    for name in names or [""]:
        method = method_class(verb, name)
        if method is not None:
            presets = ["preset"] if getattr(method, "presets", None) else []
            fields |= {*method.model_fields, *presets}
    return fields
