"""Count the frames of an MP3 file, and write the length header that some files lack.

libsndfile estimates the length of a file without a Xing, Info or VBRI header from its first frame, and never decodes
beyond it. The estimate is wrong for a variable bit rate. A header that covers only a part of the file, as joined files
have it, hides the rest in the same way.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

BITRATES_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of layer III by header index, for MPEG-1 (True) and for MPEG-2 and 2.5 (False)."""
RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Sample rates by version bits and header index."""
LENGTH_TOLERANCE_FRAMES = 4
"""Frames by which a stated length may differ from the count: delays of encoder and decoder are not counted."""
TAG_BYTES = 512
"""Bytes after the audio that a length header may leave out; an ID3v1 tag has 128."""
HEADER_BITRATE_INDEX = 8
"""Bit rate of the frame that holds the new header, large enough for it at every sample rate."""


class Header(NamedTuple):
    """The header of one MPEG audio frame of layer III."""

    word: int
    rate_hz: int
    mpeg1: bool
    mono: bool
    size: int
    """Bytes of the frame, header included."""

    @property
    def samples(self) -> int:
        """Return the number of samples per channel in the frame."""
        return 1152 if self.mpeg1 else 576

    @property
    def tag_offset(self) -> int:
        """Return the offset in the frame of a Xing or Info header: after the header and the side information."""
        side = (17 if self.mono else 32) if self.mpeg1 else (9 if self.mono else 17)
        return 4 + side


def with_length(path: Path, stated_samples: int) -> bytes | None:
    """Return the content of an MP3 file with a correct length header, or None if ``stated_samples`` is correct.

    ``stated_samples`` is the length per channel as libsndfile reports it. None is returned too for a file whose frames
    cannot be counted, such as one in free format, and for a file that is shorter than its length header: decoding finds
    that it is truncated.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first = _first_frame(content)
        if first is None:
            return None
        start, header = first
        tag = content[start + header.tag_offset : start + header.tag_offset + 4]
        tagged = tag in (b"Xing", b"Info") or content[start + 36 : start + 40] == b"VBRI"
        if tagged and _covers(content, start, header):
            return None
        audio = start + header.size if tagged else start
        frames, stop = _count(content, audio, header)
        missing = frames * header.samples - stated_samples
        if (missing if tagged else abs(missing)) <= LENGTH_TOLERANCE_FRAMES * header.samples:
            return None
        return _xing_frame(header, frames, stop - audio) + content[audio:stop]


def _covers(content: mmap.mmap, start: int, header: Header) -> bool:
    """Return True if the length header states about as many bytes as the file has from ``start`` on, or more."""
    if content[start + 36 : start + 40] == b"VBRI":
        size = struct.unpack_from(">I", content, start + 46)[0] if len(content) >= start + 50 else 0
    else:
        at = start + header.tag_offset + 4
        flags = struct.unpack_from(">I", content, at)[0] if len(content) >= at + 12 else 0
        size = struct.unpack_from(">I", content, at + 8)[0] if flags & 3 == 3 else 0
    return bool(size >= len(content) - start - TAG_BYTES)


def _first_frame(content: mmap.mmap) -> tuple[int, Header] | None:
    """Return the offset and the header of the first frame that another frame follows."""
    at = _after_id3(content, 0)
    limit = min(len(content), at + 65_536)
    while (at := content.find(b"\xff", at, limit)) >= 0:
        header = parse_header(content, at)
        if header is not None:
            after = parse_header(content, at + header.size)
            if (after is not None and _alike(header, after)) or at + header.size == len(content):
                return at, header
        at += 1
    return None


def _count(content: mmap.mmap, at: int, like: Header) -> tuple[int, int]:
    """Return the number of complete frames from ``at`` on, and the offset where the last one ends.

    Frames that are not like the first one, and bytes that are no frame (tags between joined files), are passed over.
    """
    frames, stop = 0, at
    while at + 4 <= len(content):
        header = parse_header(content, at)
        if header is not None and _alike(header, like):
            if at + header.size > len(content):
                break
            frames, at = frames + 1, at + header.size
            stop = at
            continue
        skipped = _after_id3(content, at)
        at = skipped if skipped > at else content.find(b"\xff", at + 1)
        if at < 0:
            break
    return frames, stop


def _alike(one: Header, other: Header) -> bool:
    return (one.rate_hz, one.mpeg1, one.mono) == (other.rate_hz, other.mpeg1, other.mono)


def parse_header(content: mmap.mmap, at: int) -> Header | None:
    """Return the header of a layer III frame at ``at``, or None if there is none."""
    if at + 4 > len(content) or content[at] != 0xFF:
        return None
    word = struct.unpack_from(">I", content, at)[0]
    version, layer = word >> 19 & 3, word >> 17 & 3
    bitrate, rate = word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return None
    return _header(word, version, bitrate, rate)


def _header(word: int, version: int, bitrate: int, rate: int) -> Header:
    mpeg1, rate_hz = version == 3, RATES_HZ[version][rate]
    size = (144_000 if mpeg1 else 72_000) * BITRATES_KBPS[mpeg1][bitrate] // rate_hz + (word >> 9 & 1)
    return Header(word, rate_hz, mpeg1, word >> 6 & 3 == 3, size)


def _xing_frame(like: Header, frames: int, size: int) -> bytes:
    """Return a silent frame with a Xing header for ``frames`` frames in ``size`` bytes after it."""
    word = like.word & ~(0xF << 12) & ~(1 << 9) | HEADER_BITRATE_INDEX << 12 | 1 << 16  # no padding, no checksum
    header = _header(word, word >> 19 & 3, HEADER_BITRATE_INDEX, word >> 10 & 3)
    frame = bytearray(header.size)
    struct.pack_into(">I", frame, 0, word)
    struct.pack_into(">4sIII", frame, header.tag_offset, b"Xing", 3, frames, size + header.size)
    return bytes(frame)


def _after_id3(content: mmap.mmap, at: int) -> int:
    """Return the offset after the ID3v2 tags at ``at``."""
    while content[at : at + 3] == b"ID3" and at + 10 <= len(content):
        a, b, c, d = content[at + 6 : at + 10]
        at += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if content[at + 5] & 0x10 else 0)
    return min(at, len(content))
