"""Recipes: YAML files of jobs.

Recipes may be untrusted: their size, depth and keys are limited, duplicate keys are errors, and
every error names its line or its job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emb_tool import registry
from emb_tool.errors import InvalidInput

MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH = 1_000_000, 100_000, 32
"""Maximum characters, values and nesting depth of a recipe."""


def read_recipe(path: str | Path) -> list[dict[str, Any]]:
    """The jobs of a recipe file, one or a list under `jobs:`.

    The output of a job with `name: x` is available to later jobs as `${x}`.

    Raises:
        InvalidInput: No such file, not YAML (with the line), no job, an unknown `${name}`.
    """
    import yaml

    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise InvalidInput(
            f"{path}: no such recipe",
            "a recipe is a YAML file, or an output folder of embtool: see docs/recipes.md",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}", "recipes are YAML files") from None
    if len(text) > MAX_CHARACTERS:
        raise InvalidInput(
            f"{path}: more than {MAX_CHARACTERS:,} characters", "this is not a recipe"
        )
    try:
        data = _load_yaml(text, path)
        _check_extent(data)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{path}: not valid YAML: {str(error)[:200]}", None) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InvalidInput(f"{where}: not YAML: {getattr(error, 'problem', error)}", None) from None
    if not isinstance(data, dict):
        raise InvalidInput(f"{path}: a recipe is a mapping of settings", "see docs/recipes.md")
    if "jobs" in data:
        extra = sorted(set(data) - {"jobs"})
        if extra:
            raise InvalidInput(
                f"{path}: {extra[0]!r} is not allowed next to jobs:",
                "put it into each job of the list",
            )
        jobs = data["jobs"]
    else:
        jobs = [data]
    if not isinstance(jobs, list) or not jobs or not all(isinstance(job, dict) for job in jobs):
        raise InvalidInput(f"{path}: jobs: must be a list of mappings", "see docs/recipes.md")
    outputs: dict[str, str] = {}
    resolved = []
    for number, job in enumerate(jobs, 1):
        where = f"{path}, job {number}"
        if "verb" not in job:
            raise InvalidInput(f"{where}: verb is missing", "known: " + ", ".join(registry.VERBS))
        _check_keys(job, where)
        registry.match_name(str(job["verb"]), registry.VERBS, "verb")
        name = job.pop("name", None)
        job = _substitute(job, outputs, where)
        if name is not None and job.get("output"):
            outputs[str(name)] = str(job["output"])
        resolved.append(job)
    return resolved


def _check_keys(job: Mapping[Any, Any], where: str) -> None:
    """Check that keys and method names are strings, because YAML allows other keys.

    Raises:
        InvalidInput: A key or a method name is not a string.
    """
    given = job.get("method")
    steps = [step for step in (given if isinstance(given, list) else [given]) if step is not None]
    for settings in (job, *(step for step in steps if isinstance(step, Mapping))):
        for key in settings:
            if not isinstance(key, str):
                raise InvalidInput(
                    f"{where}: the key {key!r:.80} is not a string", "see docs/recipes.md"
                )
    for step in steps:
        name = step.get("name", "") if isinstance(step, Mapping) else step
        if not isinstance(name, str):
            raise InvalidInput(
                f"{where}: method: {name!r:.80} is not a name", "write method: {name: pq}"
            )


def _check_extent(data: Any) -> None:
    """Limit the number of values, because aliases (`&a`, `*a`) can expand a short file.

    Raises:
        ValueError: More than `MAX_VALUES` values.
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
    """Load YAML; duplicate keys are errors, because YAML silently uses the last one."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            self.depth += 1
            if self.depth > MAX_DEPTH:
                where = f"{path}:{parent.start_mark.line + 1}" if parent else str(path)
                raise InvalidInput(
                    f"{where}: nested more than {MAX_DEPTH} deep", "see docs/recipes.md"
                )
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            known: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # invalid key: reported by the base class
                if key.value in known:
                    where = f"{path}:{key.start_mark.line + 1}"
                    raise InvalidInput(
                        f"{where}: {key.value!r} is given twice", "remove one of them"
                    )
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
            raise InvalidInput(
                f"{where}: ${{{match[1]}}} names no earlier job that has a name and an output",
                registry.did_you_mean(match[1], outputs),
            )
        return outputs[match[1]]

    return re.sub(r"\$\{([^}]+)\}", output, value)
