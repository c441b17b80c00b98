"""MkDocs hooks: publish pages that live beside the code, and turn links into the repository into links that work.

A Markdown file in this repository links to other files by relative paths, which a code host follows. On the site,
such a link becomes a link to the page that shows the file, or to the file on the code host where no page shows it.
A link to a file that does not exist is left as it is, so that ``mkdocs build --strict`` reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Files outside docs/ that are pages of the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "lab/README.md": "lab.md",
    "lab/src/ossicle_lab/models/weights/README.md": "lab-models.md",
    "src/ossicle/recipes/laptop/README.md": "recipes/laptop.md",
    "src/ossicle/recipes/paper/README.md": "recipes/paper.md",
    "src/ossicle/recipes/real/README.md": "recipes/real.md",
    "src/ossicle/recipes/small/README.md": "recipes/small.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
# Links and images: the text in brackets, then a target that is neither an address nor an anchor of the same page.
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
TABLE_ROW = re.compile(r"^\|.*$", re.MULTILINE)
NOT_PUBLISHED = (".json", ".py")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of one page, and keep the scores in its tables on one line; leave code blocks as they are."""
    where = page.file.src_uri
    source = SOURCES.get(where, f"docs/{where}")
    repository = (config.repo_url or "").rstrip("/")
    page.edit_url = f"{repository}/edit/main/{source}"

    def rewrite(match: re.Match[str]) -> str:
        return f"{match[1]}{_target(match[2], source, where, repository)}{match[3]}"

    parts = FENCE.split(markdown)
    return "".join(
        part if part.startswith("```") else TABLE_ROW.sub(_unbroken, LINK.sub(rewrite, part)) for part in parts
    )


def _unbroken(row: re.Match[str]) -> str:
    """Return a table row in which "1.0 ± 0.1" and "WER ↓" have spaces that do not break."""
    return re.sub(" ([↑↓])", "\u00a0\\1", row[0].replace(" ± ", "\u00a0±\u00a0"))


def _target(link: str, source: str, where: str, repository: str) -> str:
    """Return what the page ``where`` links to for a ``link`` in the file ``source`` of the repository."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if not (ROOT / path).exists():
        return link
    published = PAGES.get(path)
    if published is None and path.startswith("docs/") and not path.endswith(NOT_PUBLISHED):
        published = path.removeprefix("docs/")
    if published is not None:
        return posixpath.relpath(published, posixpath.dirname(where) or ".")
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{repository}/{kind}/main/{path}"
