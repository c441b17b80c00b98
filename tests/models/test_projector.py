import math

import pytest
import torch

from ossicle.batch import Padded
from ossicle.models.projectors import QFormerConfig, QFormerProjector, project

SMALL = QFormerConfig(width=16, heads=2, layers=2, ffn=24, queries=3)  # windows of 17 frames


def make(in_dim: int = 8, out_dim: int = 12, config: QFormerConfig = SMALL, **build) -> QFormerProjector:
    torch.manual_seed(0)
    return config.build(in_dim, out_dim, **{"frame_rate_hz": 50.0, "embedding_rms": 0.5, **build}).eval()


def mask_of(lengths: list[int], longest: int) -> torch.Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def test_the_papers_sizes_give_its_parameter_count():
    with torch.device("meta"):
        projector = QFormerConfig().build(1024, 4096, frame_rate_hz=50.0, embedding_rms=0.02)
    assert sum(parameter.numel() for parameter in projector.parameters()) == 42_536_448
    assert projector.window == 17


@pytest.mark.parametrize("length", [1, 16, 17, 18, 34, 50])
def test_four_tokens_per_window_of_17_frames(length):
    projector = make(config=QFormerConfig(width=16, heads=2, layers=1, ffn=24))
    tokens, mask = projector(torch.randn(2, length, 8), torch.ones(2, length, dtype=torch.bool))
    assert tokens.shape == (2, 4 * math.ceil(length / 17), 12)
    assert mask.shape == tokens.shape[:2]
    assert mask.all()


def test_a_window_of_only_padding_yields_masked_zeros():
    lengths = [51, 35, 34, 1, 0]
    tokens, mask = make()(torch.randn(5, 51, 8), mask_of(lengths, 51))
    assert mask.sum(1).tolist() == [3 * math.ceil(length / 17) for length in lengths]
    assert (tokens[~mask] == 0).all()
    assert tokens.isfinite().all()


def test_a_batch_equals_its_utterances_one_by_one():
    projector, frames, lengths = make(), torch.randn(3, 40, 8), [40, 23, 5]
    tokens, mask = projector(frames, mask_of(lengths, 40))
    for row, length in enumerate(lengths):
        alone, _ = projector(frames[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(tokens[row][mask[row]], alone[0], atol=1e-6, rtol=1e-5)


def test_what_stands_in_the_padding_does_not_matter():
    projector, frames, mask = make(), torch.randn(2, 30, 8), mask_of([30, 20], 30)
    other = frames.masked_fill(~mask[..., None], 1e4)
    assert torch.equal(projector(frames, mask)[0], projector(other, mask)[0])


def test_a_batch_without_any_valid_frame_gives_only_masked_tokens():
    tokens, mask = make()(torch.randn(2, 20, 8), torch.zeros(2, 20, dtype=torch.bool))
    assert tokens.shape == (2, 6, 12)
    assert not mask.any()


@pytest.mark.parametrize("window_positions", [False, True])
def test_the_gradient_reaches_every_parameter(window_positions):
    sizes = {"width": 16, "heads": 2, "layers": 2, "ffn": 24, "dropout": 0.1}
    projector = make(config=QFormerConfig(**sizes, window_positions=window_positions)).train()
    tokens, mask = projector(torch.randn(2, 40, 8), mask_of([40, 3], 40))
    tokens[mask].square().sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A key's bias shifts all scores of a query alike and the softmax cancels it: its gradient is rounding noise.
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 0, name


def test_only_window_positions_tell_the_order_of_frames():
    frames = torch.randn(1, 17, 8)
    mask = torch.ones(1, 17, dtype=torch.bool)
    blind, sighted = make(), make(config=QFormerConfig(width=16, heads=2, layers=2, ffn=24, window_positions=True))
    for parameter in sighted.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # at the initial 0.02 attention is all but uniform
    torch.testing.assert_close(blind(frames, mask)[0], blind(frames.flip(1), mask)[0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(sighted(frames, mask)[0], sighted(frames.flip(1), mask)[0], atol=1e-4)


def test_the_output_starts_at_the_scale_of_the_llms_embeddings():
    sizes = {"width": 64, "heads": 2, "layers": 1, "ffn": 64}
    frames, mask = torch.randn(4, 170, 8), torch.ones(4, 170, dtype=torch.bool)
    matched = make(8, 256, QFormerConfig(**sizes), embedding_rms=0.5)(frames, mask)[0]
    papers = make(8, 256, QFormerConfig(**sizes, match_embedding_rms=False), embedding_rms=0.5)(frames, mask)[0]
    assert matched.square().mean().sqrt().item() == pytest.approx(0.5, rel=0.1)
    assert papers.square().mean().sqrt().item() == pytest.approx(0.02 * 64**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("frame_rate_hz", "window_s", "frames"), [(50.0, 1 / 3, 17), (50.0, 0.32, 16), (50.0, 0.001, 1)]
)
def test_windows_are_whole_frames(frame_rate_hz, window_s, frames):
    config = QFormerConfig(width=16, heads=2, layers=1, ffn=24, window_s=window_s)
    assert make(config=config, frame_rate_hz=frame_rate_hz).window == frames


def test_project_keeps_values_and_mask_together():
    projector, frames, mask = make(), torch.randn(2, 30, 8), mask_of([30, 9], 30)
    projected = project(projector, Padded(frames, mask))
    tokens, token_mask = projector(frames, mask)
    assert torch.equal(projected.values, tokens)
    assert torch.equal(projected.mask, token_mask)
