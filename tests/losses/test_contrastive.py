import math

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from ossicle.errors import DataError
from ossicle.losses.contrastive import info_nce, mean_pool, pooled_cosine, token_info_nce
from places import SHARED

FIXTURES = SHARED / "fixtures"


def ragged(lengths: list[int], longest: int, dim: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(len(lengths), longest, dim, generator=torch.Generator().manual_seed(seed))
    return values, torch.arange(longest) < torch.tensor(lengths)[:, None]


def loss_of(text: torch.Tensor, text_mask: torch.Tensor, speech: torch.Tensor, speech_mask: torch.Tensor):
    return info_nce(pooled_cosine(text, text_mask, speech, speech_mask))


def test_mean_pool_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]], [[5.0, -1.0], [99.0, 99.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(mean_pool(hidden, mask), torch.tensor([[2.0, 4.0], [5.0, -1.0]]))


class Reads(TorchDispatchMode):
    """Count how often a value is read from a tensor, for which a GPU has to finish first."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_mask_is_checked_once_for_all_layers_and_every_other_mask_again():
    layers, mask = ragged([3, 1, 2], 3)
    with Reads() as reads:
        for scale in range(1, 8):
            mean_pool(scale * layers, mask)
    assert reads.count == 1
    empty = mask.clone()
    empty[1] = False
    for _ in range(2):  # a mask that was refused is not known
        with pytest.raises(DataError, match=r"sequences \[1\]"):
            mean_pool(layers, empty)
    with Reads() as reads:
        mean_pool(layers, mask)
        mean_pool(layers, mask.clone())
    assert reads.count == 1


def test_pooled_cosine_by_hand():
    text = torch.tensor([[[3.0, 0.0], [5.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]])
    text_mask = torch.tensor([[True, True], [True, False]])
    speech = torch.tensor([[[1.0, 1.0]], [[3.0, 4.0]], [[0.0, -1.0]]])
    speech_mask = torch.ones(3, 1, dtype=torch.bool)
    half = 1 / math.sqrt(2)
    expected = torch.tensor([[half, 0.6, 0.0], [half, 0.8, -1.0]])
    torch.testing.assert_close(pooled_cosine(text, text_mask, speech, speech_mask), expected)


def test_info_nce_by_hand():
    similarity = torch.tensor([[0.8, 0.3], [0.1, 0.4]])
    first = math.log(1 + math.exp((0.3 - 0.8) / 0.1))
    second = math.log(1 + math.exp((0.1 - 0.4) / 0.1))
    assert info_nce(similarity, temperature=0.1).item() == pytest.approx((first + second) / 2, rel=1e-5)
    assert info_nce(torch.zeros(5, 5)).item() == pytest.approx(math.log(5))


def test_directions_compare_rows_and_columns():
    similarity = torch.tensor([[0.8, 0.3], [0.1, 0.4]])
    down_first = math.log(1 + math.exp((0.1 - 0.8) / 0.5))
    down_second = math.log(1 + math.exp((0.3 - 0.4) / 0.5))
    columns = info_nce(similarity, temperature=0.5, direction="speech_to_text").item()
    assert columns == pytest.approx((down_first + down_second) / 2, rel=1e-5)
    rows = info_nce(similarity, temperature=0.5).item()
    assert rows != pytest.approx(columns, rel=1e-3)
    both = info_nce(similarity, temperature=0.5, direction="symmetric").item()
    assert both == pytest.approx((rows + columns) / 2, rel=1e-6)


def test_the_reference_implementation_gives_the_same_loss_and_gradient():
    if not FIXTURES.is_dir():
        pytest.skip("the reference losses are missing (shared/fixtures)")
    reference = load_file(FIXTURES / "contrastive.safetensors")
    speech = reference["speech"].requires_grad_()
    loss = loss_of(reference["text"], reference["text_mask"], speech, reference["speech_mask"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), reference["cosine_loss"].squeeze(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(speech.grad, reference["cosine_grad_speech"], atol=1e-6, rtol=1e-4)


def test_permuting_the_batch_changes_nothing():
    text, speech = ragged([4, 2, 5], 5), ragged([7, 3, 6], 7, seed=1)
    order = torch.tensor([2, 0, 1])
    permuted = loss_of(text[0][order], text[1][order], speech[0][order], speech[1][order])
    torch.testing.assert_close(loss_of(*text, *speech), permuted)
    mismatched = loss_of(text[0][order], text[1][order], *speech)
    assert abs(mismatched - permuted) > 1e-3


def test_padding_changes_nothing():
    text, speech = ragged([4, 2, 5], 5), ragged([7, 3, 6], 7, seed=1)
    padded = []
    for values, mask in (text, speech):
        values = torch.cat([values.masked_fill(~mask[..., None], -7.0), torch.full((3, 4, 6), 1e3)], 1)
        padded += [values, torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], 1)]
    torch.testing.assert_close(loss_of(*text, *speech), loss_of(*padded))


def test_scale_does_not_matter_but_temperature_does():
    text, speech = ragged([4, 2, 5], 5), ragged([7, 3, 6], 7, seed=1)
    similarity = pooled_cosine(*text, *speech)
    torch.testing.assert_close(similarity, pooled_cosine(text[0] * 100, text[1], speech[0] / 100, speech[1]))
    assert abs(info_nce(similarity, temperature=0.1) - info_nce(similarity, temperature=1.0)) > 1e-3


def test_half_precision_states_are_compared_in_float32():
    text, speech = ragged([4, 2, 5], 5), ragged([7, 3, 6], 7, seed=1)
    similarity = pooled_cosine(text[0].bfloat16(), text[1], speech[0].bfloat16(), speech[1])
    assert similarity.dtype == torch.float32
    exact = pooled_cosine(text[0].bfloat16().double(), text[1], speech[0].bfloat16().double(), speech[1])
    torch.testing.assert_close(similarity, exact, atol=1e-6, rtol=1e-5)


def test_a_sequence_without_a_valid_position_is_named():
    values, mask = ragged([4, 0, 5], 5)
    with pytest.raises(ValueError, match=r"sequences \[1\] of the batch have no valid position"):
        mean_pool(values, mask)


def test_token_info_nce_by_hand():
    half = 1 / math.sqrt(2)
    text = torch.tensor([[[2.0, 0.0], [9.0, 9.0], [0.0, 3.0]], [[1.0, 0.0], [9.0, 9.0], [9.0, 9.0]]])
    speech = torch.tensor([[[5.0, 5.0], [0.0, 1.0]], [[9.0, 9.0], [0.0, -4.0]]])
    text_mask = torch.tensor([[True, False, True], [True, False, False]])
    speech_mask = torch.tensor([[True, True], [False, True]])
    # utterance 0: cosines [[√½, 0], [√½, 1]] between text tokens 0, 2 and speech tokens 0, 1; utterance 1: one token
    first = math.log(1 + math.exp(-half / 0.5))
    second = math.log(1 + math.exp((half - 1) / 0.5))
    loss = token_info_nce(text, text_mask, speech.requires_grad_(), speech_mask)
    assert loss.item() == pytest.approx((first + second) / 2 / 2, rel=1e-5)
    loss.backward()
    assert speech.grad is not None and (speech.grad[~speech_mask] == 0).all() and speech.grad.isfinite().all()


def test_token_info_nce_names_utterances_whose_tokens_do_not_match():
    text, speech = ragged([4, 2, 5], 5), ragged([4, 3, 5], 7, seed=1)
    with pytest.raises(ValueError, match=r"utterances \[1\] of the batch do not mark the same number of tokens"):
        token_info_nce(*text, *speech)


def test_texts_without_speech_are_negatives_of_the_speech_only():
    square = torch.tensor([[0.9, 0.1], [0.3, 0.8]])
    longer = torch.cat([square, torch.tensor([[0.5, 0.6]])])
    assert torch.equal(info_nce(longer), info_nce(square))
    expected = -torch.tensor([0.9, 0.8]).div(0.1) + longer.div(0.1).exp().sum(0).log()
    torch.testing.assert_close(info_nce(longer, direction="speech_to_text"), expected.mean())
    with pytest.raises(ValueError, match="1 rows of texts for 2 utterances"):
        info_nce(square[:1])


def test_a_temperature_that_is_a_tensor_receives_a_gradient():
    temperature = torch.tensor(0.5, requires_grad=True)
    info_nce(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), temperature=temperature).backward()
    # d/dt log(1 + exp(-1/t)) = exp(-1/t) / (1 + exp(-1/t)) / t^2
    falls = math.exp(-2)
    assert temperature.grad.item() == pytest.approx(falls / (1 + falls) / 0.25, rel=1e-5)
