"""`ossicle prepare`: a corpus as it was downloaded in, manifests out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from ossicle.corpora import CORPORA
from ossicle.corpora.items import Item, Options
from ossicle.corpora.report import REPORT_NAME, Bar, Report
from ossicle.corpora.writer import JOURNAL_NAME, Limits, write
from ossicle.errors import CorpusError

THREADS = 16
"""Opening files waits for the disk or the network; what decodes (libsndfile, soxr) lets other threads run."""
FILES = frozenset({"parquet", "lhotse", "jsonl"})
"""Corpora that may be a single file."""
FOR_ALL = frozenset({"lower", "min_s", "max_s"})
FLAGS = {"splits": "--split", "targets": "--target", "subsets": "--subset", "tasks": "--task", "columns": "--column"}


def prepare(
    name: str, source: Path, out: Path, options: Options | None = None, *, jobs: int = THREADS, show: bool | None = None
) -> Report:
    """Write the manifests of the corpus ``name`` in the folder ``source`` to the folder ``out``.

    A call that was stopped is continued; one that was completed is only reported. ``show``: a progress bar; ``None``
    means on a terminal. Raises `CorpusError` for an unknown name, an option that the corpus does not have, a source
    that is not that corpus, and an ``out`` that holds something else.
    """
    options = options or Options()
    if name not in CORPORA:
        raise CorpusError(f"there is no corpus {name!r}; there are {', '.join(CORPORA)}")
    chosen = changed(options, Options())
    for key in sorted(chosen.keys() - FOR_ALL - CORPORA[name].options):
        has = ", ".join(FLAGS.get(option, f"--{option}") for option in sorted(CORPORA[name].options)) or "none"
        raise CorpusError(f"the corpus {name} has no option {FLAGS.get(key, f'--{key}')}; its own options: {has}")
    if not source.exists():
        raise CorpusError(f"{source}: there is no such file or folder; expected {CORPORA[name].layout}")
    if source.is_file() and name not in FILES:
        raise CorpusError(f"{source}: is a file, not the folder of the corpus; expected {CORPORA[name].layout}")
    read = import_module(f"{__package__}.{CORPORA[name].module}").read
    return prepare_with(read, name, source, out, options, jobs=jobs, show=show)


def prepare_with(  # noqa: PLR0913 - those of `prepare`, and the corpus itself
    read: Callable[[Path, Options], Iterable[Item]],
    name: str,
    source: Path,
    out: Path,
    options: Options | None = None,
    *,
    jobs: int = THREADS,
    show: bool | None = None,
) -> Report:
    """`prepare` for a corpus of your own: ``read`` yields its items, ``name`` is only said and remembered."""
    options = options or Options()
    about = {"corpus": name, "source": str(source.resolve()), "options": changed(options, Options())}
    done = done_before(out, about)
    if done is not None:
        return done
    with Bar(name, show=show) as bar, ThreadPoolExecutor(jobs) as pool:
        return write(read(source, options), out, about, Limits.of(options), pool, bar=bar)


def changed(options: Any, default: Any) -> dict[str, Any]:
    """What a user chose, as the plain values that are written to ``prepare.json`` and compared with it."""
    usual = asdict(default)
    return json.loads(json.dumps({key: value for key, value in asdict(options).items() if value != usual[key]}))


def done_before(out: Path, about: dict[str, Any]) -> Report | None:
    """The report of an earlier, complete call; raises `CorpusError` if that prepared something else."""
    path = out / REPORT_NAME
    if not path.exists() or (out / JOURNAL_NAME).exists():
        return None
    report = Report.load(path)
    if report.about != about:
        raise CorpusError(f"{path}: {out} already holds {report.about}, not {about}; choose another folder")
    missing = [name for name in report.manifests if not (out / f"{name}.jsonl").exists()]
    return None if missing else report
