"""Find packaged recipes by name from any working directory.

Another package adds recipes by an entry point of the group ``ossicle.recipes``, which names a package of YAML files.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from ossicle.errors import ConfigError


def find(name: str | Path) -> Path:
    """Return the path of the recipe ``name``: a YAML file, or a packaged recipe such as ``paper/contr-cos-all``.

    Raises `ConfigError` if there is neither.
    """
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        relative = path if path.suffix == ".yaml" else path.with_name(f"{path.name}.yaml")
        for folder in _folders():
            if (folder / relative).is_file():
                return folder / relative
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a user without a home folder
        name = ascii(str(name)[:100])
    raise ConfigError(f"{name}: no such recipe; `ossicle recipes` lists those that are installed")


def names() -> list[str]:
    """Return the names of all packaged recipes, sorted."""
    found = (path.relative_to(folder).with_suffix("") for folder in _folders() for path in folder.rglob("*.yaml"))
    return sorted(path.as_posix() for path in found)


def _folders() -> list[Path]:
    packages = [__name__, *(entry.value for entry in entry_points(group="ossicle.recipes"))]
    specs = [find_spec(package) for package in packages]
    return [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]
