import subprocess
import sys

import pytest
import torch

from ossicle.errors import ConfigError
from ossicle.models.projectors import ConvConfig, LinearConfig, MLPConfig, QFormerConfig
from ossicle.models.stacking import ConvProjector, StackProjector

CONFIGS = {
    "linear": LinearConfig(),
    "mlp": MLPConfig(width=16),
    "conv": ConvConfig(width=16),
    "qformer": QFormerConfig(width=16, heads=2, layers=1, ffn=16),
}
KINDS = ("linear", "mlp", "conv")


def make(kind: str, in_dim: int = 8, out_dim: int = 12, **build):
    torch.manual_seed(0)
    return CONFIGS[kind].build(in_dim, out_dim, **{"frame_rate_hz": 50.0, "embedding_rms": 0.5, **build}).eval()


def mask_of(lengths: list[int], longest: int) -> torch.Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (4, 1), (5, 2), (8, 2), (13, 4)])
def test_one_token_for_four_frames(kind, frames, tokens):
    projector = make(kind)
    assert projector.frames_per_token == 4
    values, mask = projector(torch.randn(2, frames, 8), torch.ones(2, frames, dtype=torch.bool))
    assert values.shape == (2, tokens, 12)
    assert mask.shape == (2, tokens) and mask.all()


def test_the_rate_of_the_papers_projector():
    assert make("qformer").frames_per_token == 17 / 4


@pytest.mark.parametrize(
    ("kind", "rate_hz", "token_s", "frames"),
    [
        ("mlp", 12.5, 0.08, 1),
        ("mlp", 50.0, 0.1, 5),
        ("conv", 12.5, 0.08, 1),
        ("conv", 50.0, 0.1, 4),
        ("conv", 50.0, 0.3, 16),
    ],
)
def test_tokens_last_whole_frames(kind, rate_hz, token_s, frames):
    config = {"mlp": MLPConfig(token_s=token_s, width=4), "conv": ConvConfig(token_s=token_s, width=4)}[kind]
    projector = config.build(8, 12, frame_rate_hz=rate_hz, embedding_rms=0.5)
    assert projector.frames_per_token == frames


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_utterances_one_by_one(kind):
    projector, frames, lengths = make(kind), torch.randn(4, 21, 8), [21, 13, 1, 0]
    tokens, mask = projector(frames, mask_of(lengths, 21))
    assert mask.sum(1).tolist() == [-(-length // projector.frames_per_token) for length in lengths]
    assert (tokens[~mask] == 0).all()
    for row, length in enumerate(lengths[:3]):
        alone, _ = projector(frames[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(tokens[row][mask[row]], alone[0], atol=1e-6, rtol=1e-5)
    other = frames.masked_fill(~mask_of(lengths, 21)[..., None], 1e4)
    assert torch.equal(projector(other, mask_of(lengths, 21))[0], tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_every_parameter(kind):
    projector = make(kind).train()
    tokens, mask = projector(torch.randn(2, 20, 8), mask_of([20, 3], 20))
    (tokens[mask] - torch.randn(12)).square().sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_output_starts_like_the_llms_embeddings(kind):
    mean = torch.linspace(-0.3, 0.3, 256)
    projector = make(kind, 32, 256, embedding_mean=mean)
    tokens = projector(torch.randn(8, 170, 32), torch.ones(8, 170, dtype=torch.bool))[0].detach()
    assert tokens.square().mean().sqrt().item() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(projector.out.bias, mean)


def test_stacked_by_hand():
    projector = StackProjector(2, 1, stack=2)
    with torch.no_grad():
        projector.out.weight.copy_(torch.tensor([[1.0, 2.0, 4.0, 8.0]]))
        projector.out.bias.zero_()
    frames = torch.tensor([[[0.0, 2.0], [6.0, 4.0], [1.0, 3.0]]])  # normed: (-1, 1), (1, -1), (-1, 1)
    tokens, mask = projector(frames, torch.ones(1, 3, dtype=torch.bool))
    assert mask.tolist() == [[True, True]]
    torch.testing.assert_close(tokens[0, :, 0], torch.tensor([-1.0 + 2 + 4 - 8, -1.0 + 2]), atol=1e-3, rtol=0)


def test_parameters_counted_by_hand():
    def count(projector):
        return sum(parameter.numel() for parameter in projector.parameters())

    assert count(StackProjector(8, 12, stack=4)) == 2 * 8 + (32 * 12 + 12)
    assert count(StackProjector(8, 12, stack=4, width=16)) == 2 * 8 + (32 * 16 + 16) + 2 * 16 + (16 * 12 + 12)
    convs = 2 * (16 * 16 * 3 + 16 + 2 * 16)
    assert count(ConvProjector(8, 12, halvings=2, width=16, kernel=3)) == (
        2 * 8 + (8 * 16 + 16) + convs + 2 * 16 + (16 * 12 + 12)
    )


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match=r"model\.projector\.kernel=4 is even: set an odd number"):
        ConvConfig(kernel=4).build(8, 12, frame_rate_hz=50.0, embedding_rms=0.5)


@pytest.mark.parametrize("projector", [{"name": "linear"}, {"name": "mlp", "width": 16}, {"name": "conv", "width": 16}])
def test_a_recipe_chooses_by_name(tree, projector):
    from ossicle.train.recipe import parse

    assert parse(tree(model={"projector": projector})).model.projector.name == projector["name"]
    with pytest.raises(ConfigError, match=r"model\.projector\.heads: unknown field"):
        parse(tree(model={"projector": {**projector, "heads": 2}}))


def test_another_name_is_refused_and_none_is_the_papers():
    from pydantic import TypeAdapter, ValidationError

    from ossicle.models.speech_llm import ModelConfig

    adapter = TypeAdapter(ModelConfig)
    assert adapter.validate_python({"projector": {"queries": 2}}).projector == QFormerConfig(queries=2)
    with pytest.raises(ValidationError, match="'qformer', 'mlp', 'conv', 'linear'"):
        adapter.validate_python({"projector": {"name": "perceiver"}})


def test_a_run_imports_the_projector_of_its_recipe_only():
    program = (
        "import sys; from ossicle.train.recipe import parse; from ossicle.models import projectors\n"
        "files = {place.partition(':')[0] for place in projectors.PLACES.values()} - {projectors.__name__}\n"
        "for projector in ({}, {'name': 'cif'}):\n"
        "    parse({'name': 'a', 'data': {'train': ['a.jsonl']}, 'model': {'projector': projector},\n"
        "           'objective': {'name': 'next_token'}})\n"
        "    print(*sorted(files & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\nossicle.models.cif\n"


@pytest.mark.parametrize("projector", [{"name": "linear"}, {"name": "mlp", "width": 16}, {"name": "conv", "width": 16}])
def test_it_trains_and_comes_back(config, collate, manifest, projector):
    from ossicle.models.speech_llm import SpeechLLM
    from ossicle.train.loop import train

    folder = train(config(model={"projector": projector}, train={"steps": 1}))
    model, again = (SpeechLLM.from_pretrained(folder) for _ in range(2))
    batch = collate(model, manifest)
    assert torch.equal(model.speech(batch).values, again.speech(batch).values)
