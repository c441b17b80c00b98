"""Train the tokenizer of the lab's LLM: a byte-level BPE large enough that nearly every word is one token.

Text after a special token gets a leading space. So a passage has the same tokens alone and at the start of a user turn.
"PASSAGE INSTRUCTION" has the tokens of the passage followed by those of the instruction.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, USER, ASSISTANT, END, PAD = "<s>", "<|user|>", "<|assistant|>", "<|end|>", "<pad>"
VOCAB_SIZE = 2560

_CHAT_TEMPLATE = (
    "<s>{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}<|end|>"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}{{ raise_exception('the lab LLM knows the roles user and assistant only') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Train a tokenizer on ``texts``, with special tokens and a chat template. It adds no special token to texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


class WordIds:
    """Look up token ids word by word: the same as the tokenizer's, about 50 times faster."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Return the token ids of words that are separated by single spaces."""
        ids: list[int] = []
        for word in text.split():
            if word not in self._ids:
                self._ids[word] = self._tokenizer(word, add_special_tokens=False)["input_ids"]
            ids += self._ids[word]
        return ids
