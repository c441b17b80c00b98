"""Turn the tokens of an answer into pieces of text while they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""Character that tokenizers write for the bytes of an incomplete character."""


class TextStream:
    """The text of one answer, which is the text of `LLM.generate`: up to the first newline, without outer spaces.

    Pieces never end within a character, and what later tokens can still change is kept back. Joined, the pieces are the
    final `text`.

    Args:
        tokenizer: The tokenizer of the LLM.
        stop: Texts that end the answer; they are not part of it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(text for text in stop if text)
        self.text = ""
        """The text that all pieces so far make up."""
        self.stopped = False
        """True if one of the texts ``stop`` was found."""
        # Such tokenizers join "do" and " n't" only when the second token is known.
        self._joins_words = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))

    def push(self, ids: Sequence[int]) -> str:
        """Return the new piece of text after the tokens ``ids``, all of the answer so far. It may be empty."""
        text = self._known(ids)
        if not self.stopped:
            text = text.rstrip(HALF_CHARACTER)
            text = text[: len(text) - self._begun_stop(text)]
            if self._joins_words:
                text = text[: max(text.rfind(" "), 0)]
        return self._emit(text.strip())

    def finish(self, ids: Sequence[int]) -> str:
        """Return the last piece of text of the complete answer ``ids``."""
        return self._emit(self._known(ids).strip())

    def _known(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` up to a newline or a stop text."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).split("\n")[0]
        found = [place for place in map(text.find, self.stop) if place >= 0]
        if found:
            self.stopped = True
            text = text[: min(found)]
        return text

    def _begun_stop(self, text: str) -> int:
        """Return the number of characters at the end of ``text`` with which a stop text may begin."""
        lengths = (n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(lengths, default=0)

    def _emit(self, text: str) -> str:
        if not text.startswith(self.text):  # a byte that completes no character can change the text before it
            return ""
        piece = text[len(self.text) :]
        self.text = text
        return piece
