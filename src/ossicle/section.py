"""Declare sections of the configuration and explain the errors of their validation."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from ossicle.errors import ConfigError

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def section(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only, validated section of the configuration that rejects unknown fields."""
    settings = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return cast("type[T]", dataclass(cls, frozen=True, kw_only=True, config=settings))


def config_error(error: ValidationError, tree: dict[str, Any], where: str, names: Iterable[str]) -> ConfigError:
    """Return pydantic's ``error`` about ``tree`` as a `ConfigError` with one line per problem.

    Each line starts with ``where`` (the file) and the dotted path of the field. ``names`` are the known fields, from
    which a correction is suggested for an unknown one.
    """
    return ConfigError("\n".join(f"{where}: {_explain(problem, tree, names)}" for problem in error.errors()))


def _explain(problem: Any, tree: dict[str, Any], names: Iterable[str]) -> str:
    path = _field_path(problem["loc"], tree)
    if problem["type"] != "unexpected_keyword_argument":
        return f"{path}: {problem['msg'].lower()} (got {problem['input']!r})"
    name = path.rpartition(".")[2]
    near = difflib.get_close_matches(name, names, n=1)
    return f"{path}: unknown field" + (f"; did you mean '{near[0]}'?" if near else "")


def _field_path(location: tuple[str | int, ...], tree: Any) -> str:
    """Return the dotted path of a field, without the tags that pydantic adds for unions."""
    path = []
    for part in location:
        known = (isinstance(tree, dict) and part in tree) or (isinstance(tree, list) and isinstance(part, int))
        if known:
            tree = tree[part]
        if known or part == location[-1]:
            path.append(str(part))
    return ".".join(path)
