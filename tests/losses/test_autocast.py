"""Losses and pooling compute in float32 where mixed precision is on."""

import pytest
import torch

from ossicle.batch import Padded
from ossicle.losses import contrastive
from ossicle.losses.distillation import kl_divergence
from ossicle.losses.sinkhorn import wasserstein_similarity
from ossicle.objectives import Contrastive, MixedContrastive


def clouds(seed: int, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states that share a large common vector, as those of LLMs do: bfloat16 loses what differs."""
    generator = torch.Generator().manual_seed(seed)
    common = 5 * torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(9))
    values = common + torch.randn(rows, 9, 64, generator=generator)
    mask = torch.arange(9) < torch.tensor([9, 5, 7, 3])[:rows, None]
    return values, mask


def pooled(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean and its direction in float64, by a plain loop."""
    means = torch.stack([row[valid].double().mean(0) for row, valid in zip(values, mask, strict=True)])
    return means / means.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_similarity_and_its_gradient_are_those_of_float64(states):
    text, text_mask = clouds(0)
    speech, speech_mask = clouds(1)
    text, speech = text.to(states), speech.to(states)
    exact = speech.double().requires_grad_()
    expected = (
        pooled(text, text_mask)
        @ torch.stack(
            [torch.nn.functional.normalize(row[m].mean(0), dim=0) for row, m in zip(exact, speech_mask, strict=True)]
        ).T
    )
    speech.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = contrastive.pooled_cosine(text, text_mask, speech, speech_mask)
        loss = contrastive.info_nce(similarity)
    assert similarity.dtype == loss.dtype == torch.float32
    assert (similarity - expected).abs().max() < 1e-6  # 4e-3 where the product is computed in bfloat16
    loss.backward()
    labels = torch.arange(4)
    torch.nn.functional.cross_entropy(expected / 0.1, labels).backward()
    tolerance = 1e-4 if states == torch.float32 else 5e-3  # the gradient has the type of the states
    assert (speech.grad.double() - exact.grad).norm() < tolerance * exact.grad.norm()


def test_every_loss_is_the_same_inside_and_outside():
    text, text_mask = clouds(0)
    speech, speech_mask = clouds(1)
    logits = torch.randn(6, 50)
    losses = {
        "mean_pool": lambda: contrastive.mean_pool(speech, speech_mask),
        "cosine": lambda: contrastive.cosine(text[:, 0], speech[:, 0]),
        "pooled_cosine": lambda: contrastive.pooled_cosine(text, text_mask, speech, speech_mask),
        "token_info_nce": lambda: contrastive.token_info_nce(text, text_mask, speech, speech_mask),
        "wasserstein": lambda: wasserstein_similarity(text, text_mask, speech, speech_mask),
        "kl": lambda: kl_divergence(logits, logits.flip(0)),
    }
    for name, loss in losses.items():
        outside = loss()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = loss()
        assert torch.equal(inside, outside), name


@pytest.mark.parametrize("objective", [Contrastive(), Contrastive(similarity="wasserstein", layers=[3])])
def test_an_objective_compares_states_of_half_precision_in_float32(objective, model, manifest, collate, monkeypatch):
    """The objective has no product of its own that autocast reaches: its similarity is that of its states."""
    batch = collate(model, manifest)
    seen = []
    states_of = model.llm.hidden_states

    def keep(*args, **options):
        seen.append(states_of(*args, **options))
        return seen[-1]

    monkeypatch.setattr(model.llm, "hidden_states", keep)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = objective(model, batch)
    speech, text = seen
    name, loss = next(iter(reversed(output.parts.items())))
    layer = int(name.partition("/")[2])
    similarity = contrastive.pooled_cosine if objective.similarity == "cosine" else wasserstein_similarity
    states = text.states[layer], text.mask, speech.states[layer], speech.mask
    assert torch.equal(contrastive.info_nce(similarity(*states)), loss)


def test_the_mixed_objective_needs_no_guard_of_its_own():
    values, mask = clouds(2)
    other, _ = clouds(3)
    for similarity in ("cosine", "wasserstein", "subword"):
        objective = MixedContrastive(similarity=similarity)
        outside = objective._loss(Padded(values, mask), Padded(other, mask))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(objective._loss(Padded(values, mask), Padded(other, mask)), outside)
