"""The adapter of lmms-eval: with stubs of its requests, and with lmms-eval itself where it is installed."""

import json
import logging
import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from ossicle.errors import ConfigError
from ossicle.evaluate.lmms import answers, decoding_of
from places import ROOT

GREEDY = {"max_new_tokens": 5, "temperature": 0, "do_sample": False}
RATE_HZ = 16_000


def tone(frequency_hz, seconds=0.6, rate_hz=RATE_HZ):
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def turn(audio, text):
    return [{"role": "user", "content": [{"type": "audio", "url": audio}, {"type": "text", "text": text}]}]


def request(number, settings=GREEDY, doc_to_messages=lambda document: document):
    return SimpleNamespace(args=("context", doc_to_messages, settings, number, "task", "test"))


def ask(model, documents, requests=None, **options):
    requests = requests or [request(number) for number in range(len(documents))]
    return answers(model, requests, {"task": {"test": documents}}, **options)


class Echo:
    """A model that answers with what it is asked and records its calls."""

    def __init__(self, answer="{}"):
        self.calls, self.answer = [], answer

    def generate(self, audio, instruction=None, *, messages=None, **decoding):
        self.calls.append((audio, instruction, messages, decoding))
        if messages is not None:
            return [self.answer.format(messages[-1]["content"][-1]["text"])]
        asked = instruction if isinstance(instruction, list) else [instruction]
        return [self.answer.format(text) for text in asked]


def test_answers_are_those_of_generate(model, tmp_path):
    """Recordings as a dictionary, a file and a decoder of the library datasets, in one batch."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(300), RATE_HZ)
    decoded = SimpleNamespace(data=torch.from_numpy(np.stack([tone(500, rate_hz=8000)] * 2)), sample_rate=8000)
    documents = [
        turn({"array": tone(200), "sampling_rate": RATE_HZ}, "repeat"),
        turn(str(path), "translate to german"),
        turn(SimpleNamespace(get_all_samples=lambda: decoded), "what is the first word"),
    ]
    expected = model.generate(
        [tone(200), path, (tone(500, rate_hz=8000), 8000)],
        ["repeat", "translate to german", "what is the first word"],
        max_new_tokens=5,
    )
    assert len(set(expected)) > 1
    assert ask(model, documents, batch_size=3) == expected
    assert ask(model, documents, batch_size=1) == expected


def test_requests_are_grouped_by_their_settings_and_answered_in_order():
    model, told = Echo(), []
    documents = [turn(tone(200), name) for name in "abcde"]
    other = {"max_new_tokens": 9}
    requests = [request(n, settings=other if n in (1, 3) else GREEDY) for n in range(5)]
    said = ask(model, documents, requests, batch_size=2, answered=lambda request, answer: told.append(answer))
    assert said == list("abcde")
    assert [(instruction, decoding) for _, instruction, _, decoding in model.calls] == [
        (["a", "c"], {"max_new_tokens": 5}),
        ("e", {"max_new_tokens": 5}),
        (["b", "d"], {"max_new_tokens": 9}),
    ]
    assert sorted(told) == list("abcde")


def test_conversations_keep_their_turns():
    model = Echo()
    messages = [
        {"role": "system", "content": "be brief"},
        *turn("a.wav", "who speaks"),
        {"role": "assistant", "content": [{"type": "text", "text": "anna"}]},
        *turn("b.wav", "and now"),
    ]
    assert ask(model, [messages]) == ["and now"]
    [(audio, _, given, _)] = model.calls
    assert audio is None
    assert [message["role"] for message in given] == ["system", "user", "assistant", "user"]
    assert given[0]["content"] == [{"type": "text", "text": "be brief"}]
    assert given[3]["content"][0] == {"type": "audio", "audio": "b.wav"}


def test_a_real_conversation_is_answered(model):
    documents = [[*turn(tone(200), "repeat"), {"role": "assistant", "content": "one"}, *turn(tone(300), "and now")]]
    expected = model.generate(
        None,
        messages=[
            {"role": "user", "content": [{"type": "audio", "audio": tone(200)}, {"type": "text", "text": "repeat"}]},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": [{"type": "audio", "audio": tone(300)}, {"type": "text", "text": "and now"}]},
        ],
        max_new_tokens=5,
    )
    assert ask(model, documents) == expected


def test_a_task_without_messages_of_its_own_sends_audio():
    """lmms-eval would call it a video, or refuse it."""

    class Task:
        config = SimpleNamespace(doc_to_messages=None, doc_to_visual="utils.audio")

        def doc_to_visual(self, document):
            return [document["audio"]]

        def doc_to_text(self, document):
            return document["question"]

        def doc_to_messages(self, document):
            raise TypeError("Unsupported visual type")

    model, audio = Echo(), {"array": tone(200), "sampling_rate": RATE_HZ, "path": "x.flac"}
    found = ask(model, [{"audio": audio, "question": "what"}], [request(0, doc_to_messages=Task().doc_to_messages)])
    assert found == ["what"]
    assert model.calls[0][0] is audio


def test_the_answer_ends_at_the_stop_of_the_task():
    documents = [turn(tone(200), "a")]
    for until, expected in ((["END", "."], "a b"), ("b", "a "), ([], "a b. c END d"), ([""], "a b. c END d")):
        model = Echo("{} b. c END d")
        assert ask(model, documents, [request(0, settings={"until": until})]) == [expected]


def test_one_bad_recording_has_an_empty_answer_and_a_warning(model, caplog, tmp_path):
    documents = [turn(tone(200), "repeat"), turn(str(tmp_path / "missing.wav"), "repeat"), turn(tone(300), "repeat")]
    with caplog.at_level(logging.WARNING, "ossicle"):
        found = ask(model, documents, batch_size=3)
    first, last = model.generate([tone(200), tone(300)], "repeat", max_new_tokens=5)
    assert found == [first, "", last]
    assert "task, document 1 has an empty answer" in caplog.text
    assert "missing.wav" in caplog.text


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_task_with_images_is_refused(kind):
    documents = [[{"role": "user", "content": [{"type": kind, "url": "x"}, {"type": "text", "text": "what"}]}]]
    with pytest.raises(ConfigError, match=r"task, document 0: has an image or a video.*hears audio only"):
        ask(Echo(), documents)


@pytest.mark.parametrize(
    ("settings", "decoding"),
    [
        ({"max_new_tokens": 256, "temperature": 0, "top_p": 1.0, "num_beams": 1}, {"max_new_tokens": 256}),
        ({"do_sample": True, "temperature": 0, "top_p": None}, {}),
        ({"temperature": 0.7, "top_p": 0.9, "image_aspect_ratio": "pad"}, {"temperature": 0.7, "top_p": 0.9}),
        ({"temperature": 0.7, "do_sample": False}, {}),
        ({"num_beams": 4}, {"num_beams": 4}),
        ({}, {}),
    ],
)
def test_settings(settings, decoding):
    assert decoding_of(settings) == decoding


def test_the_entry_point_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"ossicle": "ossicle.evaluate.lmms:manifest"}


TASK = """
task: two_recordings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.audio
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 5, temperature: 0, do_sample: false}}
process_results: !function utils.results
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
import soundfile

