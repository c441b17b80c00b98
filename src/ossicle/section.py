"""Declare sections of the configuration and explain the errors of their validation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticKnownError, SchemaValidator, core_schema

from ossicle.errors import ConfigError

T = TypeVar("T")
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""Path of a file or folder; ``~`` becomes the home folder. Unlike pathlib, it keeps the name of an unknown user."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def section(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only, validated section of the configuration that rejects unknown fields."""
    settings = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    return cast("type[T]", dataclass(cls, frozen=True, kw_only=True, config=settings))


class Named:
    """Type of a field that holds one of several sections, told apart by their ``name``.

    ``places`` maps each name to ``module:class``. A module is imported when a configuration names its section, so that
    a run loads, and its reader reads, only what it uses. Write it into the field's type:
    ``Annotated[Interface, Named(places)]``. A mapping without a name gets the name ``default``, if there is one.
    """

    def __init__(self, places: Mapping[str, str], *, default: str | None = None) -> None:
        self.places, self.default = dict(places), default

    def section(self, name: str) -> Any:
        """Return the section called ``name``."""
        module, _, attribute = self.places[name].partition(":")
        return getattr(import_module(module), attribute)

    def sections(self) -> list[Any]:
        """Return all sections. It imports all modules."""
        return [self.section(name) for name in self.places]

    def _validate(self, value: Any) -> Any:
        if self.default is not None and isinstance(value, Mapping):
            value = {"name": self.default, **value}
        name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
        if name is None:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'name'"})
        if not isinstance(name, str) or name not in self.places:
            known = ", ".join(f"'{known}'" for known in self.places)
            raise PydanticKnownError(
                "union_tag_invalid", {"discriminator": "'name'", "tag": str(name), "expected_tags": known}
            )
        # A union of one, so that the place of an error has the section's name in it, as in every union.
        union = core_schema.tagged_union_schema({name: self.section(name).__pydantic_core_schema__}, "name")
        return SchemaValidator(union).validate_python(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Return how pydantic validates and writes the field."""
        return core_schema.no_info_plain_validator_function(self._validate)


def config_error(error: ValidationError, tree: dict[str, Any], where: str, names: Iterable[str]) -> ConfigError:
    """Return pydantic's ``error`` about ``tree`` as a `ConfigError` with one line per problem.

    Each line starts with ``where`` (the file) and the dotted path of the field. ``names`` are the known fields, from
    which a correction is suggested for an unknown one: names, or paths from `ossicle.validation.field_paths`.
    """
    from ossicle.validation import explain  # only an invalid configuration needs it

    return explain(error, tree, where, names)
