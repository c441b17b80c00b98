"""The page itself: one HTML file with its style, charts and audio inside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ossicle import __version__
from ossicle.train.loop import CONFIG_FILE
from ossicle_lab.report.charts import LOOKS
from ossicle_lab.report.run_view import RunView
from ossicle_lab.report.study_view import RESULTS, StudyView, percent


def write_report(folders: Sequence[Path], out: Path, *, recordings: int = 6) -> Path:
    """Write the page about ``folders`` (studies and runs, in that order on the page) to ``out``; returns its path.

    Raises `ValueError` for a folder that is neither.
    """
    views = [_view(folder, recordings) for folder in folders]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(render(views), encoding="utf-8")
    partial.replace(out)
    return out


def render(views: Sequence[StudyView | RunView]) -> str:
    """The HTML of the page."""
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
        looks=LOOKS,
        version=__version__,
        made=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
    )


def _view(folder: Path, count: int) -> StudyView | RunView:
    if (folder / RESULTS).is_file():
        return StudyView(folder, count=count)
    if (folder / CONFIG_FILE).is_file():
        return RunView(folder, count=count)
    raise ValueError(f"{folder}: holds neither {RESULTS} (of a study) nor {CONFIG_FILE} (of a run)")


def _yaml(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)