def audio(doc):
    array, rate = soundfile.read(doc["path"], dtype="float32")
    return [{"array": array, "sampling_rate": rate, "path": "name-in-the-archive.wav"}]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def results(doc, results):
    return {"exact": float(results[0] == doc["answer"])}
"""


RUN = """
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import MODEL_REGISTRY_V2, get_model
from lmms_eval.tasks import TaskManager
from ossicle.evaluate.lmms import manifest

MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # as its entry point does
folder = sys.argv[1]
found = simple_evaluate(
    model="ossicle",
    model_args=f"pretrained={folder}/model",
    tasks=["two_recordings"],
    batch_size=2,
    task_manager=TaskManager(include_path=f"{folder}/tasks", include_defaults=False),
    log_samples=True,
)
made, errors = get_model("ossicle"), []
model = made.create_from_arg_string(f"pretrained={folder}/model", {"batch_size": 1, "device": None})
for wrong in (
    lambda: model.loglikelihood([]),
    lambda: model.generate_until_multi_round([]),
    lambda: made.create_from_arg_string(f"pretrained={folder}/model,colour=red"),
):
    try:
        wrong()
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")
score = found["results"]["two_recordings"]["exact,none"]
said = [sample["filtered_resps"][0] for sample in found["samples"]["two_recordings"]]
print(json.dumps({"score": score, "said": said, "errors": errors}), file=open(f"{folder}/out.json", "w"))
"""


@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="needs pip install lmms-eval 'filelock<4'")
def test_lmms_eval_runs_a_task_of_two_recordings(model, tmp_path):
    """In another process, because lmms-eval changes locks and sockets of the whole process."""
    model.save(tmp_path / "model")
    lines = []
    for number, question in enumerate(["repeat", "what is the first word"]):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, tone(200 + 100 * number), RATE_HZ)
        lines.append({"path": str(path), "question": question})
    expected = [model.generate(line["path"], line["question"], max_new_tokens=5)[0] for line in lines]
    answers = [expected[0], "another answer"]
    data = [{**line, "answer": answer} for line, answer in zip(lines, answers, strict=True)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in data))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "two.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl", cache=tmp_path / "cache"))
    (tmp_path / "tasks" / "utils.py").write_text(UTILS)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["said"] == expected
    assert found["score"] == 0.5
    likelihood, rounds, argument = found["errors"]
    assert likelihood.startswith("NotImplementedError: the model ossicle of lmms-eval has no loglikelihood: choose")
    assert "has no generate_until_multi_round" in rounds
    assert argument.startswith("ConfigError: --model_args: no argument colour")
