"""The decorator that makes a class a section of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def section(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only, validated section of the configuration that rejects unknown fields."""
    settings = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    decorate: Callable[[type[T]], type[T]] = dataclass(frozen=True, kw_only=True, config=settings)
    return decorate(cls)
