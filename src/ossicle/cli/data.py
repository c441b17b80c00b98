"""The commands that make and examine manifests. Thin, like `ossicle.cli.main`, which adds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ossicle.corpora import CORPORA

PREPARE_HELP = "Turn a corpus, as it was downloaded, into manifests.\n\n\b\nNAME is one of\n" + "\n".join(
    f"{name:<16}  {corpus.help}" for name, corpus in CORPORA.items()
)


def prepare(  # noqa: PLR0913 - each parameter is an option of the command
    name: Annotated[str, typer.Argument(help="The corpus; see above.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="Its folder (or file).", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the manifests; a second call continues.", show_default=False)],
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be repeated.")] = None,
    subset: Annotated[list[str] | None, typer.Option(help="GigaSpeech: XS, S, M, L, XL, DEV, TEST.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Language spoken, where there are several or none is said.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Only translations to this language; may be repeated.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Only lines of this task: asr, st, qa; may be repeated.")
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="parquet, jsonl: FIELD=COLUMN, e.g. text=sentence.")] = None,
    audio: Annotated[Path | None, typer.Option(help="mls-descriptions: the parquet files of mls_eng.")] = None,
    lower: Annotated[bool, typer.Option("--lower", help="Write transcripts in lower case.")] = False,
    min_duration: Annotated[float, typer.Option(help="Leave out shorter utterances, in seconds.")] = 0.0,
    max_duration: Annotated[float, typer.Option(help="Leave out longer utterances, in seconds.")] = float("inf"),
    jobs: Annotated[int, typer.Option(help="Threads that probe and decode audio.")] = 16,
) -> None:
    """Turn a corpus, as it was downloaded, into manifests."""
    from ossicle.corpora.items import Options
    from ossicle.corpora.prepare import prepare as run
    from ossicle.errors import CorpusError

    pairs = [entry.partition("=") for entry in column or ()]
    wrong = next((entry for entry, (_, equals, _) in zip(column or (), pairs, strict=True) if not equals), None)
    if wrong is not None:
        raise CorpusError(f"--column {wrong}: write FIELD=COLUMN, such as text=sentence")
    options = Options(
        splits=tuple(split or ()),
        language=language,
        targets=tuple(target or ()),
        subsets=tuple(subset or ()),
        tasks=tuple(task or ()),
        columns={field: name for field, _, name in pairs},
        audio=None if audio is None else str(audio),
        lower=lower,
        min_s=min_duration,
        max_s=max_duration,
    )
    run(name, source, out, options, jobs=jobs).print(out)


def stats(
    manifests: Annotated[list[Path], typer.Argument(help="Manifests (JSONL).", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON.")] = False,
) -> None:
    """Show what manifests hold: durations, rates, languages, tasks, speakers, duplicates, and leaks between them."""
    from ossicle.corpora.stats import stats as run
    from ossicle.corpora.stats_table import print_stats

    found = run(manifests)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_stats(found)


def prepare_tts(  # noqa: PLR0913 - each parameter is an option of the command
    texts: Annotated[Path, typer.Argument(help="Plain text, JSONL or SQuAD's JSON.", show_default=False)],
    out: Annotated[
        Path, typer.Argument(help="Folder for audio and manifests; a second call continues.", show_default=False)
    ],
    language: Annotated[str, typer.Option(help="Language to speak, where the line does not say.")] = "en",
    target: Annotated[
        list[str] | None, typer.Option(help="Only translations to this language; may be repeated.")
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="Speak with this, e.g. 'piper -m en.onnx -f {out}'; see docs.")
    ] = None,
    voice: Annotated[list[str] | None, typer.Option(help="A name for {voice} in the command; may be repeated.")] = None,
    voices: Annotated[Literal["train", "test"], typer.Option(help="espeak-ng: which of the lab's voices.")] = "train",
    seed: Annotated[int, typer.Option(help="Of the draw of voices, rates and pitches.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only so many utterances, from the first.")] = None,
    min_duration: Annotated[float, typer.Option(help="Leave out shorter utterances, in seconds.")] = 0.0,
    max_duration: Annotated[float, typer.Option(help="Leave out longer utterances, in seconds.")] = float("inf"),
    lower: Annotated[bool, typer.Option("--lower", help="Write transcripts in lower case.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes; one per core if not said.")] = None,
) -> None:
    """Speak a corpus of texts: translations and questions about texts become stage-2 manifests."""
    from ossicle.corpora.tts import TtsOptions
    from ossicle.corpora.tts import prepare_tts as run

    options = TtsOptions(
        language=language,
        targets=tuple(target or ()),
        command=command,
        voices=tuple(voice or ()),
        kind=voices,
        seed=seed,
        limit=limit,
        lower=lower,
        min_s=min_duration,
        max_s=max_duration,
    )
    run(texts, out, options, jobs=jobs).print(out)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(help=PREPARE_HELP)(prepare)
    app.command()(prepare_tts)
    app.command()(stats)
