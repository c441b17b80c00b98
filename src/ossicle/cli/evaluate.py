"""Commands that decode a test set and score the hypotheses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ossicle.cli.options import AsJson, Blocks, Checkpoint, Ray, RayCommand, ShardOf, SkipBroken, Speeds, shard_of
from ossicle.errors import OssicleError
from ossicle.shards import Shard

if TYPE_CHECKING:
    from ossicle.evaluate.rescore import GroupsOf
    from ossicle.evaluate.score import Row, ScoreOptions

Normalise = Annotated[
    Literal["none", "basic", "whisper", "open-asr", "official"],
    typer.Option(help="Text normalisation before WER and CER."),
]
Spelling = Annotated[
    Path | None, typer.Option(help="File normalizer.json of a Whisper checkpoint, for --normalise whisper.")
]
Leaderboard = Annotated[
    Path | None,
    typer.Option(help="Clone of the Open ASR Leaderboard's repository, for --normalise open-asr. Its code is run."),
]


def evaluate(  # noqa: PLR0913 - each parameter is an option of the command
    model: Checkpoint,
    manifest: Annotated[Path, typer.Argument(help="Stage-2 manifest (JSONL) with references.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="File for the hypotheses. Default: MODEL/eval/MANIFEST.jsonl.")
    ] = None,
    fraction: Annotated[float, typer.Option(help="Share of the manifest to decode, a seeded subset.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Utterances per batch.", min=1)] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of an answer, in tokens.", min=1)] = 200,
    skip_broken: SkipBroken = False,
    from_text: Annotated[
        bool, typer.Option("--from-text", help="Give the LLM the transcripts instead of the speech: the upper bound.")
    ] = False,
    cascade: Annotated[
        bool,
        typer.Option("--cascade", help="Give the LLM the text that the encoder's CTC head or Whisper's decoder hears."),
    ] = False,
    own_transcript: Annotated[
        bool,
        typer.Option("--own-transcript", help="Let the model transcribe first, and give its LLM that transcript."),
    ] = False,
    speed: Speeds = None,
    honesty: Annotated[
        bool, typer.Option(help="Compare with the cascade, the text-only bound and the audio of other utterances.")
    ] = True,
    honesty_lines: Annotated[int, typer.Option(help="About how many utterances are compared.", min=1)] = 100,
    normalise: Normalise = "basic",
    spelling: Spelling = None,
    leaderboard: Leaderboard = None,
    shard: ShardOf = None,
    ray: Ray = None,
    blocks: Blocks = 32,
) -> None:
    """Decode a manifest, then score the hypotheses of each task and language."""
    from ossicle.evaluate.run import EvalOptions, decode_shard
    from ossicle.evaluate.run import evaluate as run
    from ossicle.evaluate.score import ScoreOptions

    _check_tables(normalise, spelling, leaderboard)
    given = {"--from-text": from_text, "--cascade": cascade, "--own-transcript": own_transcript}
    kinds = [name for name, wanted in given.items() if wanted]
    if len(kinds) > 1:
        raise typer.BadParameter(f"{' and '.join(kinds)} exclude each other: give only one")
    kind = "".join(kinds).replace("--from-", "-").replace("--", "-")
    options = EvalOptions(
        fraction=fraction,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        skip_broken=skip_broken,
        from_text=from_text,
        cascade=cascade,
        own_transcript=own_transcript,
        speeds=tuple(speed or ()),
        honesty_lines=honesty_lines if honesty else 0,
        scoring=ScoreOptions(normalise=normalise, spelling=spelling, leaderboard=leaderboard),
    )
    part, out = shard_of(shard, ray), out or model / "eval" / f"{manifest.stem}{kind}.jsonl"
    if ray is not None:
        from ossicle.on_ray import run_shards

        run_shards(decode_shard, (model, manifest, out, options), count=blocks, address=ray, title="decoding", gpu=True)
    rows = run(model, manifest, out, options, shard=part)
    _refuse_missing(rows)


def score(  # noqa: PLR0913 - each parameter is an option of the command
    files: Annotated[
        list[Path], typer.Argument(help="Hypotheses (JSONL) written by `ossicle evaluate`.", show_default=False)
    ],
    normalise: Normalise = "basic",
    spelling: Spelling = None,
    leaderboard: Leaderboard = None,
    official: Annotated[
        bool, typer.Option("--official", help="Add the scorers of the paper's code; see docs/evaluation.md.")
    ] = False,
    manifest: Annotated[
        list[Path] | None,
        typer.Option(help="Take the references from this manifest, not from the hypotheses; repeatable."),
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Treat the files as seeds of one run: show mean ± sd, not differences.")
    ] = False,
    lower: Annotated[
        str | None, typer.Option(help="Lower reference run of the normalised average: a file, or the stem of one.")
    ] = None,
    upper: Annotated[str | None, typer.Option(help="Upper reference run, given as for --lower.")] = None,
    comet: Annotated[
        bool, typer.Option("--comet", help="Score translations with COMET, which runs in a separate environment.")
    ] = False,
    comet_command: Annotated[
        str | None, typer.Option(help="Command of your own COMET scorer; see docs/evaluation.md.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples; 0 = no intervals.", min=0)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    as_json: AsJson = False,
    shard: ShardOf = None,
    ray: Ray = None,
    blocks: Blocks = 32,
) -> None:
    """Score hypotheses with confidence intervals; compare each further file with the first."""
    from ossicle.evaluate.comet import CometOptions
    from ossicle.evaluate.rescore import check_runs, rescore
    from ossicle.evaluate.score import ScoreOptions
    from ossicle.evaluate.tables import print_results

    if (lower is None) != (upper is None):
        raise typer.BadParameter("the normalised average needs both --lower and --upper")
    _check_tables(normalise, spelling, leaderboard)
    options = ScoreOptions(
        normalise=normalise,
        spelling=spelling,
        leaderboard=leaderboard,
        resamples=resamples,
        seed=seed,
        official=official,
        manifests=tuple(manifest or ()),
        comet=CometOptions(comet_command) if comet or comet_command else None,
    )
    references = None if lower is None or upper is None else (lower, upper)
    check_runs(files, seeds=seeds, references=references)
    with _divided(files, options, shard_of(shard, ray), ray, blocks) as groups_of:
        if groups_of is None:
            return
        results = rescore(files, options, seeds=seeds, references=references, groups_of=groups_of)
    if as_json:
        print(json.dumps(results.to_json(), indent=2, ensure_ascii=False))
    else:
        print_results(results)
    _refuse_missing([row for rows in results.runs.values() for row in rows])


@contextmanager
def _divided(
    files: list[Path], options: ScoreOptions, shard: Shard | None, ray: str | None, blocks: int
) -> Iterator[GroupsOf | None]:
    """Score the parts of the options, and yield the function that joins them; None while some are missing."""
    from ossicle.evaluate import score_part as parts
    from ossicle.evaluate.score import score_groups

    if ray is not None:
        from ossicle.on_ray import run_shards

        gpu = options.comet is not None
        run_shards(parts.score_part, (files, options), count=blocks, address=ray, title="scoring", gpu=gpu)
        shard = Shard(1, blocks)
    elif shard is not None:
        parts.score_part(shard, files, options)
    else:
        yield score_groups
        return
    with parts.finished(files, options, shard) as waiting:
        if waiting:
            typer.echo(waiting, err=True)
            yield None
        else:
            yield partial(parts.joined, count=shard.count)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (evaluate, score):
        app.command(cls=RayCommand, rich_help_panel="Evaluation")(command)


def _check_tables(normalise: str, spelling: Path | None, leaderboard: Path | None) -> None:
    """Raise `typer.BadParameter` for a table that the normalisation does not read."""
    if spelling is not None and normalise != "whisper":
        raise typer.BadParameter("--spelling has an effect only with --normalise whisper")
    if leaderboard is not None and normalise != "open-asr":
        raise typer.BadParameter("--leaderboard has an effect only with --normalise open-asr")


def _refuse_missing(rows: list[Row]) -> None:
    """Raise `OssicleError` if a metric could not be computed, after all others have been printed."""
    from ossicle.evaluate.tables import describe_errors

    if errors := describe_errors(rows):
        raise OssicleError(f"some metrics could not be computed.\n{errors}")
