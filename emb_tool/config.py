"""From what the user typed to one frozen job: defaults < preset < recipe < flags < `--set`.

A key belongs either to the job (`teacher`, `texts`) or to its method (`lr`, `head`); both are
pydantic classes, so that a recipe, a flag and `--set` are checked by the same fields.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from emb_tool import registry
from emb_tool.errors import Refused
from emb_tool.method import Method, Settings

MAX_RECIPE, MAX_VALUES, MAX_DEPTH = 1_000_000, 100_000, 32
"""Characters of a recipe, values in it, and how many of them inside one another."""


class Job(Settings):
    """What every job has; each verb's `job.py` adds its own fields.

    Attributes:
        verb: The command.
        default_method: The method taken when none is named; None for verbs without methods.
    """

    verb: ClassVar[str]
    default_method: ClassVar[str | None] = None

    device: Annotated[str, Field(description="auto, cpu, cuda, cuda:N or mps")] = "auto"
    dtype: Annotated[str, Field(description="auto, fp32, bf16 or fp16, of matrix products")] = (
        "auto"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63, description="seed of everything random")] = 0

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
        """Identity of the job: sha256 of what decides its result (not where it runs)."""
        fields = {k: v for k, v in self.recipe().items() if k not in ("output", "device", "store")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class MethodJob(Job):
    """A job that carries out a method."""

    method: Method


class ChainJob(Job):
    """A job that carries out methods one after another.

    Attributes:
        shared: Title, module and class of settings that may be given once, for all the steps that
            have them.
    """

    shared: ClassVar[tuple[str, str, str] | None] = None

    method: tuple[Method, ...] = ()


def field_name(key: str) -> str:
    """The field that a key or flag means: `min-retention` is min_retention, `with` is with_."""
    name = key.strip().replace("-", "_")
    return f"{name}_" if iskeyword(name) else name


def dump(method: Method) -> dict[str, Any]:
    """A method by its own class: a job's field may name a base of it."""
    return {"name": method.name, **method.model_dump(mode="json", exclude_none=True)}


def job_class(verb: str) -> type[Job]:
    """The job of a verb."""
    package = import_module(registry.VERBS[registry.choose(verb, registry.VERBS, "command")])
    module, attribute = package.JOB
    cls: type[Job] = getattr(import_module(module), attribute)
    return cls


