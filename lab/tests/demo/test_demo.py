"""Run the demo with a handful of passages and steps: check what it writes, and that it continues."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ossicle.listen.answers import answers, transcripts
from ossicle.listen.wording import instruction_for
from ossicle.models.speech_llm import SpeechLLM
from ossicle_lab.demo.run import PRETRAININGS, Scale, run

pytest.importorskip("espeakng_loader", reason='needs pip install "ossicle[tts]"')
TINY = Scale(train=40, dev=2, test=6, stage1_steps={"contrastive": 3, "ctc": 2, "asr": 2}, stage2_steps=2)
COLUMNS = {"run", "fraction", "wer", "bleu_de", "bleu_es", "em", "f1", "r_at_1"}


def written(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("projector.safetensors") if path.parent.name != "model"
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run(out, TINY, processes=0)


def test_the_table_has_a_row_for_each_run_and_the_bound(demo):
    out, record = demo
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(record))
    assert [row["run"] for row in record["rows"]] == [*PRETRAININGS, "text (upper bound)"]
    assert all(row.keys() == COLUMNS for row in record["rows"])
    assert record["rows"][-1]["wer"] < 5  # the LLM repeats what it reads
    assert record["rows"][-1]["bleu_de"] > 90
    assert {"corpus", "frames", "training", "text", "contrastive/stage1", "none/stage2"} <= record["seconds"].keys()


def test_it_leaves_a_small_model_plots_and_examples(demo):
    out, _ = demo
    assert sum(path.stat().st_size for path in (out / "model").iterdir()) < 20e6
    model = SpeechLLM.from_pretrained(out / "model")
    assert len(model.generate([str(out / "examples" / "1.wav")], "repeat the text", max_new_tokens=3)) == 1
    plots = {path.name for path in (out / "plots").glob("*.png")}
    assert plots == {
        "loss-stage1-contrastive.png",
        "loss-stage1-asr.png",
        "loss-stage1-ctc.png",
        "loss-stage2.png",
        "retrieval.png",
        "similarity.png",
    }
    examples = json.loads((out / "examples" / "examples.json").read_text())
    assert len(examples) == 3
    assert all(example["said"] and example["question"] for example in examples)


def test_the_printed_examples_are_those_of_the_commands(demo):
    out, _ = demo
    shown = json.loads((out / "examples" / "examples.json").read_text())
    files = [out / "examples" / f"{i}.wav" for i in (1, 2, 3)]
    model = SpeechLLM.from_pretrained(out / "model")
    for task, language, name in (("asr", None, "heard"), ("st", "de", "german")):
        found = transcripts(model, files, instruction_for(model, task, language), batch_size=1)
        assert [answer.text for answer in found] == [example[name] for example in shown]
    [asked] = answers(model, files[:1], shown[0]["question"])
    assert asked.text == shown[0]["answer"]


def test_a_second_call_computes_nothing_again(demo):
    out, record = demo
    before = written(out)
    assert len(before) >= 5
    assert run(out, TINY, processes=0)["rows"] == record["rows"]
    assert written(out) == before
    with pytest.raises(ValueError, match="holds a run of another size"):
        run(out, replace(TINY, stage2_steps=3), processes=0)
