"""The commands on the pages in recipes/ work one after the other, on miniature corpora.

`ossicle prepare` runs. For other commands, the inputs must exist: recipes, manifests that an earlier command wrote, and
runs that an earlier command trained. Options must exist, and overrides must be valid.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.main import get_command

from ossicle.cli.main import app
from ossicle.corpora.mls_descriptions import ATTRIBUTES
from ossicle.train.recipe import load
from places import CORE_RECIPES

PAGES = sorted(page for page in CORE_RECIPES.glob("*/README.md") if any(page.parent.glob("*.yaml")))
RATE_HZ = 16_000


def tone(path: Path, seconds: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)
    soundfile.write(path, wave.astype(np.float32), RATE_HZ)
    return path


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def make_mustc(root: Path) -> None:
    for target in ("de", "es", "fr", "it", "nl"):
        for split in ("train", "tst-COMMON"):
            folder = root / f"en-{target}/data/{split}"
            tone(folder / "wav/ted_1.wav")
            text(folder / f"txt/{split}.yaml", "- {duration: 1.5, offset: 0.2, speaker_id: spk.1, wav: ted_1.wav}\n")
            text(folder / f"txt/{split}.en", "Thank you.\n")
            text(folder / f"txt/{split}.{target}", "Ja.\n")


def make_spoken_squad(root: Path) -> None:
    for index, folder in (("spoken_train-v1.1.json", "train_wav"), ("spoken_test-v1.1.json", "dev_wav")):
        tone(root / folder / "0_0_0.wav")
        question = {"id": "q1", "question": "Who sat?", "answers": [{"text": "the cat", "answer_start": 0}]}
        paragraphs = [{"context": "the cat sat", "qas": [question]}]
        text(root / index, json.dumps({"data": [{"title": "Cats", "paragraphs": paragraphs}]}))


def make_gigaspeech(root: Path) -> None:
    tone(root / "audio/podcast/P0001/POD1.wav")
    times = {"begin_time": 0.0, "end_time": 2.0}
    segment = {"sid": "POD1_S1", "speaker": "N/A", "text_tn": "AND SO ON <PERIOD>", "subsets": ["{M}"], **times}
    audio = {"aid": "POD1", "path": "audio/podcast/P0001/POD1.wav", "source": "podcast", "segments": [segment]}
    text(root / "GigaSpeech.json", json.dumps({"dataset": "GigaSpeech", "audios": [audio]}))


def make_mls(described: Path, spoken: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason='needs pip install "ossicle[parquet]"')
    pyarrow = pytest.importorskip("pyarrow")
    place = {"original_path": "sea_fairies_64kb", "begin_time": 0.0}
    audio = {"bytes": tone(spoken / "a.flac").read_bytes(), "path": "a.flac"}
    for folder, row in ((described, dict.fromkeys(ATTRIBUTES, "clear")), (spoken, {"audio": audio, "transcript": "a"})):
        for split in ("train", "test"):
            path = folder / f"data/{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(pyarrow.Table.from_pylist([row | place]), path)


def make_librispeech(root: Path) -> None:
    for split in ("train-clean-100", "train-clean-5", "dev-clean", "dev-clean-2", "test-clean"):
        tone(root / split / "19/198/19-198-0000.flac")
        text(root / split / "19/198/19-198.trans.txt", "19-198-0000 NORTHANGER ABBEY\n")


def make_covost(root: Path) -> None:
    splits = ("train", "dev", "test")
    for split in splits:
        tone(root / f"clips/{split}.mp3")
    sentences = [f"speaker\t{split}.mp3\tA cat." for split in splits]
    translations = [f"{split}.mp3\tEine Katze.\t{split}" for split in splits]
    text(root / "validated.tsv", "\n".join(["client_id\tpath\tsentence", *sentences]) + "\n")
    text(root / "covost_v2.en_de.tsv", "\n".join(["path\ttranslation\tsplit", *translations]) + "\n")


def make_fleurs(root: Path) -> None:
    for language, words in (("en_us", "The cat."), ("de_de", "Die Katze.")):
        for split in ("train", "dev", "test"):
            tone(root / language / f"audio/{split}/1.wav")
            text(root / language / f"{split}.tsv", f"7\t1.wav\t{words}\t{words}\tt h e\t16000\tFEMALE\n")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make every corpus that the pages name, in its original layout."""
    root = tmp_path_factory.mktemp("downloads")
    make_mustc(root / "MUST-C")
    make_spoken_squad(root / "Spoken-SQuAD")
    make_gigaspeech(root / "GigaSpeech")
    make_mls(root / "mls-eng-speaker-descriptions", root / "mls_eng")
    make_librispeech(root / "LibriSpeech")
    make_covost(root / "cv-corpus-4/en")
    make_fleurs(root / "fleurs/data")
    return root


