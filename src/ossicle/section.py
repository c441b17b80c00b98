"""The decorator that makes a class a section of the configuration."""

from __future__ import annotations

from typing import TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def section(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only, validated section of the configuration that rejects unknown fields."""
    settings = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return cast("type[T]", dataclass(cls, frozen=True, kw_only=True, config=settings))
