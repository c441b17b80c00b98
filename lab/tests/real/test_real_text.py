from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossicle.data.manifest import read_manifest
from ossicle.errors import ConfigError
from ossicle.prompts import ASR_INSTRUCTIONS
from ossicle_lab.models.ctc import save_encoder
from ossicle_lab.models.tiny_hubert import tiny_hubert
from ossicle_lab.models.tokenizer import train_tokenizer
from ossicle_lab.real.text import Scale, run
from ossicle_lab.real.text_corpus import TextCorpus
from ossicle_lab.real.text_llm import Item, Items, _Batches, rate_share, training_items
from ossicle_lab.real.texts import (
    LANGUAGES,
    Passage,
    Question,
    Sentence,
    Texts,
    TextSizes,
    read_passages,
    read_texts,
    sentence_at,
)
from places import SHARED

REAL = SHARED / "data" / "text"
needs_texts = pytest.mark.skipif(not (REAL / "parallel").is_dir(), reason=f"no real text in {REAL}")
FEW = TextSizes(multi30k=3, tatoeba=2, passages=3, test_multi30k=3, test_tatoeba=2, test_articles=2, test_passages=2)
TINY = Scale(
    sizes=FEW,
    llm_steps=2,
    llm_rows=3,
    study=("stage1.steps=2", "finetuning.steps={1.0: 2}", "max_new_tokens=3"),
)
CONTEXT = "It rained. Ann won 6 gold medals in Rome! She left."


