"""Suggestions for unknown commands and options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from emb_tool import registry
from emb_tool.errors import InvalidInput
from emb_tool.fields import kind
from emb_tool.spellings import COMMANDS, VALUES, aliases_of, nearest, normalize


def command(name: str, known: Iterable[str]) -> InvalidInput:
    """The error about an unknown command.

    Args:
        name: The unknown command.
        known: The commands.
    """
    normalized = normalize(name).replace("_", "-")
    verbs = registry.verbs_with(normalized)
    if normalized in COMMANDS:
        hint = f"did you mean: embtool {COMMANDS[normalized]}"
    elif verbs:
        what = "task" if verbs[0] == registry.TASKS else "method"
        flag = registry.option(verbs[0])
        hint = (
            f"it is a {what}: embtool {verbs[0]} ... {flag} {normalized}, see embtool methods"
            f" {normalized}"
        )
    else:
        hint = registry.did_you_mean(name, known)
    return InvalidInput(f"unknown command {name!r:.200}", hint)


def option(name: str, command: Any) -> str | None:
    """A hint about an unknown option; None if no option is similar.

    Args:
        name: The unknown option, such as `--learning-rate`.
        command: Typer's command.
    """
    flags = {
        normalize(long): long
        for param in command.params
        if param.param_type_name == "option" and (long := max(param.opts, key=len))
    }
    arguments = {p.name: p.metavar for p in command.params if p.param_type_name == "argument"}
    equivalent = next(
        (ours for ours, theirs in VALUES.items() if normalize(name) in theirs.split()), ""
    )
    setting, _, value = equivalent.partition(" ")
    if setting in flags and (
        setting != "method" or registry.parse(value)[0] in registry.methods(command.name)
    ):
        return f"did you mean {'-m' if setting == 'method' else flags[setting]} {value}?"
    meant = aliases_of(name, [*flags, *arguments])
    if argument := next((arguments[key].rstrip(".") for key in meant if key in arguments), None):
        return f"{argument} has no flag: embtool {command.name} {' '.join(arguments.values())}"
    candidates = [] if meant or "method" not in flags else _methods(command.name, normalize(name))
    suggestions = [f"-m {method}" for method in candidates[:3]]
    task_flag = flags.get("task") or flags.get("eval")
    task = normalize(name).replace("_", "-")
    if task_flag and not meant and task in registry.methods(registry.TASKS):
        path = registry.load(registry.TASKS, task).model_fields.get("path")
        suggestions.append(f"{task_flag} {task}{':PATH' if path and path.is_required() else ''}")
    if suggestions:
        return "did you mean " + " or ".join(suggestions) + "?"
    near = meant or nearest(name, flags)
    return "did you mean " + " or ".join(flags[key] for key in near) + "?" if near else None


def _methods(verb: str, name: str) -> list[str]:
    """Methods of a verb with that name, or with a setting of that name: `int:bits=INT`."""
    rows = registry.methods(verb)
    if (method := name.replace("_", "-")) in rows:
        return [method]
    specs = []
    for method in rows:
        field = registry.load(verb, method).model_fields.get(name)
        if field is not None:
            specs.append(f"{method}:{name}={kind(field)[1] or 'true|false'}")
    return specs