def method_class(verb: str, name: str | None = None) -> type[Method] | None:
    """The class of a verb's method, the default one unless named; None if it has none."""
    name = name or job_class(verb).default_method
    return registry.load(verb, name) if name else None


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
        flags: What was given on the command line, by field name.
        method: `-m name:key=value,...`; several for a chain.
        sets: `--set key=value`.

    Raises:
        Refused: Every unknown key, wrong type and value out of range, each with where it is from.
    """
    cls = job_class(verb)
    if issubclass(cls, ChainJob):
        given = [method] if isinstance(method, str) else list(method or ())
        return _resolve_chain(cls, dict(recipe or {}), recipe_name, flags or {}, given, sets)
    assert method is None or isinstance(method, str)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(key: str, value: Any, origin: str) -> None:
        key = field_name(key)
        values[key], origins[key] = value, origin

    chosen = cls.default_method
    for key, value in (recipe or {}).items():
        if key == "verb":
            continue
        if key == "method" and isinstance(value, Mapping):
            settings = dict(value)
            chosen = settings.pop("name", chosen)
            for inner, inner_value in settings.items():
                take(inner, inner_value, recipe_name)
        elif key == "method":
            chosen, settings = registry.parse(str(value))
            for inner, inner_value in settings.items():
                take(inner, inner_value, recipe_name)
        else:
            take(key, value, recipe_name)
    for key, value in (flags or {}).items():
        take(key, value, f"--{key.replace('_', '-')}")
    if method:
        chosen, settings = registry.parse(method)
        for key, value in settings.items():
            take(key, value, f"-m {method}")
    for text in sets:
        key, sep, value = text.partition("=")
        if not sep:
            raise Refused(f"--set {text}: not key=value", "write --set lr=1e-4")
        take(key.strip(), value.strip(), f"--set {text}")

    methods = method_class(verb, chosen)
    if methods and "preset" in values:
        presets: Mapping[str, Mapping[str, Any]] = getattr(methods, "presets", {})
        preset = registry.choose(str(values.pop("preset")), presets, f"{chosen} preset")
        for key, value in presets[preset].items():
            if key not in values:
                values[key], origins[key] = value, f"preset {preset}"
    theirs = set(methods.model_fields) if methods else set()
    ours = set(cls.model_fields) - {"method"}
    unknown = [key for key in values if key not in ours | theirs]
    if unknown:
        key = unknown[0]
        of = f"{verb} {chosen}" if chosen else verb
        raise Refused(
            f"unknown setting {key!r} of {of} ({origins[key]})",
            registry.did_you_mean(key, sorted(ours | theirs)),
        )
    fields = {key: value for key, value in values.items() if key in ours}
    if methods:
        settings = {key: value for key, value in values.items() if key in theirs}
        fields["method"] = registry.build(methods, settings, origins)
    job: Job = registry.build(cls, fields, origins)
    return job


def _resolve_chain(
    cls: type[ChainJob],
    recipe: dict[str, Any],
    recipe_name: str,
    flags: Mapping[str, Any],
    methods: Sequence[str],
    sets: Sequence[str],
) -> Job:
    """`resolve` for a chain: what is not the job's goes to every step that has it."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    steps: list[tuple[str, dict[str, Any], str]] = []
    listed = recipe.pop("method", None) or []
    for step in listed if isinstance(listed, list | tuple) else [listed]:
        if isinstance(step, Mapping):
            settings = dict(step)
            steps.append((str(settings.pop("name", "")), settings, recipe_name))
        else:
            steps.append((*registry.parse(str(step)), recipe_name))
    if methods:  # a chain on the command line stands in place of the recipe's
        steps = [(*registry.parse(text), f"-m {text}") for text in methods]
    layers: list[tuple[Mapping[str, Any], str]] = [(recipe, recipe_name)]
    layers += [({key: value}, f"--{key.replace('_', '-')}") for key, value in flags.items()]
    for text in sets:
        key, sep, value = text.partition("=")
        if not sep:
            raise Refused(f"--set {text}: not key=value", "write --set seed=1")
        layers.append(({key.strip(): value.strip()}, f"--set {text}"))
    for given, origin in layers:
        for key, value in given.items():
            if key != "verb":
                name = field_name(key)
                values[name], origins[name] = value, origin
    classes = [registry.load(cls.verb, name) for name, _, _ in steps]
    ours = set(cls.model_fields) - {"method"}
    # what such steps share is theirs first: a budget of `-m pq -m int:bits=8` is that of the table
    common = getattr(import_module(cls.shared[1]), cls.shared[2]) if cls.shared else None
    for key in [key for key in values if key not in ours]:
        having = [i for i, step in enumerate(classes) if key in step.model_fields]
        if common and key in common.model_fields:
            having = [i for i in having if issubclass(classes[i], common)] or having
        if not having:
            known = sorted({*ours, *(k for step in classes for k in step.model_fields)})
            chain = " ".join([cls.verb, *(name for name, _, _ in steps)])
            raise Refused(
                f"unknown setting {key!r} of {chain} ({origins[key]})",
                registry.did_you_mean(key, known),
            )
        value = values.pop(key)
        for i in having:
            steps[i][1].setdefault(key, value)
    built = tuple(
        registry.build(step, settings, origin)
        for step, (_, settings, origin) in zip(classes, steps, strict=True)
    )
    job: Job = registry.build(cls, {**values, "method": built}, origins)
    return job


def known_settings(recipe: Mapping[str, Any]) -> set[str]:
    """Every setting that the job of a recipe and its method have."""
    verb = recipe["verb"]
    given = recipe.get("method")
    steps = given if isinstance(given, list) else [given]
    names = [
        step.get("name") if isinstance(step, Mapping) else registry.parse(str(step))[0]
        for step in steps
        if step
    ]
    fields = set(job_class(verb).model_fields) - {"method"}
    for name in names or [None]:
        method = method_class(verb, name)
        if method is not None:
            presets = ["preset"] if getattr(method, "presets", None) else []
            fields |= {*method.model_fields, *presets}
    return fields


