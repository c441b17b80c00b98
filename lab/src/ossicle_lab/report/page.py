"""Write the page: one HTML file that contains its style, charts and audio."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ossicle import __version__
from ossicle.errors import DataError
from ossicle.files import write_text
from ossicle.train.run_folder import CONFIG_FILE
from ossicle_lab.report.figures import COLOURS
from ossicle_lab.report.names import percent
from ossicle_lab.report.run_view import RunView
from ossicle_lab.report.study_view import RESULTS, StudyView


def write_report(
    folders: Sequence[Path], out: Path, *, recordings: int = 6, audio_folders: Sequence[Path] = ()
) -> Path:
    """Write the page about ``folders`` to ``out``, studies before runs, and return ``out``.

    The page contains audio below ``folders`` and ``audio_folders`` only.

    Raises `DataError` if a folder is neither a study nor a run.
    """
    views = [_view(folder, recordings, f"s{i}", [*folders, *audio_folders]) for i, folder in enumerate(folders, 1)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, render(views))
    return out


def render(views: Sequence[StudyView | RunView]) -> str:
    """Return the HTML of the page."""
    environment = Environment(
        loader=PackageLoader("ossicle_lab.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(percent=percent, yaml=_yaml)
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        studies=[view for view in views if isinstance(view, StudyView)],
        runs=[view for view in views if isinstance(view, RunView)],
        style=Markup(style),
        colours=COLOURS,
        version=__version__,
        made=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
    )


def _view(folder: Path, count: int, prefix: str, audio_folders: Sequence[Path]) -> StudyView | RunView:
    if (folder / RESULTS).is_file():
        return StudyView(folder, count=count, prefix=prefix, audio_folders=audio_folders)
    if (folder / CONFIG_FILE).is_file():
        return RunView(folder, count=count, audio_folders=audio_folders)
    raise DataError(
        f"{folder}: holds neither {RESULTS} (of a study) nor {CONFIG_FILE} (of a run); give the folder of one of them"
    )


def _yaml(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)
