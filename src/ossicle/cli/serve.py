"""The command `ossicle serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ossicle.cli.options import Speeds

Run = Annotated[
    Path, typer.Argument(help="Folder of a run or of a checkpoint, or the name of a packaged one.", show_default=True)
]
ApiKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        envvar="OSSICLE_API_KEY",
        help="Key that requests must send; repeatable. In the variable, keys are separated by spaces.",
        show_default=False,
    ),
]


def serve(  # noqa: PLR0913 - options of a command
    run: Run = Path("ears"),
    host: Annotated[str, typer.Option(help="Address to listen on. Others than this machine need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    api_key: ApiKeys = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in requests. Default: the folder's name.")] = None,
    device: Annotated[str, typer.Option(help="Where the model runs, such as cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Type of the weights, such as bfloat16.")] = "auto",
    encoder: Annotated[str | None, typer.Option(help="New place of the encoder, if it has moved.")] = None,
    llm: Annotated[str | None, typer.Option(help="New place of the LLM, if it has moved.")] = None,
    llm_url: Annotated[
        str | None, typer.Option(help="API of an engine with the LLM, such as http://localhost:8001/v1 of vLLM.")
    ] = None,
    llm_model: Annotated[str | None, typer.Option(help="Name of the LLM there. Default: the name of the LLM.")] = None,
    max_batch: Annotated[int, typer.Option(help="Answers that are decoded together.", min=1)] = 16,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; further ones get the status 429.")] = 64,
    max_upload_mb: Annotated[float, typer.Option(help="Largest request in MB.", min=0.001)] = 100.0,
    max_audio_s: Annotated[float, typer.Option(help="Longest recording in seconds.", min=0.1)] = 3600.0,
    max_tokens: Annotated[int, typer.Option(help="Largest number of tokens of an answer.", min=1)] = 1024,
    speed: Speeds = None,
    timeout_s: Annotated[float, typer.Option(help="Seconds after which a request is given up.", min=0.1)] = 600.0,
) -> None:
    """Serve a model with OpenAI's API for audio and chat, live transcription, and a page to try it."""
    from ossicle.serve.run import run_server
    from ossicle.serve.settings import ServeSettings, check_host

    keys = tuple(key for key in api_key or () if key)
    check_host(host, keys)
    if speed and llm_url:
        raise typer.BadParameter("--speed has no effect with --llm-url, whose engine finds the transcripts")
    settings = ServeSettings(
        name=name or run.name,
        api_keys=keys,
        max_rows=max_batch,
        max_queue=max_queue,
        max_upload_bytes=int(max_upload_mb * 1e6),
        max_audio_s=max_audio_s,
        max_tokens=max_tokens,
        request_timeout_s=timeout_s,
        speeds=tuple(speed or ()),
    )
    model: dict[str, Any] = {"device": device, "dtype": dtype, "encoder": encoder, "llm": llm}
    run_server(run, settings, host=host, port=port, llm_url=llm_url, llm_model=llm_model, **model)


def add_to(app: typer.Typer) -> None:
    """Add the command of this file to ``app``."""
    app.command(rich_help_panel="Recordings")(serve)
