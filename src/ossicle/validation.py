"""Read YAML safely, check plain values before validation, and explain the errors of pydantic in one line each."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from ossicle.errors import ConfigError

MOST_NODES, DEEPEST = 100_000, 50
"""Largest number of values of a YAML text with its aliases expanded, and deepest nesting."""
LONGEST_TEXT = 10_000
"""Largest number of characters of a text in a configuration."""
MOST_PROBLEMS = 20
"""Number of problems that a message lists."""
SHORT = 80
"""Number of characters of a value that a message shows."""

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 3, 60, 60, 40


def short(value: Any) -> str:
    """Return at most `SHORT` characters that describe ``value``, without expanding all of it."""
    text = _REPR.repr(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}..."


def load_yaml(text: str, where: str) -> Any:
    """Return the values of a YAML text. Raises `ConfigError`, which starts with ``where``.

    Texts are refused if aliases make them very large (`MOST_NODES`), if they are nested deeper than `DEEPEST`, and if a
    mapping has a key twice.
    """
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_node(node, where)
        return None if node is None else loader.construct_document(node)
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        line = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"{where}: not valid YAML: {_printable(problem, 160)}{line}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: the values are nested too deeply; at most {DEEPEST} levels are read") from error
    except (ValueError, AttributeError, TypeError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"{where}: not valid YAML: a value does not have the form of its type") from error
    finally:
        if loader is not None:
            loader.dispose()


def _check_node(root: yaml.Node | None, where: str) -> None:
    """Raise `ConfigError` for a graph of nodes that is too large or too deep when aliases are expanded."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int, line: int) -> int:
        if depth > DEEPEST:
            raise ConfigError(f"{where}: the values are nested too deeply; at most {DEEPEST} levels are read")
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES  # counted again inside itself, an alias has no end
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                _check_keys(node, where)
                children = [child for pair in node.value for child in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = list(node.value)
            sizes[id(node)] = min(MOST_NODES, 1 + sum(size(child, depth + 1, line) for child in children))
        if sizes[id(node)] >= MOST_NODES:
            raise ConfigError(
                f"{where}: aliases (line {line + 1}) expand to more than {MOST_NODES} values; write the values instead"
            )
        return sizes[id(node)]

    if root is not None:
        size(root, 0, root.start_mark.line)


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen and key.value != "<<":
                name, line = _printable(key.value), key.start_mark.line + 1
                raise ConfigError(f"{where}: '{name}' is written twice (line {line}); keep one of them")
            seen.add(key.value)


def check_texts(value: Any, where: str, path: str = "", *, numbers: bool = False) -> None:
    """Raise `ConfigError` for keys that are no texts, and for texts that no file name or prompt can contain.

    With ``numbers``, keys may be numbers too.
    """
    keys = str | int | float if numbers else str
    if isinstance(value, dict):
        for key, item in value.items():
            inner = f"{path}.{_printable(str(key))}".lstrip(".")
            if not isinstance(key, keys) or isinstance(key, bool):
                raise ConfigError(f'{where}: {inner}: the name {short(key)} is not a text; write it in quotes ("...")')
            _check_text(str(key), where, inner)
            check_texts(item, where, inner, numbers=numbers)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_texts(item, where, f"{path}.{index}", numbers=numbers)
    elif isinstance(value, str):
        _check_text(value, where, path)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {path}: {value} is not a finite number; write a number")


def _check_text(text: str, where: str, path: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"{where}: {path}: has {len(text)} characters; write at most {LONGEST_TEXT}")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"{where}: {path}: {short(text)} holds a character that no text has; remove it")


def check_switches(given: Any, validated: Any, where: str, path: str = "") -> None:
    """Raise `ConfigError` where ``given`` has true or false and the ``validated`` value is a number.

    pydantic reads ``true`` as 1, and YAML reads ``yes`` and ``on`` as ``true``.
    """
    if isinstance(given, dict) and isinstance(validated, dict):
        for key in given.keys() & validated.keys():
            check_switches(given[key], validated[key], where, f"{path}.{key}".lstrip("."))
    elif isinstance(given, list | tuple) and isinstance(validated, list):
        for index, pair in enumerate(zip(given, validated, strict=False)):
            check_switches(*pair, where, f"{path}.{index}")
    elif isinstance(given, bool) and not isinstance(validated, bool):
        raise ConfigError(f"{where}: {path}: input should be a number (got {str(given).lower()})")