@pytest.fixture
def workplace(tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the working directory of a reader, with the downloads only."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpora").symlink_to(corpora)
    return tmp_path


def commands(page: str) -> list[str]:
    """Return the ``ossicle`` commands in the page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [
        found.replace("\\\n", " ")
        for block in blocks
        for found in re.findall(r"^ossicle (?:.*\\\n)*.*", block, re.MULTILINE)
    ]


class Reader:
    """Follow commands; raise if an input is missing, or if an option or override does not exist."""

    def __init__(self) -> None:
        self.runs: set[Path] = set()
        self.recipes: set[Path] = set()

    def follow(self, command: str) -> None:
        _, name, *arguments = shlex.split(command, comments=True)
        subcommand = get_command(app).commands[name]  # type: ignore[attr-defined]
        given = subcommand.make_context(name, list(arguments)).params
        if name == "prepare":
            subcommand.main(arguments, standalone_mode=False)
        else:
            {"train": self.train, "evaluate": self.evaluate, "align": self.align}[name](given)

    def train(self, given: dict[str, Any]) -> None:
        config = load(given["recipe"], given["overrides"] or ())
        for manifest in map(Path, [*config.data.train, *config.data.dev]):
            assert manifest.is_file(), f"no command has written {manifest}"
        start = config.train.init_from
        assert start is None or Path(start) in self.runs, f"no command has trained {start}"
        assert config.folder not in self.runs, f"two commands train {config.folder}"
        self.runs.add(config.folder)
        self.recipes.add(given["recipe"])

    def evaluate(self, given: dict[str, Any]) -> None:
        assert given["model"] in self.runs, f"no command has trained {given['model']}"
        assert given["manifest"].is_file(), f"no command has written {given['manifest']}"

    def align(self, given: dict[str, Any]) -> None:
        assert given["manifest"].is_file(), f"no command has written {given['manifest']}"
        shutil.copy(given["manifest"], given["out"])  # aligning would need a published model


@pytest.fixture
def reader(workplace: Path) -> Iterator[Reader]:
    yield Reader()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_commands_of_the_page_follow_from_one_another_and_use_every_recipe(page: Path, reader: Reader) -> None:
    for command in commands(page.read_text(encoding="utf-8")):
        reader.follow(command)
    assert {path.name for path in reader.recipes} == {path.stem for path in page.parent.glob("*.yaml")}
    assert {path.parent.name for path in reader.recipes} == {page.parent.name}


def test_every_folder_of_recipes_has_a_page() -> None:
    assert [page.parent.name for page in PAGES] == ["laptop", "paper", "real", "small"]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("ossicle train paper/asr", "no command has written data/must-c/train.jsonl"),
        ("ossicle evaluate runs/asr-10 data/must-c/dev.jsonl", "no command has trained runs/asr-10"),
        ("ossicle align data/must-c/train.jsonl --out words.jsonl", "no command has written data/must-c/train.jsonl"),
        ("ossicle train paper/none", "no such recipe"),
        ("ossicle train paper/asr train.epoch=5", "did you mean 'epochs'"),
        ("ossicle align a.jsonl --outt b.jsonl", "No such option: --outt"),
        ("ossicle prepare librispeech corpora/LibriSpeech out --split train", "has no split 'train'"),
    ],
)
def test_a_page_that_is_wrong_is_found_out(command: str, problem: str, reader: Reader) -> None:
    with pytest.raises(Exception, match=re.escape(problem)):
        reader.follow(command)
