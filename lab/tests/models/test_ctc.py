from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, HubertForCTC

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Sample
from ossicle_lab.models import ctc
from ossicle_lab.models.ctc import CTCTraining, Phase, recognise, save_encoder, train_ctc
from ossicle_lab.models.tiny_hubert import ctc_processor, tiny_hubert

SETTINGS = CTCTraining(phases=(Phase(steps=3, max_duration_s=1.0, batch_s=2.0),), checkpoint_every_s=0.0)


def tone(hz: float, duration_s: float) -> np.ndarray:
    times_s = np.arange(int(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (0.5 * np.sin(2 * np.pi * hz * times_s)).astype(np.float32)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for index in range(6):
        path, duration_s = tmp_path / f"{index}.wav", 0.4 + 0.1 * index
        soundfile.write(path, tone(300 + 200 * index, duration_s), SAMPLE_RATE_HZ)
        made.append(Sample(id=str(index), audio=path, text="abcdef"[index], duration_s=duration_s))
    return made


def test_frames_are_those_of_the_usual_front_end() -> None:
    samples = torch.tensor([399, 400, 719, 720, 16_000, 54_321])
    assert tiny_hubert()._get_feat_extract_output_lengths(samples).tolist() == ((samples - 400) // 320 + 1).tolist()


def test_an_utterance_is_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = tiny_hubert().eval(), ctc_processor(tmp_path)
    waveforms = [tone(500, 0.5), tone(700, 1.3), tone(900, 0.8)]
    with torch.inference_mode():
        together = model(**ctc._inputs(processor, waveforms)).logits
        for row, waveform in zip(together, waveforms, strict=True):
            alone = model(**ctc._inputs(processor, [waveform])).logits[0]
            torch.testing.assert_close(row[: len(alone)], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("hz", [150, 600, 2500, 6000])
def test_the_first_layer_starts_as_a_filter_bank(hz: float) -> None:
    filters = tiny_hubert().hubert.feature_extractor.conv_layers[0].conv
    with torch.inference_mode():
        rectified = filters(torch.from_numpy(tone(hz, 0.2))[None, None])[0, : 4 * 76].relu()
    envelope = rectified.unflatten(0, (4, 76)).sum(0).mean(-1)  # (bands,)
    mel, lowest, highest = (np.log(1 + value / 700) for value in (hz, 90, 7500))
    assert envelope.argmax().item() == pytest.approx(75 * (mel - lowest) / (highest - lowest), abs=3)


def test_a_stopped_training_continues_the_same(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_ctc(samples, samples, tmp_path / "whole", settings=SETTINGS)
    loss, calls = ctc._loss, []

    def stopping_loss(*args: object) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ctc, "_loss", stopping_loss)
        with pytest.raises(KeyboardInterrupt):
            train_ctc(samples, samples, tmp_path / "stopped", settings=SETTINGS)
    continued = train_ctc(samples, samples, tmp_path / "stopped", settings=SETTINGS)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, continued.get_parameter(name)), name


def test_batches_hold_like_durations_and_no_more_than_asked(samples: list[Sample]) -> None:
    batches = list(ctc._batches(samples, SETTINGS))
    assert len(batches) == SETTINGS.steps
    for batch in batches:
        assert len(batch) * max(sample.duration_s or 0.0 for sample in batch) <= 2.0 * 1.25  # sorting is jittered
    again = list(ctc._batches(samples, SETTINGS))
    assert batches == again


def test_no_short_utterance_is_an_error(samples: list[Sample]) -> None:
    settings = CTCTraining(phases=(Phase(steps=1, max_duration_s=0.1, batch_s=2.0),))
    with pytest.raises(ValueError, match=r"raise Phase\.max_duration_s"):
        next(ctc._batches(samples, settings))


def test_transcripts_keep_the_order_of_the_waveforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    class Processor:
        def __init__(self) -> None:
            self._real = ctc_processor(tmp_path)

        def __call__(self, waveforms: Sequence[np.ndarray], **options: object) -> object:
            lengths.extend(len(waveform) for waveform in waveforms)
            return self._real(waveforms, **options)

        def batch_decode(self, ids: torch.Tensor) -> list[str]:
            return [str(length) for length in lengths[-len(ids) :]]

    waveforms = [tone(400, duration_s) for duration_s in (0.9, 0.3, 0.5, 0.2)]
    heard = recognise(tiny_hubert(), Processor(), waveforms)  # type: ignore[arg-type]
    assert heard == [str(len(waveform)) for waveform in waveforms]


def test_saved_encoder_loads_through_the_usual_classes(tmp_path: Path) -> None:
    model = save_encoder(tiny_hubert(), tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.model_type == "hubert"
    assert isinstance(HubertForCTC.from_pretrained(tmp_path), HubertForCTC)
    assert AutoFeatureExtractor.from_pretrained(tmp_path).return_attention_mask
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer("anna saw é").input_ids == [4, 17, 17, 4, 2, 22, 4, 26, 2, 1]
    assert (tmp_path / "model.safetensors").stat().st_size < 6e6
    assert model.dtype == torch.float32
