"""Settings of the server: names, limits and keys."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

from pydantic import Field

from ossicle.errors import ConfigError
from ossicle.section import section

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
ALIASES = ("whisper-1",)
"""Names of the model that many programs have built in."""


@section
class ServeSettings:
    """Define the limits and settings of the server."""

    name: str = "ossicle"
    """Name of the model in requests and in ``/v1/models``."""
    aliases: tuple[str, ...] = ALIASES
    """Further names by which requests may call the model."""
    api_keys: tuple[str, ...] = ()
    """Keys of which a request must have one. Without keys the server listens on the loopback interface only."""
    max_rows: Positive = 16
    """Answers that are decoded together."""
    max_queue: Annotated[int, Field(ge=0)] = 64
    """Requests that may wait beyond those that are decoded. Further ones get the status 429."""
    request_timeout_s: Seconds = 600.0
    """Seconds after which a request that is not complete is given up."""
    max_decode_s: Seconds = 120.0
    """Seconds of decoding after which an answer is cut, as at its largest number of tokens."""
    max_tokens: Positive = 1024
    """Largest number of tokens of an answer. Requests for more get this number."""
    default_tokens: Positive = 200
    """Number of tokens of an answer if a request does not say it."""
    max_upload_bytes: Positive = 100_000_000
    """Largest body of a request."""
    max_audio_s: Seconds = 3600.0
    """Longest recording. The samples of all its channels are limited to this time in stereo at 48 kHz."""
    max_sockets: Positive = 64
    """WebSocket connections that may be open at a time."""
    speeds: tuple[float, ...] = ()
    """Further speeds at which recordings are heard for transcripts (`ossicle.models.joint.generate_jointly`)."""


def check_host(host: str, api_keys: tuple[str, ...]) -> None:
    """Raise `ConfigError` if a server without keys is to listen on ``host``, which other machines can reach."""
    if not api_keys and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: other machines could use the server, and there is no API key: set --api-key or "
            "OSSICLE_API_KEY, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Return True if ``host`` is a name or an address of this machine that no other one can reach."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