def explain(error: ValidationError, tree: Any, where: str, names: Iterable[str]) -> ConfigError:
    """Return ``error`` about ``tree`` as a `ConfigError`; `ossicle.section.config_error` documents the arguments."""
    problems = error.errors(include_url=False)
    paths = list(names)
    lines = [_printable(f"{where}: {_explain(problem, tree, paths)}", 600) for problem in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"{where}: and {len(problems) - MOST_PROBLEMS} more")
    return ConfigError("\n".join(lines))


def field_paths(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field of the section ``kind`` and of the sections in it.

    Members of a union are marked by their name, as in ``model.projector.<mlp>.width``. Keys of a mapping are ``*``, and
    the places in a list have no part of their own.
    """
    for name, info in kind.__pydantic_fields__.items():
        yield f"{prefix}{name}"
        named = [(section, "") for mark in info.metadata for section in getattr(mark, "sections", list)()]
        sections = named or _sections(info.annotation)
        for section, inner in sections:
            tag = section.__pydantic_fields__.get("name")
            tagged = isinstance(tag and tag.default, str) and len(sections) > 1
            yield from field_paths(section, f"{prefix}{name}.{inner}" + (f"<{tag.default}>." if tagged else ""))


def _sections(hint: Any) -> list[tuple[Any, str]]:
    """Return the sections in a type hint, each with the part of the path that leads to it."""
    if isinstance(hint, type) and hasattr(hint, "__pydantic_fields__"):
        return [(hint, "")]
    found = [found for argument in get_args(hint) for found in _sections(argument)]
    mapping = getattr(hint, "__origin__", None) is dict
    return [(section, f"*.{inner}" if mapping else inner) for section, inner in found]


def _explain(problem: Any, tree: Any, paths: list[str]) -> str:
    path, place = _field_path(problem["loc"], tree)
    message, kind = str(problem["msg"]), problem["type"]
    if kind == "unexpected_keyword_argument":
        return f"{path}: unknown field{_suggestion(place, paths)}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: is missing; add it"
    if kind == "union_tag_not_found":
        return f"{path}: write a section with a name, such as {{name: ...}} (got {short(problem['input'])})"
    if kind == "union_tag_invalid":
        known = problem["ctx"]["expected_tags"]
        return f"{path}: {_printable(problem['ctx']['tag'])!r} is none of its names: {known}"
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        return message if message.startswith(path) else f"{path}: {message}"
    return f"{path}: {message[:1].lower()}{message[1:200]} (got {short(problem['input'])})"


def _suggestion(place: list[str], paths: list[str]) -> str:
    """Return the correction of the unknown field at ``place``: a field beside it, or else the path of another one."""
    *parents, leaf = place
    beside = {path.rpartition(".")[2] for path in paths if _matches(path.split(".")[:-1], parents) or "." not in path}
    if leaf not in beside and (near := difflib.get_close_matches(leaf, sorted(beside), n=1)):
        return f"; did you mean '{near[0]}'?"
    elsewhere = {path.rpartition(".")[2]: path for path in reversed(paths)}
    if near := difflib.get_close_matches(leaf, [name for name in elsewhere if name != "name"], n=1):
        parts = [part for part in elsewhere[near[0]].split(".") if not part.startswith("<")]
        return f"; did you mean '{'.'.join(parts)}'?"
    return ""


def _matches(path: list[str], place: list[str]) -> bool:
    return len(path) == len(place) and all(a in ("*", b) for a, b in zip(path, place, strict=True))


def _field_path(location: tuple[str | int, ...], tree: Any) -> tuple[str, list[str]]:
    """Return the dotted path of a field, and its parts with marked tags of unions and without places in lists."""
    path: list[str] = []
    place: list[str] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        inside = isinstance(tree, dict) and part in tree
        inside |= isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree)
        if inside:
            tree = tree[part]
        if inside or last:
            path.append(_printable(str(part)))
        if not isinstance(part, int):
            place.append(str(part) if inside or last else f"<{part}>")
    return ".".join(path), place


def _printable(text: str, longest: int = 60) -> str:
    """Return ``text`` without characters that a terminal cannot show, and at most ``longest`` characters of it."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return shown if len(shown) <= longest else f"{shown[:longest]}..."
