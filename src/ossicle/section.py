"""Declare sections of the configuration and explain the errors of their validation."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from ossicle.errors import ConfigError

T = TypeVar("T")
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""Path of a file or folder; ``~`` becomes the home folder. Unlike pathlib, it keeps the name of an unknown user."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def section(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only, validated section of the configuration that rejects unknown fields."""
    settings = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    return cast("type[T]", dataclass(cls, frozen=True, kw_only=True, config=settings))


def config_error(error: ValidationError, tree: dict[str, Any], where: str, names: Iterable[str]) -> ConfigError:
    """Return pydantic's ``error`` about ``tree`` as a `ConfigError` with one line per problem.

    Each line starts with ``where`` (the file) and the dotted path of the field. ``names`` are the known fields, from
    which a correction is suggested for an unknown one: names, or paths from `ossicle.validation.field_paths`.
    """
    from ossicle.validation import explain  # only an invalid configuration needs it

    return explain(error, tree, where, names)
