"""Scores and intervals equal those of the command lines of sacreBLEU and jiwer, on the same files."""

import json
import random
import re
import subprocess
import sys

import pytest

from ossicle.evaluate.bootstrap import intervals, paired
from ossicle.evaluate.metrics import bleu, cer, chrf, exact_match, f1, wer

WORDS = ["der", "die", "das", "Hund", "Katze", "Auto", "sieht", "kauft", "rot", "alt", "ist", "nicht", ",", "und", "."]


@pytest.fixture(scope="module")
def corpus():
    """120 sentences, and two systems that replace and drop words, the second one more often."""
    chance = random.Random(0)
    references = [" ".join(chance.choices(WORDS, k=chance.randint(4, 15))) for _ in range(120)]

    def system(rate):
        kept = [[word for word in text.split() if chance.random() > rate / 2] for text in references]
        return [" ".join(chance.choice(WORDS) if chance.random() < rate else w for w in words) for words in kept]

    return references, system(0.1), system(0.2)


@pytest.fixture(scope="module")
def files(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    paths = []
    for name, lines in zip(("ref", "a", "b"), corpus, strict=True):
        paths.append(folder / f"{name}.txt")
        paths[-1].write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return paths


def run(module, *arguments):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_sacrebleu_command_line_with_intervals(corpus, files):
    references, said, _ = corpus
    reference, system, _ = files
    arguments = ("-i", system, "-m", "bleu", "chrf", "--confidence", "--confidence-n", "1000", "-w", "6")
    found = {entry["name"]: entry for entry in json.loads(run("sacrebleu", reference, *arguments))}
    scores = {"BLEU": bleu(said, references), "chrF2": chrf(said, references)}
    bounds = intervals([score.parts for score in scores.values()], range(120), resamples=1000)
    for (name, score), bound in zip(scores.items(), bounds, strict=True):
        assert score.value == pytest.approx(found[name]["score"], abs=1e-5)
        half = float(found[name]["confidence_var"])  # half the width of the middle 95%
        assert (bound.high - bound.low) / 2 == pytest.approx(half, rel=0.12)
        ours = set(score.signature.split("|"))
        assert {f"tok:{found[name]['tok']}" if name == "BLEU" else f"nc:{found[name]['nc']}"} <= ours


def test_sacrebleu_paired_bootstrap(corpus, files):
    """The second system is the first one with its last 8 sentences from the worse system."""
    references, first, second = corpus
    mixed = first[:112] + second[112:]
    path = files[1].with_name("mixed.txt")
    path.write_text("".join(line + "\n" for line in mixed), encoding="utf-8")
    told = run("sacrebleu", files[0], "-i", files[1], path, "-m", "bleu", "-w", "4", "--paired-bs", "-f", "json")
    theirs = [entry for entry in json.loads(told) if "BLEU" in entry][1]["BLEU"]
    [ours] = paired([bleu(first, references).parts], [bleu(mixed, references).parts], range(120), resamples=1000)
    assert bleu(mixed, references).value == pytest.approx(theirs["score"], abs=1e-3)
    assert ours.p == pytest.approx(theirs["p_value"], abs=0.05)
    assert 0.005 < ours.p < 0.6


def test_jiwer_command_line(corpus, files, tmp_path):
    references, said, _ = corpus
    plain = [[re.sub(r"[.,] ?", "", text).strip().lower() or "leer" for text in texts] for texts in (references, said)]
    paths = [tmp_path / "ref.txt", tmp_path / "hyp.txt"]
    for path, lines in zip(paths, plain, strict=True):
        path.write_text("\n".join(" ".join(line.split()) for line in lines), encoding="utf-8")
    texts = [path.read_text().split("\n") for path in paths]
    command = ("jiwer.cli", "-r", paths[0], "-h", paths[1])
    assert wer(texts[1], texts[0]).value == pytest.approx(100 * float(run(*command)))
    assert cer(texts[1], texts[0]).value == pytest.approx(100 * float(run(*command, "-c")))


def test_squad_published_examples():
    """The three examples of SQuAD v1 in Hugging Face's evaluate: a match, no match, and two of three."""
    assert exact_match(["1976"], ["1976"]).value == f1(["1976"], ["1976"]).value == 100
    assert exact_match(["1999"], ["1976"]).value == f1(["1999"], ["1976"]).value == 0
    said, gold = ["1976", "Beyonce", "climate change"], ["1976", "Beyoncé and Bruno Mars", "climate change"]
    assert exact_match(said, gold).value == pytest.approx(66.66666666666667)
    assert f1(said, gold).value == pytest.approx(66.66666666666667)
