import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ossicle.align.aligner import MAX_MARGIN_S, Aligner, Alignment, Spelling, extents
from ossicle.align.files import align_manifest
from ossicle.batch import Sample, Skipped, Utterance
from ossicle.cli.main import app
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.data.words import WordTime, words_of
from ossicle.errors import AlignmentError, DataError
from places import ENCODER

needs_lab = pytest.mark.skipif(
    not (ENCODER / "model.safetensors").exists(), reason="the encoder is not built: make lab"
)


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random HubertForCTC that spells with a-z."""
    from transformers import HubertConfig, HubertForCTC

    from ossicle_lab.models.tiny_hubert import ctc_processor

    folder = tmp_path_factory.mktemp("ctc")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    norm = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    tokenizer = ctc_processor(folder).tokenizer
    config = HubertConfig(**sizes, **positions, **norm, conv_dim=(8,) * 7, vocab_size=len(tokenizer), pad_token_id=0)
    HubertForCTC(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def aligner(ctc_folder: Path) -> Aligner:
    return Aligner.load(str(ctc_folder))


def utterances(manifest: Path) -> list[Utterance]:
    items = list(map(SpeechDataset(read_manifest(manifest)).__getitem__, range(4)))
    return [item for item in items if isinstance(item, Utterance)]


def test_spelling() -> None:
    spelling = Spelling({"a": 1, "B": 2, "'": 3}, delimiter=4, wildcard=9)
    units = spelling.units("Ab, - b'a 27 28? a4th xé")
    assert [unit.words for unit in units] == [("Ab,",), ("b'a",), ("27", "28?"), ("a4th",), ("xé",)]
    assert [unit.labels for unit in units] == [(1, 2), (2, 3, 1), (9,), (1, 9), (9,)]
    labels, firsts = spelling.targets(units)
    assert labels.tolist() == [1, 2, 4, 2, 3, 1, 4, 9, 4, 1, 9, 4, 9] and firsts == [0, 3, 7, 9, 12]
    assert replace(spelling, delimiter=None).targets(units)[1] == [0, 2, 5, 6, 8]


def test_the_time_between_words_is_halved_but_a_pause_belongs_to_none() -> None:
    assert extents([(0.04, 0.2), (0.26, 0.4), (1.4, 1.5)], 1.52) == [
        pytest.approx((0.0, 0.23)),
        pytest.approx((0.23, 0.4 + MAX_MARGIN_S)),
        pytest.approx((1.4 - MAX_MARGIN_S, 1.52)),
    ]


def test_words_are_in_order_inside_the_utterance_and_the_same_alone_as_in_a_batch(
    aligner: Aligner, manifest: Path
) -> None:
    loaded = utterances(manifest)
    together = aligner.align(loaded)
    for utterance, found in zip(loaded, together, strict=True):
        assert isinstance(found, Alignment)
        assert [word.word for word in found.words] == (utterance.sample.text or "").split()
        edges = [time for word in found.words for time in (word.start_s, word.end_s)]
        assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= utterance.duration_s + 1e-9
        (alone,) = aligner.align([utterance])
        assert isinstance(alone, Alignment)
        assert alone.words == found.words and alone.score == pytest.approx(found.score, abs=1e-4)


def test_what_cannot_be_aligned_says_why(aligner: Aligner, manifest: Path) -> None:
    first, second = utterances(manifest)[:2]
    long = replace(first, sample=replace(first.sample, text="much too long " * 30))
    empty = replace(first, sample=replace(first.sample, text=" - "))
    results = aligner.align([long, second, empty])
    assert isinstance(results[0], Skipped) and "the text is not what is said" in results[0].reason
    assert isinstance(results[1], Alignment)
    assert isinstance(results[2], Skipped) and results[2].reason == "its text has no words"


def test_a_model_without_its_head_is_refused(ctc_folder: Path, tmp_path: Path) -> None:
    """transformers would initialise it at random."""
    folder = tmp_path / "headless"
    shutil.copytree(ctc_folder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "lm_head" not in name}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"--model .*headless: the files lack 2 weights .*lm_head\.bias"):
        Aligner.load(str(folder))


def test_a_model_that_cannot_align_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="'whisper' cannot align"):
        Aligner.load(str(folders["whisper"]))


def test_an_interrupted_call_continues(
    aligner: Aligner, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, heard = tmp_path / "out.jsonl", []
    samples = read_manifest(manifest)
    twin = replace(samples[0], id="twin")  # another task with the same speech
    write_manifest(tmp_path / "in.jsonl", [*samples, twin])
    whole = align_manifest(tmp_path / "in.jsonl", tmp_path / "whole.jsonl", aligner, batch_size=3)
    plain = Aligner.align

    def stops(self: Aligner, items: list[Utterance]) -> list[Alignment | Skipped]:
        if len(heard) >= 4:
            raise KeyboardInterrupt
        heard.extend(item.sample.id for item in items)
        return plain(self, items)

    monkeypatch.setattr(Aligner, "align", stops)
    with pytest.raises(KeyboardInterrupt):
        align_manifest(tmp_path / "in.jsonl", out, aligner, batch_size=2)
    assert not out.exists()
    monkeypatch.setattr(Aligner, "align", plain)
    report = align_manifest(tmp_path / "in.jsonl", out, aligner, batch_size=3)
    assert len(heard) == 4 and report.already_aligned in (4, 5)
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "whole.jsonl"]
    assert [sample.id for sample in report.samples] == [*(sample.id for sample in samples), "twin"]
    assert words_of(report.samples[-1]) == words_of(report.samples[0])
    assert whole.already_aligned == 0 and report.samples[0].extra["words_from"] == aligner.source
    assert align_manifest(tmp_path / "in.jsonl", out, aligner).already_aligned == 9


def test_broken_audio_and_wrong_texts_are_named_or_left_out(aligner: Aligner, manifest: Path, tmp_path: Path) -> None:
    good = read_manifest(manifest)[0]
    (tmp_path / "cut.wav").write_bytes(good.audio.read_bytes()[:3000])
    broken = Sample(id="cut", audio=tmp_path / "cut.wav", text="one", duration_s=good.duration_s)
    wrong = replace(good, id="wrong", text="not at all what is said " * 20)
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_manifest(source, [good, wrong])
    with pytest.raises(AlignmentError, match=r"in\.jsonl:2: 'wrong' .*text is not what is said.*--skip-broken"):
        align_manifest(source, out, aligner)
    write_manifest(source, [good, wrong, broken])
    with pytest.raises(DataError, match=r"in\.jsonl:3: 'cut' .*cut\.wav"):
        align_manifest(source, out, aligner, batch_size=1)
    report = align_manifest(source, out, aligner, skip_broken=True)
    assert [sample.id for sample in report.samples] == [good.id]
    assert {item.sample.id for item in report.skipped} == {"cut", "wrong"}
    assert "2 utterances left out" in report.summary()
    with pytest.raises(ValueError, match="is the manifest itself"):
        align_manifest(source, source, aligner)


def test_command(ctc_folder: Path, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = CliRunner().invoke(app, ["align", str(manifest), "--out", str(out), "--model", str(ctc_folder)])
    assert result.exit_code == 0, result.output
    assert "8 utterances" in result.stdout and "0 of them interpolated" in result.stdout
    assert all(words_of(sample) for sample in read_manifest(out))


@pytest.fixture(scope="module")
def lab() -> Aligner:
    return Aligner.load()


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 utterances in held-out voices, with the word times of espeak-ng."""
    pytest.importorskip("espeakng_loader", reason="needs pip install espeakng-loader")
    from ossicle.corpora.voices import held_out_voices
    from ossicle_lab.world.passages import sample_passages
    from ossicle_lab.world.synthesise import synthesise

    texts = [passage.text for passage in sample_passages("test", 40, seed=11, max_sentences=2)]
    items = [{"id": f"t{i}", "text": text} for i, text in enumerate(texts)]
    return synthesise(items, tmp_path_factory.mktemp("spoken"), voices=held_out_voices(), seed=9, progress=False)


