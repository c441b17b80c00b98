"""What the formats of other programs need from projectors: the Q-Former's options, and `stack-mlp`."""

from __future__ import annotations

import pytest
import torch

from ossicle.models.projectors import QFormerConfig, StackMLPConfig
from ossicle.train.recipe import load

SIZES = {"width": 16, "heads": 2, "layers": 2, "ffn": 24, "queries": 3, "window_s": 0.3}


def build(config, in_dim=8, out_dim=12, **options):
    torch.manual_seed(0)
    return config.build(in_dim, out_dim, **{"frame_rate_hz": 50.0, "embedding_rms": 0.5, **options}).eval()


def mask_of(lengths, longest):
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def test_zeros_fill_the_last_window_and_are_attended_to():
    projector = build(QFormerConfig(**SIZES, frame_norm="none", pad_windows="zero"))
    for weight in projector.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    frames = torch.randn(1, 20, 8)
    whole = torch.cat([frames, torch.zeros(1, 10, 8)], 1)
    tokens, mask = projector(frames, mask_of([20], 20))
    expected, _ = projector(whole, mask_of([30], 30))
    torch.testing.assert_close(tokens, expected)
    assert mask.sum() == 6
    masked = build(QFormerConfig(**SIZES, frame_norm="none"))
    masked.load_state_dict(projector.state_dict())
    assert not torch.allclose(masked(frames, mask_of([20], 20))[0][:, 3:], expected[:, 3:], atol=1e-3)


def test_filled_windows_do_not_depend_on_the_batch():
    projector = build(QFormerConfig(**SIZES, pad_windows="zero"))
    frames, lengths = torch.randn(3, 40, 8), [40, 23, 5]
    tokens, mask = projector(frames.masked_fill(~mask_of(lengths, 40)[..., None], 1e4), mask_of(lengths, 40))
    for row, length in enumerate(lengths):
        alone, _ = projector(frames[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(tokens[row][mask[row]], alone[0], atol=1e-5, rtol=1e-4)


def test_without_their_norm_the_scale_of_frames_matters():
    frames, mask = torch.randn(1, 15, 8), mask_of([15], 15)
    for norm, same in (("layer", True), ("none", False)):
        projector = build(QFormerConfig(**SIZES, frame_norm=norm))
        for weight in projector.layers.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        loud, quiet = projector(100 * frames, mask)[0], projector(frames, mask)[0]
        assert torch.allclose(loud, quiet, atol=1e-3) == same


def test_stack_mlp_has_a_token_for_eight_frames_and_no_biases():
    projector = build(StackMLPConfig(width=16))
    tokens, mask = projector(torch.randn(2, 17, 8), mask_of([17, 8], 17))
    assert tokens.shape == (2, 3, 12) and mask.sum(1).tolist() == [3, 1]
    assert (tokens[~mask] == 0).all()
    assert sum(weight.numel() for weight in projector.parameters()) == 64 + 64 * 32 + 16 + 16 * 12


def test_a_batch_of_stack_mlp_equals_its_utterances_one_by_one():
    projector, frames, lengths = build(StackMLPConfig(width=16)), torch.randn(3, 21, 8), [21, 13, 1]
    tokens, mask = projector(frames, mask_of(lengths, 21))
    for row, length in enumerate(lengths):
        alone, _ = projector(frames[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(tokens[row][mask[row]], alone[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mean", [None, 0.1 * torch.ones(256)])
def test_stack_mlp_starts_at_the_scale_of_the_embeddings(mean):
    projector = build(StackMLPConfig(width=64), out_dim=256, embedding_mean=mean)
    tokens, _ = projector(torch.randn(4, 160, 8), mask_of([160] * 4, 160))
    assert tokens.square().mean().sqrt().item() == pytest.approx(0.5, rel=0.1)


def test_the_recipe_for_granite_speech_has_the_options_that_the_format_needs():
    config = load("real/granite").model
    projector = build(config.projector, frame_rate_hz=50.0)
    assert (config.projector.frame_norm, config.projector.pad_windows) == ("none", "zero")
    assert (projector.window, projector.num_queries) == (15, 3)