def write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def asked(number: int, article: str, question: str, answer: str) -> dict[str, object]:
    where = CONTEXT.index(answer)
    about = {"title": article, "context": CONTEXT, "answer_start": where}
    return {"id": f"xquad-{number}", "question": question, "answer": answer, "answers": [answer], **about}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a folder of texts in which test sentences are also in the training parts, in other spellings."""
    folder = tmp_path / "texts"
    for split, words in (("train", "red green"), ("val", "white"), ("test2016", "blue")):
        lines = [
            {"id": f"multi30k-{split}-{w}", "en": f"A {w} Dog.", "de": f"hund {w}", "fr": w} for w in words.split()
        ]
        write_lines(folder / f"parallel/multi30k_en-de-fr-cs.{split}.jsonl", lines)
    for code in LANGUAGES:
        texts = [
            ("A blue dog!", "x"),
            ("He saw it.", f"Hund green, {code}."),
            ("It is 7 now.", "y"),
            ("He saw it", "z"),
        ]
        lines = [{"id": f"tatoeba-{code}-{i}", "en": en, code: other} for i, (en, other) in enumerate(texts)]
        write_lines(folder / f"parallel/tatoeba_en-{code}.jsonl", lines)
    questions = [asked(i, f"Article {i % 3}", f"Who won? {i}", "Ann") for i in range(6)]
    write_lines(folder / "qa/xquad_en.jsonl", questions)
    write_lines(folder / "qa/spoken_squad_test.jsonl", questions)
    return folder


def test_sentence_with_the_answer() -> None:
    assert sentence_at(CONTEXT, 0) == "It rained."
    assert sentence_at(CONTEXT, CONTEXT.index("Rome")) == "Ann won 6 gold medals in Rome!"
    assert sentence_at(CONTEXT, CONTEXT.index("left")) == "She left."


def test_passages_hold_their_answers(tmp_path: Path) -> None:
    lines = [
        asked(0, "Ann", "Where did Ann win?", "Rome"),
        asked(1, "Ann", "How many?", "6 gold medals") | {"answers": ["6 gold medals", "gold", "It rained"]},
        asked(2, "Ann", "Where did Ann win", "Rome"),
        asked(3, "Ann", "What did she do?", "left"),
        asked(4, "Ann", "???", "left"),
        asked(5, "Ann", "What fell?", "rain"),
    ]
    write_lines(tmp_path / "qa.jsonl", lines)
    found = read_passages(tmp_path / "qa.jsonl", replace(FEW, passage_words=7))
    where = Question("xquad-0", "where did ann win", ("rome",))
    how_many = Question("xquad-1", "how many", ("6 gold medals", "gold"))
    left = Question("xquad-3", "what did she do", ("left",))
    medals = Passage("Ann", "ann won 6 gold medals in rome", [where, how_many])
    assert found == [medals, Passage("Ann", "she left", [left])]
    assert [p.text for p in read_passages(tmp_path / "qa.jsonl", replace(FEW, passage_words=6))] == ["she left"]


def test_what_is_tested_is_not_in_training(source: Path) -> None:
    sizes = replace(FEW, test_multi30k=1, test_tatoeba=0, test_articles=1)
    texts = read_texts(source, sizes)
    assert [s.text for s in texts.test_multi30k] == ["a blue dog"]
    assert sorted(s.text for s in texts.multi30k) == ["a green dog", "a red dog", "a white dog"]
    for code, part in texts.tatoeba.items():
        assert part == [Sentence(f"tatoeba-{code}-1", "he saw it", {code: f"Hund green, {code}."})]
    articles = {passage.article for passage in texts.test_passages}
    assert len(articles) == 1
    for trained in (texts.passages, texts.heard):
        assert {p.article for p in trained} == {"Article 0", "Article 1", "Article 2"} - articles


def test_a_translation_that_is_tested_is_left_out(source: Path) -> None:
    write_lines(
        source / "parallel/multi30k_en-de-fr-cs.train.jsonl",
        [
            {"id": "multi30k-1", "en": "The blue hound.", "de": "Hund, BLUE!", "fr": "le chien"},
            {"id": "multi30k-2", "en": "The grey hound.", "de": "Hund grey", "fr": "le chien gris"},
        ],
    )
    texts = read_texts(source, replace(FEW, test_multi30k=1, test_tatoeba=0, test_articles=1))
    assert [s.id for s in texts.multi30k] == ["multi30k-2", "multi30k-val-white"]


def test_folder_without_a_corpus(source: Path) -> None:
    with pytest.raises(ValueError, match="Multi30k has 1 sentences that can be spoken; 3 were asked for"):
        read_texts(source, FEW)
    with pytest.raises(ValueError, match="3 articles are too few to test on 3"):
        read_texts(source, replace(FEW, test_multi30k=1, test_tatoeba=1, test_articles=3))
    (source / "qa/xquad_en.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(ValueError, match=r"xquad_en.jsonl:1: has no 'title'"):
        read_passages(source / "qa/xquad_en.jsonl", FEW)
    (source / "parallel/tatoeba_en-es.jsonl").unlink()
    with pytest.raises(ValueError, match=r"tatoeba_en-es.jsonl: there is no such file; give the folder"):
        read_texts(source, replace(FEW, test_multi30k=1))


@needs_texts
def test_real_texts_keep_the_promise() -> None:
    texts = read_texts(REAL, TextSizes())
    assert (len(texts.test_multi30k), len(texts.test_tatoeba)) == (200, 300)
    assert len(texts.train_sentences) > 50_000
    assert not {s.text for s in texts.train_sentences} & {s.text for s in texts.test_sentences}
    tested = {passage.article for passage in texts.test_passages}
    assert not tested & {passage.article for passage in (*texts.passages, *texts.heard)}


def test_an_item_has_every_translation_of_a_sentence() -> None:
    german, french = (Sentence(code, "he saw it", {code: f"in {code}"}) for code in ("de", "fr"))
    passage = Passage("Ann", "ann left", [Question("1", "who left", ("ann", "she"))])
    texts = Texts([german], {"fr": [french]}, [passage], [], [], [], [])
    translations = (("Translate the speech to German.", "in de"), ("Translate the speech to French.", "in fr"))
    items = training_items(texts)
    assert items.sentences == [Item("he saw it", translations)]
    assert items.passages == [Item("ann left", (("who left", "ann"),))]
    told = ["he saw it", *(part for pair in translations for part in pair), "ann left", "who left", "ann"]
    assert list(items.written) == told


def test_rows_are_chats_of_the_template() -> None:
    item = Item("he saw it", (("Translate the speech to German.", "Er sah's, Hans."),))
    tokenizer = train_tokenizer([item.text, *item.tasks[0], *ASR_INSTRUCTIONS], 300)
    batches = _Batches(Items([item], [item]), tokenizer, 2, seed=0)
    rows = [batch for batch, _ in zip(batches.starting_at(0), range(8), strict=False)]
    chats = [
        [{"role": "user", "content": f"{item.text} {instruction}"}, {"role": "assistant", "content": answer}]
        for instruction, answer in (item.tasks[0], *((i, item.text) for i in ASR_INSTRUCTIONS))
    ]
    expected = [tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"] for chat in chats]
    seen = []
    for batch in rows:
        for ids, visible, positions in zip(batch.ids, batch.visible, batch.positions, strict=True):
            for last in range(len(ids)):  # the last token of a branch sees exactly its chat
                chat = ids[visible[last]].tolist()
                if visible[:, last].sum() == 1 and chat in expected:
                    assert positions[visible[last]].tolist() == list(range(len(chat)))
                    seen.append(chat)
    assert expected[0] in seen
    assert len({tuple(chat) for chat in seen}) > 1
    later = next(batches.starting_at(5))
    assert torch.equal(later.ids, rows[5].ids), "a continued run must see the same batches"


def test_learning_rate_rises_stays_and_falls() -> None:
    assert [rate_share(step, 8) for step in (0, 4, 5, 6, 7)] == [1.0, 1.0, 0.75, 0.5, 0.25]
    assert rate_share(0, 600) == pytest.approx(1 / 61)


@needs_texts
def test_whole_run_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader", reason='needs pip install "ossicle[tts]"')
    torch.manual_seed(0)
    save_encoder(tiny_hubert(), tmp_path / "weights" / "encoder")
    monkeypatch.setattr("ossicle_lab.models.weights", lambda part: str(tmp_path / "weights" / part))
    source, out = a_part(REAL, tmp_path / "texts"), tmp_path / "out"

    record = run(source, out, scale=TINY, processes=0)

    assert record == json.loads((out / "study/results.json").read_text())
    assert record["cells"] == {"done": 2, "of": 2}
    assert [row["name"] for row in record["rows"]] == ["both", "stage2"]
    assert record["columns"][:6] == ["asr:wer", "st/de:bleu", "st/fr:bleu", "st/es:bleu", "qa:f1", "qa:em"]
    assert record["bound"] is not None
    assert set(record["alignment"]) == {"both"}
    assert json.loads((out / "parts.json").read_text())["encoder"].keys() == {"wer", "wer_utterance_mean"}
    corpus = TextCorpus(out / "data")
    voices = [{s.speaker for s in read_manifest(path)} for path in (*corpus.transcripts, corpus.test)]
    assert not set.union(*voices[:-1]) & voices[-1], "test voices must be unseen"
    questions = [s for s in read_manifest(corpus.test) if s.task == "qa"]
    assert all(s.text and any(f" {a} " in f" {s.text} " for a in s.answers) for s in questions)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert len([path for path in times if path.name == "projector.safetensors"]) == 3

    again = run(source, out, scale=TINY, processes=0)

    assert {path: path.stat().st_mtime_ns for path in times} == times, "a finished part was run again"
    assert again["rows"] == record["rows"]
    with pytest.raises(ConfigError, match="holds a run of another size"):
        run(source, out, scale=replace(TINY, llm_steps=3), processes=0)


def a_part(texts: Path, folder: Path) -> Path:
    """Copy fifty lines of every file, spread evenly: the first ones of XQuAD are about one article."""
    for path in (*texts.glob("parallel/*.jsonl"), *texts.glob("qa/*.jsonl")):
        part = folder / path.relative_to(texts)
        part.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        part.write_text("".join(lines[::20][:50]), encoding="utf-8")
    return folder
