"""Choose the tokens of an LLM that speech can be spelled with, and spell texts with them.

A byte-pair tokenizer learns its merges in the order of their frequency. Its first merges alone are therefore a
tokenizer as well, with fewer tokens: frequent words stay whole, and rare words are spelled in parts. All of its tokens
are tokens of the LLM.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossicle.batch import pad_ids
from ossicle.errors import ModelError
from ossicle.models.lexicon import Lexicon

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc`\u00b4", "'"))
_SPACES = ("\u0120", "\u2581")
"""Characters that stand for the space before a word in tokens."""
_INCOMPLETE = "\ufffd"
"""Character that stands for bytes which are not a whole character."""


def spoken_form(text: str) -> str:
    """Return what is heard of ``text``: words in lower case, without punctuation, with single spaces.

    Letters, their marks, digits, and apostrophes inside words stay.
    """
    folded = unicodedata.normalize("NFC", text.translate(_APOSTROPHES)).lower()
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join(word.strip("'") for word in kept.split() if word.strip("'"))


class Letters(NamedTuple):
    """Labels of the characters of each spoken token: 1 + each byte, and 0 after the last."""

    later: Tensor  # (V, most bytes)
    first: Tensor  # (V, most bytes) without the space before a word, for the first token of a text


class SpokenTokens:
    """The tokens of the first ``merges`` merges of a tokenizer that consist of letters, digits and apostrophes.

    Attributes:
        ids: Ids of the tokens in the LLM's vocabulary, ascending.

    Raises `ModelError` if the tokenizer is no byte-pair encoding.
    """

    def __init__(self, tokenizer: Any, merges: int, *, name: str) -> None:
        from tokenizers import Tokenizer

        tree = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {}}
        if tree["model"].get("type") != "BPE":
            raise ModelError(f"{name}: its tokenizer is no byte-pair encoding: use another projector than 'ctc'")
        tree["model"] |= {"merges": tree["model"]["merges"][:merges], "ignore_merges": False}
        tree |= {"post_processor": None, "truncation": None, "padding": None}
        self._tokenizer = Tokenizer.from_str(json.dumps(tree))
        self._prefix = " " if any(token.startswith("\u0120") for token in tree["model"]["vocab"]) else ""
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        parts = {i for token, i in tree["model"]["vocab"].items() if len(token) == 1}
        made = {i for merge in tree["model"]["merges"] if (i := _result(merge, tree["model"]["vocab"])) is not None}
        self.ids = sorted(i for i in (parts | made) - special if self._is_spoken(i))
        self._index = {i: k for k, i in enumerate(self.ids)}
        self._columns: Tensor | None = None

    def _is_spoken(self, token: int) -> bool:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return _INCOMPLETE in text or text == " " or (text.strip() != "" and spoken_form(text) == text.strip(" '"))

    def spell(self, text: str) -> list[int]:
        """Return the indices in `ids` of the tokens of what is heard of ``text``."""
        found = self._tokenizer.encode(self._prefix + spoken_form(text), add_special_tokens=False).ids
        return [self._index[i] for i in found if i in self._index]

    @cached_property
    def letters(self) -> Letters:
        """The characters of each token."""
        texts = [_bytes_of(self._tokenizer.id_to_token(i) or "", byte_level=bool(self._prefix)) for i in self.ids]
        rows = [[1 + byte for byte in text] for text in [*texts, *(text.lstrip() for text in texts)]]
        return Letters(*pad_ids(rows).values.chunk(2))

    @cached_property
    def lexicon(self) -> Lexicon:
        """The words that the LLM has a token for, in lower case, and others."""
        tokens = (token for token in self._tokenizer.get_vocab() if token[:1] in _SPACES)
        texts = (_bytes_of(token, byte_level=bool(self._prefix)).decode(errors="ignore") for token in tokens)
        return Lexicon(text[1:].lower() for text in texts)

    def columns(self, llm: Any) -> Tensor:
        """Return the number of the spoken token that each token of ``llm`` begins with (vocabulary,).

        Numbers are indices in `ids`. The next number stands for tokens that end an answer, and the one after for tokens
        that are not heard. The first call reads the whole vocabulary.
        """
        if self._columns is None:
            size = llm.model.get_output_embeddings().weight.shape[0]
            texts = llm.tokenizer.batch_decode([[i] for i in range(len(llm.tokenizer))])
            found = [self._first(i, text) for i, text in enumerate(texts)]
            self._columns = torch.tensor(found + [len(self.ids) + 1] * (size - len(found)))[:size]
            self._columns[llm.stop_ids] = len(self.ids)
        return self._columns

    def _first(self, token: int, text: str) -> int:
        heard, silent = spoken_form(text), len(self.ids) + 1
        if token in self._index or not heard or _INCOMPLETE in text:
            return self._index.get(token, silent)
        found = self._tokenizer.encode((text[0] == " ") * self._prefix + heard, add_special_tokens=False).ids
        return self._index.get(found[0], silent) if found else silent

    def text(self, spelled: list[int]) -> str:
        """Return the text of indices in `ids`, with single spaces."""
        return " ".join(self._tokenizer.decode([self.ids[k] for k in spelled]).split())


@cache
def _byte_of() -> dict[str, int]:
    """Return the byte that each character stands for in tokens of GPT-2 and its successors."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def _bytes_of(token: str, *, byte_level: bool) -> bytes:
    """Return the bytes of a token, which tokenizers write in one of two ways."""
    if byte_level:
        return bytes(_byte_of()[character] for character in token)
    byte = re.fullmatch("<0x([0-9A-F]{2})>", token)  # as in SentencePiece
    return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()


def _result(merge: Any, vocabulary: dict[str, int]) -> int | None:
    """Return the id of the token that ``merge`` makes; tokenizer files write a pair, or two words in one text."""
    return vocabulary.get("".join(merge.split(" ") if isinstance(merge, str) else merge))
