"""What was meant by a command or an option that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from emb_tool import registry
from emb_tool.errors import InvalidInput
from emb_tool.fields import kind
from emb_tool.spellings import COMMANDS, VALUES, aliases_of, nearest, normalize


def command(name: str, known: Iterable[str]) -> InvalidInput:
    """The refusal of a command that does not exist.

    Args:
        name: What was typed.
        known: The commands.
    """
    meant = normalize(name).replace("_", "-")
    having = registry.verbs_with(meant)
    if meant in COMMANDS:
        hint = f"did you mean: embtool {COMMANDS[meant]}"
    elif having:
        what = "task" if having[0] == registry.TASKS else "method"
        flag = registry.option(having[0])
        hint = (
            f"it is a {what}: embtool {having[0]} ... {flag} {meant}, see embtool methods {meant}"
        )
    else:
        hint = registry.did_you_mean(name, known)
    return InvalidInput(f"unknown command {name!r:.200}", hint)


def option(name: str, command: Any) -> str | None:
    """A hint on an option that a command does not have; None where nothing is like it.

    Args:
        name: What was typed, as `--learning-rate`.
        command: Typer's command.
    """
    flags = {
        normalize(long): long
        for param in command.params
        if param.param_type_name == "option" and (long := max(param.opts, key=len))
    }
    places = {p.name: p.metavar for p in command.params if p.param_type_name == "argument"}
    switched = next(
        (ours for ours, theirs in VALUES.items() if normalize(name) in theirs.split()), ""
    )
    setting, _, value = switched.partition(" ")
    if setting in flags and (
        setting != "method" or registry.parse(value)[0] in registry.methods(command.name)
    ):
        return f"did you mean {'-m' if setting == 'method' else flags[setting]} {value}?"
    meant = aliases_of(name, [*flags, *places])
    if place := next((places[one].rstrip(".") for one in meant if one in places), None):
        return f"{place} has no flag: embtool {command.name} {' '.join(places.values())}"
    found = [] if meant or "method" not in flags else _methods(command.name, normalize(name))
    ways = [f"-m {method}" for method in found[:3]]
    asking = flags.get("task") or flags.get("eval")
    task = normalize(name).replace("_", "-")
    if asking and not meant and task in registry.methods(registry.TASKS):
        path = registry.load(registry.TASKS, task).model_fields.get("path")
        ways.append(f"{asking} {task}{':PATH' if path and path.is_required() else ''}")
    if ways:
        return "did you mean " + " or ".join(ways) + "?"
    near = meant or nearest(name, flags)
    return "did you mean " + " or ".join(flags[one] for one in near) + "?" if near else None


def _methods(verb: str, name: str) -> list[str]:
    """Methods of a verb that are so called, or have such a setting: `int:bits=INT`."""
    rows = registry.methods(verb)
    if (method := name.replace("_", "-")) in rows:
        return [method]
    found = []
    for method in rows:
        field = registry.load(verb, method).model_fields.get(name)
        if field is not None:
            found.append(f"{method}:{name}={kind(field)[1] or 'true|false'}")
    return found