def read_recipe(path: str | Path) -> list[dict[str, Any]]:
    """The jobs of a recipe file, one or a list under `jobs:`.

    A job with `name: x` can be named by a later one: `${x}` is its output.

    Raises:
        Refused: No such file, not YAML (with the line), no job, an unknown `${name}`.
    """
    import yaml

    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_RECIPE + 1)
    except FileNotFoundError:
        raise Refused(
            f"{path}: no such recipe", "recipes are YAML files: see docs/recipes.md"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: cannot be read: {error}", "recipes are YAML files") from None
    if len(text) > MAX_RECIPE:
        raise Refused(f"{path}: more than {MAX_RECIPE:,} characters", "this is no recipe")
    try:
        data = _load_yaml(text, path)
        _check_extent(data)
    except (ValueError, OverflowError) as error:
        raise Refused(f"{path}: not YAML that can be read: {str(error)[:200]}", None) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise Refused(f"{where}: not YAML: {getattr(error, 'problem', error)}", None) from None
    if not isinstance(data, dict):
        raise Refused(f"{path}: a recipe is a mapping of settings", "see docs/recipes.md")
    if "jobs" in data:
        extra = sorted(set(data) - {"jobs"})
        if extra:
            raise Refused(
                f"{path}: {extra[0]!r} stands beside jobs:", "put it into each job of the list"
            )
        jobs = data["jobs"]
    else:
        jobs = [data]
    if not isinstance(jobs, list) or not jobs or not all(isinstance(job, dict) for job in jobs):
        raise Refused(f"{path}: jobs: must be a list of mappings", "see docs/recipes.md")
    outputs: dict[str, str] = {}
    resolved = []
    for number, job in enumerate(jobs, 1):
        where = f"{path}, job {number}"
        if "verb" not in job:
            raise Refused(f"{where}: verb is missing", "known: " + ", ".join(registry.VERBS))
        _check_keys(job, where)
        registry.choose(str(job["verb"]), registry.VERBS, "verb")
        name = job.pop("name", None)
        job = _substitute(job, outputs, where)
        if name is not None and job.get("output"):
            outputs[str(name)] = str(job["output"])
        resolved.append(job)
    return resolved


def _check_keys(job: Mapping[Any, Any], where: str) -> None:
    """Settings have names, and so have methods: YAML takes anything for a key.

    Raises:
        Refused: A key or a method's name that is no text.
    """
    given = job.get("method")
    steps = [step for step in (given if isinstance(given, list) else [given]) if step is not None]
    for settings in (job, *(step for step in steps if isinstance(step, Mapping))):
        for key in settings:
            if not isinstance(key, str):
                raise Refused(f"{where}: the key {key!r:.80} is no text", "see docs/recipes.md")
    for step in steps:
        name = step.get("name", "") if isinstance(step, Mapping) else step
        if not isinstance(name, str):
            raise Refused(f"{where}: method: {name!r:.80} is no name", "write method: {name: pq}")


def _check_extent(data: Any) -> None:
    """Aliases (`&a`, `*a`) can make a short file endless.

    Raises:
        ValueError: It holds more values than any recipe.
    """
    todo, count = [data], 0
    while todo:
        value = todo.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple | set):
            todo += value


def _load_yaml(text: str, path: Path) -> Any:
    """Plain YAML, in which a key that stands twice is refused: the last would win in silence."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            self.depth += 1
            if self.depth > MAX_DEPTH:
                where = f"{path}:{parent.start_mark.line + 1}" if parent else str(path)
                raise Refused(f"{where}: nested more than {MAX_DEPTH} deep", "see docs/recipes.md")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            known: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # no key that a mapping takes: told as such
                if key.value in known:
                    where = f"{path}:{key.start_mark.line + 1}"
                    raise Refused(f"{where}: {key.value!r} is given twice", "leave one of them out")
                known.add(key.value)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def _substitute(value: Any, outputs: Mapping[str, str], where: str) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(inner, outputs, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_substitute(inner, outputs, where) for inner in value]
    if not isinstance(value, str):
        return value

    def output(match: re.Match[str]) -> str:
        if match[1] not in outputs:
            raise Refused(
                f"{where}: ${{{match[1]}}} names no earlier job that has a name and an output",
                registry.did_you_mean(match[1], outputs),
            )
        return outputs[match[1]]

    return re.sub(r"\$\{([^}]+)\}", output, value)
