"""Convert a corpus, as it was downloaded, into manifests (`ossicle prepare`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from ossicle.addresses import is_remote, url_of
from ossicle.corpora import CORPORA
from ossicle.corpora.items import Item, Options
from ossicle.corpora.manifests import locked
from ossicle.corpora.naming import Names, plain_path
from ossicle.corpora.parts import own_items, prepare_part
from ossicle.corpora.report import REPORT_NAME, Report
from ossicle.corpora.writer import JOURNAL_NAME, Limits, Worker, fill_journal, progress_of, write
from ossicle.errors import CorpusError
from ossicle.languages import is_plausible
from ossicle.shards import WHOLE, Shard

THREADS = 16
"""Default number of threads. Opening files waits for the disk or the network, and decoding releases the interpreter."""
SINGLE_FILE = frozenset({"parquet", "lhotse", "jsonl", "webdataset"})
"""Corpora whose source may be a single file."""
REMOTE = frozenset({"parquet", "lhotse", "webdataset"})
"""Corpora whose source may be a URL."""
COMMON_OPTIONS = frozenset({"lower", "min_s", "max_s"})
"""Options that every corpus has."""
FLAGS = {"splits": "--split", "targets": "--target", "subsets": "--subset", "tasks": "--task", "columns": "--column"}

Reader = Callable[[Path, Options], Iterable[Item]]
"""A corpus: a function ``read(source, options)`` that yields the items in ``source``."""


def prepare(  # noqa: PLR0913 - what, where and how
    corpus: str | Reader,
    source: Path,
    out: Path,
    options: Options | None = None,
    *,
    jobs: int = THREADS,
    show: bool = True,
    shard: Shard | None = None,
) -> Report:
    """Write the manifests of the corpus in ``source`` to the folder ``out``.

    An interrupted call resumes. A call that was completed before only returns its report.

    Args:
        corpus: a name in `ossicle.corpora.CORPORA`, or the function that reads your own corpus.
        source: folder of the corpus, or a file for the corpora in `SINGLE_FILE`.
        out: folder for the manifests, which is created.
        options: the part of the corpus to read; everything by default.
        jobs: number of threads that probe and convert audio.
        show: whether to show the progress.
        shard: the part of the work to do. The last part of several calls writes the manifests.

    Raises:
        CorpusError: the name or an option is unknown, ``source`` does not have the layout of the corpus, or ``out``
            contains something else, or another process is writing it.
    """
    options = options or Options()
    if isinstance(corpus, str):
        read, name = _reader(corpus, source, options), corpus
    else:
        read, name = corpus, f"{corpus.__module__}.{corpus.__qualname__}"
    about = {"corpus": name, "source": plain_path(source), "options": non_defaults(options, Options())}
    limits = Limits.of(options)

    def read_items() -> Iterable[Item]:
        return read(source, options)

    def pool() -> Executor:
        return ThreadPoolExecutor(jobs)

    return write_once(read_items, out, about, limits, pool, title=name, show=show, shard=shard)


def write_once(  # noqa: PLR0913 - as for `prepare`
    read: Callable[[], Iterable[Item]],
    out: Path,
    about: dict[str, Any],
    limits: Limits,
    pool: Callable[[], Executor],
    *,
    title: str,
    show: bool,
    shard: Shard | None,
) -> Report:
    """Write the manifests of the items that ``read`` returns, all of them or the part ``shard``.

    A call that was completed before only returns its report, and calls neither ``read`` nor ``pool``. Raises
    `CorpusError` as `ossicle.corpora.writer.write` does.
    """

    def fill(journal: Path) -> None:
        items = own_items(shard or WHOLE, Names(out).apply(read()))
        with progress_of(title, enabled=show) as progress, pool() as executor:
            fill_journal(journal, items, about, Worker(out, limits), executor, progress=progress)

    if shard is not None:
        return prepare_part(shard, out, about, lambda: load_report(out, about), fill)
    with locked(out):
        finished = load_report(out, about)
        if finished is not None:
            return finished
        with progress_of(title, enabled=show) as progress, pool() as executor:
            return write(read(), out, about, limits, executor, progress=progress)


def prepare_shard(shard: Shard, corpus: str, source: Path, out: Path, options: Options, jobs: int) -> None:
    """Do the part ``shard`` of `prepare` without a display, as a block of work on another machine."""
    prepare(corpus, source, out, options, jobs=jobs, show=False, shard=shard)


def _reader(name: str, source: Path, options: Options) -> Reader:
    """Return the function that reads the corpus ``name``, after a check of the source and the options."""
    if name not in CORPORA:
        raise CorpusError(f"there is no corpus {name!r}; choose one of {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    for tag in (options.language, *options.targets):
        if tag is not None and not is_plausible(tag):
            raise CorpusError(f"{tag!r} is no language: give a code such as en, de or yue, or an English name")
    for key in sorted(non_defaults(options, Options()).keys() - COMMON_OPTIONS - corpus.options):
        own = ", ".join(FLAGS.get(option, f"--{option}") for option in sorted(corpus.options)) or "none"
        raise CorpusError(f"the corpus {name} has no option {FLAGS.get(key, f'--{key}')}; its own options: {own}")
    if is_remote(source):
        if name not in REMOTE:
            raise CorpusError(
                f"{url_of(source)}: only {', '.join(sorted(REMOTE))} are read from a URL; download {name}"
            )
    elif not source.exists():
        raise CorpusError(f"{source}: there is no such file or folder; expected {corpus.layout}")
    if source.is_file() and name not in SINGLE_FILE:
        raise CorpusError(f"{source}: is a file, not the folder of the corpus; expected {corpus.layout}")
    read: Reader = import_module(f"{__package__}.{corpus.module}").read
    return read


def non_defaults(options: Any, default: Any) -> dict[str, Any]:
    """Return the fields of the dataclass ``options`` that differ from ``default``, as plain JSON values."""
    usual = asdict(default)
    plain: dict[str, Any] = json.loads(
        json.dumps({key: value for key, value in asdict(options).items() if value != usual[key]})
    )
    return plain


def load_report(out: Path, about: dict[str, Any]) -> Report | None:
    """Return the report of an earlier complete call, or None. Raises `CorpusError` if that call prepared other data."""
    path = out / REPORT_NAME
    if not path.exists() or (out / JOURNAL_NAME).exists():
        return None
    report = Report.load(path)
    if report.about != about:
        raise CorpusError(f"{path}: {out} already contains {report.about}, not {about}; choose another folder")
    missing = [name for name in report.manifests if not (out / f"{name}.jsonl").exists()]
    return None if missing else report
