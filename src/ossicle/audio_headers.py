"""Open audio files and compare their headers with the bytes that are there, before anything is decoded.

libsndfile trusts headers: it reads a truncated file as a complete one, an interrupted recording as an empty one, and
an MP3 with a variable bit rate and no length header as a part of it.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import soundfile

from ossicle.addresses import is_address, local_copy
from ossicle.errors import AudioError

RATES_HZ = (1_000, 768_000)
"""Lowest and highest sample rate in Hz that is read. Another rate is damage, and resampling it may fill the memory."""
MOST_CHANNELS = 64
"""Largest number of channels that is read; larger microphone arrays are not known."""
MOST_FRAMES_PER_BYTE = 10_000
"""Frames that a byte of a file can hold at most: FLAC needs 11 bytes for 65,535 frames of silence."""
UNKNOWN_LENGTH_FRAMES = 2**40
"""Frame count above which the length is unknown: libsndfile reports such a count for headers written by a stream."""
UNKNOWN_SIZE_BYTES = 0x7FFF_F000
"""Data size of a WAV file from which on it may mean "unknown": sox and ffmpeg write such sizes when they stream."""
HIDDEN_S = 0.5
"""Seconds of audio after the stated end of a WAV file from which on the header is refused."""
MOST_CHUNKS = 10_000
"""Chunks of a WAV or AIFF file that are looked at. A file of millions of empty ones would take minutes."""
MAGIC = (
    (0, rb"#!AMR", "AMR"),
    (4, rb"ftyp|moov|mdat|wide", "MPEG-4 (m4a, mp4, mov, 3gp)"),
    (0, rb"\x1aE\xdf\xa3", "Matroska (webm, mkv)"),
    (0, rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (wma)"),
    (0, rb"\xff[\xf0\xf1\xf8\xf9]", "AAC"),
    (0, rb"\x0bw", "AC-3"),
    (0, rb"MAC ", "Monkey's Audio"),
    (0, rb"wvpk", "WavPack"),
    (0, rb"TTA1", "True Audio"),
    (0, rb"DSD |FRM8", "DSD"),
    (0, rb"\.RMF|\.ra\xfd", "RealAudio"),
    (0, rb"FLV", "Flash video"),
    (0, rb"ajkg", "Shorten"),
    (28, rb"Speex", "Speex"),
    (8, rb"AVI ", "AVI"),
    (0, rb"\x00\x00\x01\xba", "MPEG (mpg, vob)"),
    (0, rb"(.{4})?G(?=.{187}(.{4})?G)", "MPEG transport stream (ts, mts)"),
    (0, rb"MPCK|MP\+", "Musepack"),
    (0, rb"\x7f\xfe\x80\x01", "DTS"),
)
"""Offset and bytes by which formats are recognised that libsndfile does not read, and their names."""


class Extent(NamedTuple):
    """Size of the audio in bytes by the header, and the bytes that the file has for it."""

    stated: int
    present: int


@contextmanager
def opened(path: str | Path, tolerance_s: float) -> Iterator[soundfile.SoundFile]:
    """Open an audio file of which header and size agree.

    Raises `AudioError` if the file is missing, empty, not audio, in a format that libsndfile does not read, more than
    ``tolerance_s`` seconds shorter than its header states, or if the header cannot be true. An error of libsndfile in
    the block becomes an `AudioError` too.
    """
    path = Path(path)
    with ExitStack() as stack:
        if is_address(str(path)):
            path = stack.enter_context(local_copy(path))
        size = _size(path)
        file = stack.enter_context(_checked(path, stack, size, tolerance_s))
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{path}: is truncated or damaged ({error.error_string})") from error


def _checked(path: Path, stack: ExitStack, size: int, tolerance_s: float) -> soundfile.SoundFile:
    """Return the open file after the checks of `opened`; what else is opened is closed with ``stack``."""
    try:
        file = _sound_file(path, stack)
    except (soundfile.LibsndfileError, OSError, ValueError, RuntimeError) as error:
        return _decoded(path, tolerance_s, error)
    if file.format == "MP3":
        from ossicle.mp3 import with_length

        if (content := with_length(path, file.frames)) is not None:
            file.close()
            file = soundfile.SoundFile(BytesIO(content))
    try:
        _check_header(file, path, size, tolerance_s)
    except AudioError:
        file.close()
        raise
    return file


def _sound_file(path: Path, stack: ExitStack) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(_repaired_wav(path, stack) or path)
    except soundfile.LibsndfileError:
        # Beside a file ._NAME of macOS, libsndfile takes an MP3 file for SD2, unless it does not know its name.
        return soundfile.SoundFile(stack.enter_context(path.open("rb")))


def _decoded(path: Path, tolerance_s: float, error: Exception) -> soundfile.SoundFile:
    """Open the sound of a file in a format that libsndfile does not read, if PyAV is installed."""
    if (format_name := _format_of(path)) is None:
        raise AudioError(f"{path}: is not an audio file, or its header is damaged") from error
    from ossicle.audio_av import opened_by_av  # few files need it

    if (found := opened_by_av(path)) is None:
        raise AudioError(
            f"{path}: is a file in the format {format_name}; to read it, run pip install 'ossicle[av]', or convert it "
            f"with ffmpeg -i {quote(str(path))} -ar 16000 {quote(str(path.with_suffix('.flac')))}"
        ) from error
    file, stated_s = found
    present_s = file.frames / file.samplerate
    if stated_s > present_s + max(tolerance_s, HIDDEN_S):  # decoders cut off the silence that encoders add
        raise AudioError(truncated(path, stated_s, present_s))
    return file


def missing(path: str | Path) -> str:
    """Return the message for a file that does not exist, with the likely cause."""
    text = str(path)
    if re.search(r"(^|/)(https?|s3|gs|ftp|file):/", text):
        return f"{text}: there is no such file, because it is an address; download it and write the path of the file"
    if "\\" in text and os.path.exists(text.replace("\\", "/")):  # noqa: PTH110
        return f"{text}: there is no such file; write / instead of \\ in paths"
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, text)
        if other != text and os.path.exists(other):  # noqa: PTH110
            return f"{text}: there is no such file, but one whose name has the Unicode form {form}; write it so"
    return f"{text}: there is no such file"


def truncated(path: str | Path, promised_s: float, present_s: float) -> str:
    """Return the message for a file that is shorter than its header states."""
    return f"{path}: is truncated: its header promises {promised_s:.2f} s, only {present_s:.2f} s can be read"


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size if path.is_file() else None
        folder = path.is_dir()
    except (OSError, ValueError) as error:  # a path that is too long or has characters that no path has
        raise AudioError(f"{str(path)[:100]!r}: no file can have this path ({error!s:.60})") from error
    if size is None:
        raise AudioError(f"{path}: is a folder, not a file" if folder else missing(path))
    if size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: there is no permission to read it; change its mode")
    return size


def _format_of(path: Path) -> str | None:
    """Return the name of a format in `MAGIC` by the first bytes of a file, or None."""
    with path.open("rb") as file:
        head = file.read(256)
    return next((name for offset, magic, name in MAGIC if re.match(magic, head[offset:], re.DOTALL)), None)


def _check_header(file: soundfile.SoundFile, path: Path, size: int, tolerance_s: float) -> None:
    frames, rate_hz = file.frames, file.samplerate
    if frames <= 0:
        raise AudioError(f"{path}: holds no samples")
    if frames > UNKNOWN_LENGTH_FRAMES:
        raise AudioError(f"{path}: its header has no length; encode it again, to a file instead of a pipe")
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise AudioError(
            f"{path}: its header states {rate_hz} Hz, and {RATES_HZ[0]} to {RATES_HZ[1]} Hz can be read; correct the "
            "header, or encode it again"
        )
    if file.channels > MOST_CHANNELS:
        raise AudioError(
            f"{path}: its header states {file.channels} channels, and at most {MOST_CHANNELS} can be read; correct "
            "the header, or keep the channels with the speech"
        )
    if frames > size * MOST_FRAMES_PER_BYTE:
        raise AudioError(
            f"{path}: its header promises {frames / rate_hz:.0f} s, more than {size} bytes can hold; encode it again"
        )
    extent = _extent(file.format, path, size)
    if extent is not None and extent.present > 0:
        present_s = frames / rate_hz
        promised_s = present_s * extent.stated / extent.present
        if promised_s > present_s + tolerance_s:
            raise AudioError(truncated(path, promised_s, present_s))
        if (
            file.format in ("WAV", "WAVEX")
            and extent.stated
            and extent.present - extent.stated > extent.stated * HIDDEN_S / present_s
        ):
            _check_rest(path, extent, present_s)


def _check_rest(path: Path, extent: Extent, stated_s: float) -> None:
    """Raise `AudioError` if audio follows after the stated end of a WAV file, as after an interrupted recording."""
    size = path.stat().st_size
    with path.open("rb") as file:
        order = ">" if file.read(4) == b"RIFX" else "<"
        end = size - extent.present + extent.stated
        file.seek(end)
        rest = file.read(4096)
        if not any(rest) or rest[:3] == b"TAG" or any(_is_chunks(file, end + pad, order, size) for pad in (0, 1)):
            return
    found_s = stated_s * extent.present / extent.stated
    target = quote(str(path.with_suffix(".repaired.wav")))
    raise AudioError(
        f"{path}: its header states {stated_s:.2f} s of audio, and the file holds {found_s:.2f} s; if all of it is "
        f"speech, repair the header with ffmpeg -ignore_length 1 -i {quote(str(path))} {target}"
    )


def _extent(kind: str, path: Path, size: int) -> Extent | None:
    """Return the stated and the present size of the audio, or None where the format or the header does not tell."""
    with path.open("rb") as file:
        head = file.read(1024)
        if kind in ("WAV", "WAVEX", "RF64"):
            return _riff_extent(file, head, size)
        if kind == "AIFF":
            return _chunk_extent(file, b"SSND", ">", size)
    if kind == "AU" and len(head) >= 24:
        start, stated = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:12])
        return None if stated == 0xFFFF_FFFF else Extent(stated, size - start)
    if kind == "W64" and (at := head.find(b"data\xf3\xac\xd3\x11")) >= 0 and at + 24 <= len(head):
        return Extent(struct.unpack_from("<Q", head, at + 16)[0] - 24, size - at - 24)
    if kind == "NIST" and (count := re.search(rb"sample_count -i (\d{1,15})", head)):
        width = re.search(rb"sample_n_bytes -i (\d)", head)
        channels = re.search(rb"channel_count -i (\d{1,3})", head)
        each = int(width[1] if width else 2) * int(channels[1] if channels else 1)
        return Extent(int(count[1]) * each, size - 1024) if b"pcm," not in head else None
    return None


def _riff_extent(file: Any, head: bytes, size: int) -> Extent | None:
    extent = _chunk_extent(file, b"data", ">" if head[:4] == b"RIFX" else "<", size)
    if extent is None:
        return None
    if head[:4] == b"RF64" and head[12:16] == b"ds64":
        return Extent(struct.unpack_from("<Q", head, 28)[0], extent.present)
    if extent.stated >= UNKNOWN_SIZE_BYTES and extent.present < UNKNOWN_SIZE_BYTES:
        return None
    return extent


def _chunk_extent(file: Any, wanted: bytes, order: str, size: int) -> Extent | None:
    """Return the extent of the chunk ``wanted`` of a RIFF or AIFF file, or None if it has none."""
    file.seek(12)
    for _ in range(MOST_CHUNKS):
        if len(header := file.read(8)) < 8:
            break
        name, stated = struct.unpack(f"{order}4sI", header)
        if name == wanted:
            return Extent(stated, size - file.tell())
        file.seek(stated + stated % 2, 1)  # chunks are padded to even sizes
    return None


def _repaired_wav(path: Path, stack: ExitStack) -> Any:
    """Return a WAV file of which the header has the size of the audio, where an interrupted recorder left it open.

    Recorders write 0 or the largest size first, and the true one at the end. The repair is made in memory, and only
    the changed page is copied. None is returned for every other file.
    """
    file = stack.enter_context(path.open("rb"))
    head, size = file.read(12), path.stat().st_size
    if head[:4] not in (b"RIFF", b"RIFX") or head[8:] != b"WAVE":
        return None
    order = ">" if head[:4] == b"RIFX" else "<"
    extent = _chunk_extent(file, b"data", order, size)
    if extent is None or not 0 < extent.present < UNKNOWN_SIZE_BYTES:
        return None
    start = size - extent.present
    if extent.stated < UNKNOWN_SIZE_BYTES:
        after = extent.stated + extent.stated % 2
        if extent.stated > 0 or _is_chunks(file, start + after, order, size):
            return None
    content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    struct.pack_into(f"{order}I", content, 4, size - 8)
    struct.pack_into(f"{order}I", content, start - 4, extent.present & ~1)  # an odd size would promise a padding byte
    return content


def _is_chunks(file: Any, at: int, order: str, size: int) -> bool:
    """Return True if the bytes from ``at`` to the end of the file are complete chunks, and not audio."""
    for _ in range(MOST_CHUNKS):
        if at + 8 > size:
            break
        file.seek(at)
        name, stated = struct.unpack(f"{order}4sI", file.read(8))
        if not re.fullmatch(rb"[ -~]{4}", name):
            return False
        at += 8 + stated + stated % 2
    return at in (size, size + 1)
