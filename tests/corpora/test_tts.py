import json
import pickle
import sys
from pathlib import Path

import pytest

from ossicle.audio import read_audio
from ossicle.batch import Sample
from ossicle.corpora import writer
from ossicle.corpora.items import Recording
from ossicle.corpora.tts import TtsOptions, prepare_tts
from ossicle.corpora.tts_engines import CommandMaker, EspeakMaker, espeak_voices, fill
from ossicle.data.manifest import read_manifest
from ossicle.data.words import words_of
from ossicle.errors import CorpusError

SPEAK = """
import sys, numpy, soundfile
text, out, voice = sys.stdin.read(), sys.argv[2], sys.argv[3]
assert open(sys.argv[1], encoding="utf-8").read() == text + "\\n"
if "impossible" in text:
    sys.exit("cannot say that")
soundfile.write(out, numpy.full(len(text) * 100, 0.1), 8000)
"""


@pytest.fixture
def command(tmp_path: Path) -> str:
    """A command that speaks 0.0125 s per letter, and fails on one word."""
    (tmp_path / "speak.py").write_text(SPEAK)
    return f"{sys.executable} {tmp_path / 'speak.py'} {{text_file}} {{out}} {{voice}}"


def jsonl(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_parallel_text_is_spoken_once_for_all_its_translations(tmp_path):
    pytest.importorskip("espeakng_loader")
    texts = jsonl(
        tmp_path / "pairs.jsonl",
        {"id": "p/1", "en": "The red car.", "de": "Das rote Auto.", "fr": "La voiture rouge.", "gender": "x"},
        {"id": "p2", "en": "Stop  now!", "de": "Halt jetzt!", "fr": ""},
        {"id": "p3", "en": " ", "de": "Nichts."},
    )
    report = prepare_tts(texts, tmp_path / "out", show=False)
    speech, german, french = (read_manifest(tmp_path / f"out/pairs{kind}.jsonl") for kind in ("", ".st-de", ".st-fr"))
    assert [(line.id, line.text, line.task, line.language) for line in speech] == [
        ("p/1", "The red car.", "asr", "en"),
        ("p2", "Stop now!", "asr", "en"),
    ]
    assert [(line.id, line.answers, line.target_language) for line in german] == [
        ("p/1-de", ("Das rote Auto.",), "de"),
        ("p2-de", ("Halt jetzt!",), "de"),
    ]
    assert [line.id for line in french] == ["p/1-fr"]
    assert french[0].audio == speech[0].audio == tmp_path / "out/audio/p_1.wav"
    assert [word.word for word in words_of(speech[0])] == ["The", "red", "car."]
    assert len(read_audio(speech[0].audio)) / 16_000 == pytest.approx(speech[0].duration_s, abs=1e-4)
    assert speech[0].speaker in {voice.name for voice in espeak_voices("en", "train")}
    assert report.dropped["no text"].first == "p3"
    again = prepare_tts(texts, tmp_path / "again", show=False)
    assert again.manifests == report.manifests
    assert (tmp_path / "again/audio/p2.wav").read_bytes() == (tmp_path / "out/audio/p2.wav").read_bytes()


def test_questions_about_a_passage_share_its_audio(tmp_path, command):
    passage = {"context": "Rome fell in 476.", "language": "en", "title": "Rome"}
    texts = jsonl(
        tmp_path / "qa.jsonl",
        passage | {"id": "a", "question": "What fell?", "answer": "Rome", "answers": ["Rome", "the city"]},
        passage | {"id": "b", "question": "When?", "answers": ["476"]},
        {"context": "Cats sleep.", "id": "c", "question": "Who sleeps?", "answers": [{"text": "cats"}]},
    )
    options = TtsOptions(command=command, voices=("anna",), lower=True)
    report = prepare_tts(texts, tmp_path / "out", options, show=False)
    lines = [json.loads(line) for line in (tmp_path / "out/qa.qa.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "id": "a-qa",
        "audio": "audio/a.wav",
        "text": "rome fell in 476.",
        "language": "en",
        "speaker": "anna",
        "task": "qa",
        "instruction": "What fell?",
        "duration_s": 0.2125,  # 17 letters
        "answers": ["Rome", "the city"],
    }
    assert [(line["id"], line["audio"]) for line in lines[1:]] == [("b-qa", "audio/a.wav"), ("c-qa", "audio/c.wav")]
    assert (report.manifests["qa"].lines, report.manifests["qa.qa"].recordings) == (2, 2)


def test_squad_json(tmp_path, command):
    paragraph = {"context": "Rome fell.", "qas": [{"id": "q", "question": "What?", "answers": [{"text": "Rome"}]}]}
    texts = tmp_path / "dev.json"
    texts.write_text(json.dumps({"data": [{"paragraphs": [paragraph, {"context": "Cats.", "qas": []}]}]}))
    prepare_tts(texts, tmp_path / "out", TtsOptions(command=command, voices=("a",)), show=False)
    assert [line.id for line in read_manifest(tmp_path / "out/dev.jsonl")] == ["dev-0_0", "dev-0_1"]
    assert [line.id for line in read_manifest(tmp_path / "out/dev.qa.jsonl")] == ["q-qa"]


def test_plain_text_with_an_utterance_that_fails(tmp_path, command):
    texts = tmp_path / "lines.txt"
    texts.write_text("Hello.\n\nAn impossible word.\nBye.\nNever read.\n", encoding="utf-8")
    options = TtsOptions(command=command, voices=("a", "b"), limit=3)
    report = prepare_tts(texts, tmp_path / "out", options, show=False)
    assert [line.id for line in read_manifest(tmp_path / "out/lines.jsonl")] == ["lines-000001", "lines-000004"]
    assert report.dropped["audio cannot be made"].first.endswith("failed with exit code 1: cannot say that")
    assert not list((tmp_path / "out/audio").glob(".*"))
    assert prepare_tts(texts, tmp_path / "out", options, show=False).already_done


def test_an_interrupted_call_resumes(tmp_path, command, monkeypatch):
    texts = tmp_path / "lines.txt"
    texts.write_text("".join(f"Line {i}.\n" for i in range(300)), encoding="utf-8")
    spoken: list[str] = []
    kill = [True]

    def speak(self: CommandMaker, path: Path) -> dict:
        if self.text == "Line 250." and kill:
            raise KeyboardInterrupt
        spoken.append(self.text)
        path.write_bytes((tmp_path / "one.wav").read_bytes())
        return {}

    CommandMaker(command, "one", "a", "en")(tmp_path / "one.wav")
    monkeypatch.setattr(CommandMaker, "__call__", speak)
    options = TtsOptions(command=command, voices=("a",))
    with pytest.raises(KeyboardInterrupt):
        prepare_tts(texts, tmp_path / "out", options, jobs=1, show=False)
    spoken.clear()
    kill.clear()
    prepare_tts(texts, tmp_path / "out", options, jobs=1, show=False)
    assert spoken == [f"Line {i}." for i in range(250, 300)]
    assert len(read_manifest(tmp_path / "out/lines.jsonl")) == 300


def test_the_work_is_picklable(tmp_path):
    pytest.importorskip("espeakng_loader")
    voice = espeak_voices("de", "test")[0]
    line = Sample(id="a", audio=Path("audio/a.wav"), text="Guten Tag.")
    recording = Recording((("lines", line), ("lines.qa", line)), EspeakMaker("Guten Tag.", voice, 0))
    worker, recording = pickle.loads(pickle.dumps((writer.Worker(tmp_path, writer.Limits()), recording)))
    (_, first), (_, second) = worker(recording).lines
    assert (tmp_path / "audio/a.wav").is_file()
    assert [word.word for word in words_of(first)] == ["Guten", "Tag."]
    assert first.extra["gender"] == "female"
    assert second.extra == {}  # the first line has it


def test_every_language_has_voices():
    assert [voice.name for voice in espeak_voices("de", "test")][:2] == ["de+f3", "de+Andrea"]
    assert {voice.accent for voice in espeak_voices("zh", "train")} == {"cmn"}
    train, test = ({voice.variant for voice in espeak_voices("fr", kind)} for kind in ("train", "test"))
    assert not train & test


def test_only_known_placeholders_are_replaced():
    values = {"text": "a 'b' {out}", "out": "x.wav"}
    assert fill("say '{a}' {text} -o {out}", values) == ["say", "{a}", "a 'b' {out}", "-o", "x.wav"]
    assert fill("say {text}", {"text": "two words"}) == ["say", "two words"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "there is no such file; expected one text per line"),
        ("{\n", {}, "texts.jsonl:1: is not JSON"),
        ("[]\n", {}, "texts.jsonl:1: is not a JSON object; expected"),
        ('{"id": "a", "de": "Hallo"}\n', {}, "'a' has no text in 'en'; its keys are id, de"),
        ("{}\n", {"command": "no-such-program {out}"}, "there is no program 'no-such-program'"),
        ("{}\n", {"command": "'say {out}"}, "is no command (No closing quotation); close the quotation"),
        ("{}\n", {"command": "cat {text_file}"}, "has no {out}; write {out}"),
        ("{}\n", {"command": "cat {voice} {out}"}, "has {voice}; name the voices with --voice"),
    ],
)
def test_invalid_texts_and_commands_are_refused(tmp_path, content, options, message):
    texts = tmp_path / "texts.jsonl"
    if content is not None:
        texts.write_text(content)
    with pytest.raises(CorpusError) as caught:
        prepare_tts(texts, tmp_path / "out", TtsOptions(**{"command": "cat {out}", **options}), show=False)
    assert message in str(caught.value)
