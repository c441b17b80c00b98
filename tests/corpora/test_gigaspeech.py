import json
from pathlib import Path

import pytest
from miniatures import text, tone

from ossicle.corpora import disk
from ossicle.corpora.gigaspeech import plain_text
from ossicle.corpora.items import Dropped


def segment(number: int, begin_s: float, end_s: float, words: str, *subsets: str) -> dict:
    return {
        "sid": f"AUD1_S{number:07d}",
        "speaker": "N/A",
        "begin_time": begin_s,
        "end_time": end_s,
        "text_tn": words,
        "subsets": [f"{{{name}}}" for name in subsets],
    }


def audio(path: str, segments: list[dict], **more: object) -> dict:
    return {
        "title": 'A "talk", [part 1]',
        "path": path,
        "aid": Path(path).stem,
        "source": "podcast",
        "sample_rate": 16000,
        "subsets": ["{XL}", "{M}"],
        "segments": segments,
        **more,
    }


@pytest.fixture
def giga(tmp_path: Path) -> Path:
    root = tmp_path / "giga"
    long = tone(root / "audio/podcast/P0001/AUD1.opus", 6.0)
    tone(long.with_name("AUD2.opus"), 2.0)
    audios = [
        audio(
            "audio/podcast/P0001/AUD1.opus",
            [
                segment(1, 0.5, 2.5, "AND <COMMA> SO ON <PERIOD>", "XL", "L", "M", "S", "XS"),
                segment(2, 2.5, 4.0, "WHY <QUESTIONMARK>", "XL", "L", "M"),
                segment(3, 4.0, 5.0, "<MUSIC>", "XL", "L", "M"),
                segment(4, 5.0, 6.0, "ONLY THE LARGEST", "XL"),
            ],
        ),
        audio("audio/podcast/P0001/AUD2.opus", [segment(9, 0.0, 2.0, "STOP <EXCLAMATIONPOINT>", "DEV")]),
    ]
    text(root / "GigaSpeech.json", json.dumps({"dataset": "GigaSpeech", "version": "v1.0.0", "audios": audios}))
    return root


def test_each_subset_has_its_segments_with_punctuation(giga, prepared):
    lines, report = prepared("gigaspeech", giga)
    assert lines.keys() == {"M", "DEV", "dropped"}
    assert lines["M"][0] == {
        "id": "AUD1_S0000001",
        "audio": str(giga / "audio/podcast/P0001/AUD1.opus"),
        "text": "AND, SO ON.",
        "language": "en",
        "task": "asr",
        "duration_s": 2.0,
        "start_s": 0.5,
        "end_s": 2.5,
        "domain": "podcast",
    }
    assert [line["text"] for line in lines["M"]] == ["AND, SO ON.", "WHY?"]
    assert [line["text"] for line in lines["DEV"]] == ["STOP!"]
    assert lines["dropped"] == [{"id": "AUD1_S0000003", "reason": "no speech", "detail": "<MUSIC>"}]
    assert report.manifests["M"].speech_s == 3.5


def test_a_smaller_subset_is_part_of_a_larger_one(giga, prepared):
    lines, _ = prepared("gigaspeech", giga, subsets=("XS", "XL"), lower=True)
    assert [line["text"] for line in lines["XS"]] == ["and, so on."]
    assert [line["text"] for line in lines["XL"]] == ["and, so on.", "why?", "only the largest"]


def test_tags():
    assert plain_text("<COMMA> WELL <COMMA> <SIL> YES <EXCLAMATIONPOINT>") == "WELL, YES!"
    assert plain_text("<NOISE>") == Dropped("", "no speech", "<NOISE>")
    assert plain_text("A <FOO> B") == Dropped("", "unknown tag", "<FOO>")


def test_the_index_is_read_in_pieces(giga, prepared, monkeypatch):
    monkeypatch.setattr(disk, "CHUNK_CHARACTERS", 64)  # shorter than a recording
    assert [line["text"] for line in prepared("gigaspeech", giga)[0]["M"]] == ["AND, SO ON.", "WHY?"]


def test_only_the_recordings_asked_for_are_parsed(tmp_path):
    path = text(tmp_path / "index.json", '{"audios": [{"aid": 1}, {"aid": 2}, broken')
    assert next(disk.read_json_array(path, "audios"))[0] == {"aid": 1}


def test_another_folder_or_a_broken_index_is_refused(giga, refused):
    index = giga / "GigaSpeech.json"
    content = index.read_text()
    index.write_text(content[:-40])
    assert 'GigaSpeech.json: is cut off within "audios"' in refused("gigaspeech", giga)
    index.write_text(content.replace('"sid"', '"id"'))
    assert "GigaSpeech.json: recording 1 (AUD1): has no field 'sid'" in refused("gigaspeech", giga)
    index.write_text('{"words": []}')
    assert 'has no array "audios" near its start' in refused("gigaspeech", giga)
    assert "has no subset 'HUGE'; choose from XS, S, M, L, XL, DEV, TEST" in refused(
        "gigaspeech", giga, subsets=("HUGE",)
    )
    index.unlink()
    assert "GigaSpeech.json: there is no such file; expected GigaSpeech.json and audio/" in refused("gigaspeech", giga)


def test_missing_audio_is_left_out_with_its_name(giga, prepared):
    (giga / "audio/podcast/P0001/AUD2.opus").unlink()
    lines, report = prepared("gigaspeech", giga)
    assert "DEV" not in lines
    assert report.dropped["no such audio file"].count == 1
    assert report.dropped["no such audio file"].first.endswith("AUD2.opus: there is no such file")
