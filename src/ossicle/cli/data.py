"""Commands that make, inspect and align manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ossicle.cli.options import (
    AsJson,
    Blocks,
    Lower,
    MaxDuration,
    MinDuration,
    Ray,
    RayCommand,
    ShardOf,
    SkipBroken,
    Targets,
    shard_of,
)
from ossicle.corpora import CORPORA

PREPARE_HELP = "Convert a downloaded corpus into manifests.\n\n\b\nNAME is one of\n" + "\n".join(
    f"{name:<16}  {corpus.help}" for name, corpus in CORPORA.items()
)


def prepare(  # noqa: PLR0913 - each parameter is an option of the command
    name: Annotated[str, typer.Argument(help="Name of the corpus; see above.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="Folder or file of the corpus.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the manifests; a second call resumes.", show_default=False)],
    split: Annotated[list[str] | None, typer.Option(help="Convert only this split; repeatable.")] = None,
    subset: Annotated[list[str] | None, typer.Option(help="GigaSpeech: XS, S, M, L, XL, DEV or TEST.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Spoken language, where the corpus has several or names none.")
    ] = None,
    target: Targets = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Write only lines of this task; repeatable: asr, st, qa.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="parquet, jsonl: FIELD=COLUMN, e.g. text=sentence; repeatable.")
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="mls-descriptions: folder of mls_eng's parquet files.")] = None,
    lower: Lower = False,
    min_duration: MinDuration = 0.0,
    max_duration: MaxDuration = float("inf"),
    jobs: Annotated[int, typer.Option(help="Threads that probe and decode audio.", min=1)] = 16,
    shard: ShardOf = None,
    ray: Ray = None,
    blocks: Blocks = 32,
) -> None:
    """Convert a downloaded corpus into manifests."""
    from ossicle.corpora.items import Options
    from ossicle.corpora.prepare import prepare as run
    from ossicle.corpora.prepare import prepare_shard

    options = Options(
        splits=tuple(split or ()),
        language=language,
        targets=tuple(target or ()),
        subsets=tuple(subset or ()),
        tasks=tuple(task or ()),
        columns=_columns(column or ()),
        audio=None if audio is None else str(audio),
        lower=lower,
        min_s=min_duration,
        max_s=max_duration,
    )
    part = shard_of(shard, ray)
    if ray is not None:
        from ossicle.on_ray import run_shards

        run_shards(prepare_shard, (name, source, out, options, jobs), count=blocks, address=ray, title=name)
    run(name, source, out, options, jobs=jobs, shard=part).print(out)


def prepare_tts(  # noqa: PLR0913 - each parameter is an option of the command
    texts: Annotated[Path, typer.Argument(help="Plain text, JSONL or a JSON file of SQuAD.", show_default=False)],
    out: Annotated[
        Path, typer.Argument(help="Folder for audio and manifests; a second call resumes.", show_default=False)
    ],
    language: Annotated[str, typer.Option(help="Language to speak, for lines that name none.")] = "en",
    target: Targets = None,
    command: Annotated[
        str | None, typer.Option(help="TTS command, e.g. 'piper -m en.onnx -f {out}'; see docs/corpora.md.")
    ] = None,
    voice: Annotated[list[str] | None, typer.Option(help="Value for {voice} in the command; repeatable.")] = None,
    piper: Annotated[
        list[Path] | None,
        typer.Option(help="Natural voice of Piper (VOICE.onnx, extra piper); repeatable.", show_default=False),
    ] = None,
    voices: Annotated[Literal["train", "test"], typer.Option(help="espeak-ng: set of voices to draw from.")] = "train",
    seed: Annotated[int, typer.Option(help="Seed for drawing voices, rates and pitches.")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of utterances, taken from the start.", min=1)
    ] = None,
    min_duration: MinDuration = 0.0,
    max_duration: MaxDuration = float("inf"),
    lower: Lower = False,
    jobs: Annotated[
        int | None, typer.Option(help="Processes. Default: one per core; with --ray, one per part.", min=1)
    ] = None,
    shard: ShardOf = None,
    ray: Ray = None,
    blocks: Blocks = 32,
) -> None:
    """Synthesise speech for a text corpus and write manifests for asr, st and qa."""
    from ossicle.corpora.tts import TtsOptions, prepare_tts_shard
    from ossicle.corpora.tts import prepare_tts as run

    options = TtsOptions(
        language=language,
        targets=tuple(target or ()),
        command=command,
        voices=tuple(voice or ()),
        piper=tuple(str(path.resolve()) for path in piper or ()),
        kind=voices,
        seed=seed,
        limit=limit,
        lower=lower,
        min_s=min_duration,
        max_s=max_duration,
    )
    part = shard_of(shard, ray)
    if ray is not None:
        from ossicle.on_ray import run_shards

        run_shards(prepare_tts_shard, (texts, out, options, jobs), count=blocks, address=ray, title="speaking")
    run(texts, out, options, jobs=jobs, shard=part).print(out)


def stats(
    manifests: Annotated[list[Path], typer.Argument(help="Manifests (JSONL).", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show the contents of manifests: durations, rates, languages, tasks, speakers, duplicates and leaks."""
    from ossicle.corpora.stats import stats as run
    from ossicle.corpora.stats_table import print_stats

    found = run(manifests)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_stats(found)


def align(  # noqa: PLR0913 - each parameter is an option of the command
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSONL) with transcripts.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File for the manifest with word times.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option(help="CTC model: hub id, folder, or `lab` for the laboratory's tiny encoder.")
    ] = "lab",
    batch_size: Annotated[int, typer.Option(help="Utterances per batch.", min=1)] = 16,
    from_textgrid: Annotated[
        Path | None, typer.Option(help="Read word times from the TextGrids of this folder instead.")
    ] = None,
    from_ctm: Annotated[Path | None, typer.Option(help="Read word times from this CTM file instead.")] = None,
    skip_broken: SkipBroken = False,
    shard: ShardOf = None,
    ray: Ray = None,
    blocks: Blocks = 32,
) -> None:
    """Add the start and end of each word, which mixed speech-text training needs."""
    from ossicle.align.aligner import Aligner
    from ossicle.align.files import align_manifest, align_shard, import_words

    part = shard_of(shard, ray)
    source = from_textgrid or from_ctm
    if source is not None:
        if part or ray:
            raise typer.BadParameter("reading word files is quick: leave out --shard and --ray")
        report = import_words(manifest, out, source, skip_broken=skip_broken)
    else:
        if ray is not None:
            from ossicle.on_ray import run_shards

            given = (manifest, out, model, batch_size, skip_broken)
            run_shards(align_shard, given, count=blocks, address=ray, title="aligning", gpu=True)
        report = align_manifest(
            manifest, out, Aligner.load(model), batch_size=batch_size, skip_broken=skip_broken, shard=part
        )
    print(f"{out}: {report.summary()}")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    panel = "Data"
    app.command(cls=RayCommand, help=PREPARE_HELP, rich_help_panel=panel)(prepare)
    for command in (prepare_tts, stats, align):
        app.command(cls=RayCommand, rich_help_panel=panel)(command)


def _columns(pairs: list[str] | tuple[()]) -> dict[str, str]:
    """Return field -> column of arguments such as ``text=sentence``. Raises `typer.BadParameter` for others."""
    columns = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--column {pair}: write FIELD=COLUMN, such as text=sentence")
        columns[field] = column
    return columns
