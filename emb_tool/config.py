"""From what the user typed to one frozen job: defaults < preset < recipe < flags < `--set`.

A key belongs either to the job (`teacher`, `texts`) or to its method (`lr`, `head`); both are
pydantic classes, so that a recipe, a flag and `--set` are checked by the same fields.
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
    """A setting as it was given, and where."""

    value: Any
    origin: str


GivenSettings = dict[str, Value]
"""Settings by the name of their field."""


Dtype = Literal["auto", "fp32", "bf16", "fp16"]
"""Of matrix products; `auto` is the fastest of the device."""

BatchTokens = Annotated[
    int | None,
    Field(ge=1, description="padded tokens of a batch [8,192; on a GPU 65,536]"),
    FlagInfo(RUNNING),
]
"""Of jobs that encode."""

PICTURES = (".png", ".svg", ".pdf")


def _picture(value: str) -> str:
    if PurePath(value).suffix.lower() not in PICTURES:
        raise ValueError("not a picture: end it in .png, .svg or .pdf")
    return value


Picture = Annotated[str, AfterValidator(_picture)]
"""The name of a picture to draw."""


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value):
        raise ValueError("no such device: use auto, cpu, cuda, cuda:N or mps")
    return value


MIN_HELD_OUT = 3
"""Minimum number of texts to compare neighbors."""


def _enough(count: int) -> int:
    if 0 < count < MIN_HELD_OUT:
        raise ValueError(f"at least {MIN_HELD_OUT}, or 0 for none: fewer tell nothing")
    return count


Holdout = Annotated[int, Field(ge=0), AfterValidator(_enough)]
"""How many texts are kept from what is fitted, at most; 0 declines it."""


TuneEpochs = Annotated[
    float, Field(gt=0, description="passes of --tune over its texts"), FlagInfo(TRAINING)
]

TuneRate = Annotated[
    float, Field(gt=0, le=1, description="peak learning rate of --tune"), FlagInfo(TRAINING)
]


class Job(Settings):
    """What every job has; each verb's `job.py` adds its own fields.

    Attributes:
        verb: The command.
        default_method: The method taken when none is named; None for verbs without methods.
        positional: Fields that the command line gives by their place, without a flag.
        parent: The field that names the model which an output is made from; None where none does.
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
        Field(description="of matrix products; sums and weights in training are fp32"),
        FlagInfo(RUNNING),
    ] = "auto"
    seed: Annotated[
        int, Field(ge=0, lt=2**63, description="seed of everything random"), FlagInfo(RUNNING)
    ] = 0

    @classmethod
    def spell(cls, key: str) -> str:
        """What a field is called on the command line: `-o/--output`, or `MODEL` by its place."""
        if key in cls.positional:
            return flag_info(cls.model_fields[key]).metavar
        return flag(key)

    def output_path(self) -> Path | None:
        """What the job writes, a folder or a file; None where it only reports."""
        output: str | None = getattr(self, "output", None)
        return Path(output).expanduser() if output else None

    def map_models(self, change: Callable[[str], str]) -> Self:
        """A copy with other names of models: `change` is called with each.

        Models are the fields whose value is called MODEL in the help.
        """
        new: dict[str, Any] = {}
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if value and flag_info(field).metavar == MODEL:
                new[key] = change(value) if isinstance(value, str) else tuple(map(change, value))
        return self.model_copy(update=new)

    def recipe(self) -> dict[str, Any]:
        """The job as a recipe that makes it again."""
        fields = self.model_dump(mode="json", exclude_none=True, exclude={"method"})
        method: Method | tuple[Method, ...] | None = getattr(self, "method", None)
        if isinstance(method, tuple):
            fields["method"] = [dump(step) for step in method]
        elif method is not None:
            fields["method"] = dump(method)
        return {"verb": self.verb, **{key.rstrip("_"): value for key, value in fields.items()}}

    def digest(self) -> str:
        """Identity of the job: sha256 of what decides its result (not where it runs).

        The engine has put commits into the names of hub models (`engine.pin_models`): a branch that
        has moved makes another job, and `org/name` is the same job as its recipe's `org/name@1f2e`.
        """
        fields = {k: v for k, v in self.recipe().items() if k not in ("output", "device", "store")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class MethodJob(Job):
    """A job that carries out a method."""

    method: Method


class ChainJob(Job):
    """A job that carries out methods one after another.

    Attributes:
        shared: Module and class of settings that may be given once, for all the steps that have
            them.
    """

    shared: ClassVar[tuple[str, str] | None] = None

    method: tuple[Method, ...] = ()


def field_name(key: str) -> str:
    """The field that a key or flag means: `min-retention` is min_retention."""
    return key.strip().replace("-", "_")


def dump(method: Method) -> dict[str, Any]:
    """A method by its own class: a job's field may name a base of it."""
    return {"name": method.name, **method.model_dump(mode="json", exclude_none=True)}


def job_class(verb: str) -> type[Job]:
    """The job of a verb."""
    module, attribute = registry.package(verb).JOB
    cls: type[Job] = getattr(import_module(module), attribute)
    return cls


def method_class(verb: str, name: str | None = None) -> type[Method] | None:
    """The class of a verb's method, the default one unless named; None if it has none."""
    name = name or job_class(verb).default_method
    return registry.load(verb, name) if name else None


def flag_classes(verb: str) -> list[type[Any]]:
    """The classes whose fields are flags: the job, its default method, what its steps share."""
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
    """Make the job.

    Args:
        verb: The command.
        recipe: The recipe's keys.
        recipe_name: Its file, for messages.
        flags: What was given on the command line, by field name; None without a command line.
        method: `-m name:key=value,...`; several for a chain.
        sets: `--set key=value`.

    Raises:
        InvalidInput: Every unknown key, wrong type and value out of range, each with where it is
            from.
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
    theirs = set(methods.model_fields) if methods else set()
    ours = set(cls.model_fields) - {"method"}
    for key, (_, origin) in given.items():
        if key not in ours | theirs:
            raise _unknown(key, f"{verb} {chosen}" if chosen else verb, origin, ours | theirs)
    hint = f"see embtool methods {verb} {chosen}"
    made = {"method": _build(methods, given, theirs, hint)} if methods else {}
    job: Job = _build(cls, given, ours, f"see embtool {verb} --help", spell, **made)
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
    """`resolve` for a chain: what is not the job's goes to every step that has it."""
    if methods:  # a chain on the command line stands in place of the recipe's
        steps = [(*registry.parse(text), f"-m {text}") for text in methods]
    else:
        listed = recipe.get("method") or []
        listed = listed if isinstance(listed, list | tuple) else [listed]
        steps = [(*_step(step), recipe_name) for step in listed]
    given = _given({k: v for k, v in recipe.items() if k not in ("verb", "method")}, recipe_name)
    given |= _given_flags(flags) | _given_sets(sets)
    classes = [registry.load(cls.verb, name) for name, _, _ in steps]
    ours = set(cls.model_fields) - {"method"}
    # what such steps share is theirs first: a budget of `-m pq -m int:bits=8` is that of the table
    common = getattr(import_module(cls.shared[0]), cls.shared[1]) if cls.shared else None
    for key in [key for key in given if key not in ours]:
        value, origin = given.pop(key)
        having = [i for i, step in enumerate(classes) if key in step.model_fields]
        if common and key in common.model_fields:
            having = [i for i in having if issubclass(classes[i], common)] or having
        if not having:
            known = {*ours, *(k for step in classes for k in step.model_fields)}
            raise _unknown(
                key, " ".join([cls.verb, *(name for name, _, _ in steps)]), origin, known
            )
        for i in having:
            steps[i][1].setdefault(key, value)
    built = tuple(
        registry.build(step, settings, origin, f"see embtool methods {cls.verb} {step.name}")
        for step, (_, settings, origin) in zip(classes, steps, strict=True)
    )
    job: Job = _build(cls, given, ours, f"see embtool {cls.verb} --help", spell, method=built)
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
    **more: Any,
) -> Any:
    values = {key: value for key, (value, _) in given.items() if key in fields}
    origins = {key: given[key].origin for key in values}
    return registry.build(cls, values | more, origins, hint, spell)


def _unknown(key: str, of: str, origin: str, known: Iterable[str]) -> InvalidInput:
    return InvalidInput(
        f"unknown setting {key!r} of {of} ({origin})", registry.did_you_mean(key, sorted(known))
    )


def known_settings(recipe: Mapping[str, Any]) -> set[str]:
    """Every setting that the job of a recipe and its method have."""
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
