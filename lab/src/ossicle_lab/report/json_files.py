"""Read the JSON files that a report shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ossicle.errors import DataError


def read_object(path: Path, *fields: str) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `DataError` if the file is damaged or lacks one of the fields."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); run the command that wrote it again") from error
    missing = [name for name in fields if not isinstance(content, dict) or name not in content]
    if missing or not isinstance(content, dict):
        what = f"has no {missing[0]!r}" if missing else "is not a JSON object"
        raise DataError(f"{path}: {what}; give the folder that `ossicle study`, `train` or `evaluate` wrote")
    return content
