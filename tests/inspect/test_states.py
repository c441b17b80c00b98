import torch

from ossicle.inspect.states import encoded


def test_frames_of_an_encoder_in_half_precision_fit_the_projector(model, collate, manifest):
    batch = collate(model, manifest)
    [exact] = encoded(model, [batch])
    model.encoder.model.bfloat16()
    [half] = encoded(model, [batch])
    model.encoder.model.float()
    assert half.waveforms is None
    assert half.frames.values.dtype == torch.float32
    assert torch.equal(half.frames.mask, exact.frames.mask)
    assert torch.allclose(half.frames.values, exact.frames.values, atol=0.1)
    assert model.speech(half).values.isfinite().all()