def boundary_errors_ms(found: list[WordTime], true: list[WordTime]) -> list[float]:
    """Return the errors of the starts of all words but the first, which starts with the utterance."""
    return [1000 * (f.start_s - t.start_s) for f, t in zip(found[1:], true[1:], strict=True)]


@needs_lab
def test_words_are_where_espeak_says_they_are(lab: Aligner, spoken: Path, tmp_path: Path) -> None:
    report = align_manifest(spoken, tmp_path / "out.jsonl", lab)
    pairs = zip(report.samples, read_manifest(spoken), strict=True)
    errors = np.array([error for a, b in pairs for error in boundary_errors_ms(words_of(a), words_of(b))])
    median, mean, late = np.median(np.abs(errors)), np.abs(errors).mean(), np.percentile(np.abs(errors), 90)
    print(
        f"\nword boundaries against espeak-ng's: median {median:.1f} ms, mean {mean:.1f} ms, 90th percentile "
        f"{late:.1f} ms, bias {np.median(errors):+.1f} ms, {len(errors)} boundaries"
    )
    print(report.summary())
    assert median <= 40 and mean <= 40 and abs(np.median(errors)) <= 15


@needs_lab
def test_a_word_that_cannot_be_spelled_is_found_between_its_neighbours(
    lab: Aligner, spoken: Path, tmp_path: Path
) -> None:
    rng, hidden, samples = random.Random(0), {}, []
    for sample in read_manifest(spoken)[:16]:
        words = (sample.text or "").split()
        hidden[sample.id] = at = rng.randrange(1, len(words) - 2)
        text = " ".join([*words[:at], "27", "§4", *words[at + 2 :]])
        samples.append(replace(sample, text=text))
    write_manifest(tmp_path / "in.jsonl", samples)
    report = align_manifest(tmp_path / "in.jsonl", tmp_path / "out.jsonl", lab)
    errors = []
    for found, true in zip(report.samples, samples, strict=True):
        at, words, truth = hidden[found.id], words_of(found), words_of(true)
        assert [i for i, word in enumerate(words) if not word.aligned] == [at, at + 1]
        errors += [words[at].start_s - truth[at].start_s, words[at + 2].start_s - truth[at + 2].start_s]
    median_ms = 1000 * np.median(np.abs(errors))
    print(f"\nedges of words outside the vocabulary: median error {median_ms:.1f} ms")
    assert median_ms <= 60


@needs_lab
def test_a_wrong_text_scores_lower(lab: Aligner, spoken: Path, tmp_path: Path) -> None:
    samples = read_manifest(spoken)[:8]
    texts = [sample.text for sample in samples]
    for name, order in (("right", texts), ("wrong", texts[::-1])):
        lines = [replace(sample, text=text) for sample, text in zip(samples, order, strict=True)]
        write_manifest(tmp_path / f"{name}.jsonl", lines)
    right, wrong = (
        align_manifest(tmp_path / f"{name}.jsonl", tmp_path / f"{name}-out.jsonl", lab, skip_broken=True)
        for name in ("right", "wrong")
    )
    worst = min(sample.extra["words_score"] for sample in right.samples)
    assert all(sample.extra["words_score"] < worst for sample in wrong.samples)
