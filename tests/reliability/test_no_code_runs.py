"""No code of a checkpoint, a model, a text or a command line runs, and no name leaves its folder."""

import ast
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossicle.corpora.tts import TtsOptions, prepare_tts
from ossicle.data.manifest import read_manifest
from ossicle.errors import CheckpointError, ModelError
from ossicle.models.speech_llm import ModelConfig
from ossicle.train.loop import train
from places import ROOT

FILES = sorted(path for folder in ("src", "lab/src") for path in (ROOT / folder).rglob("*.py"))
EXEC = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "marshal.loads", "shelve.open"}
UNSAFE |= {"os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"}
UNSAFE |= {"subprocess.getoutput", "subprocess.getstatusoutput", "shutil.unpack_archive"}


def dangers(source: str) -> list[str]:
    """Return the calls in ``source`` that run code from data, use a shell, or unpack an archive."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
        last = name.rpartition(".")[2]
        if name in EXEC or name in UNSAFE or last in ("extractall", "unpack_archive"):
            found.append(name)
        # A Loader without a module is one that the file imports under this name; only the safe ones are.
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(name)
        if name == "yaml.load" and not set(map(ast.unparse, node.args[1:])) <= {"Loader", "SafeLoader", "CSafeLoader"}:
            found.append(name)
        if options.get("shell", "False") != "False" or options.get("allow_pickle", "False") != "False":
            found.append(name)
        if options.get("trust_remote_code", "False") != "False":
            found.append(name)
    return found


def test_no_source_file_runs_code_from_data():
    found = {str(path.relative_to(ROOT)): calls for path in FILES if (calls := dangers(path.read_text()))}
    assert len(FILES) > 150
    assert found == {}
    imported = [line.strip() for path in FILES for line in path.read_text().splitlines() if " as Loader" in line]
    assert all("SafeLoader as Loader" in line for line in imported)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "yaml.load(text, yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "tar.extractall(folder)",
        "exec(text)",
    ],
)
def test_each_danger_is_found(source):
    assert len(dangers(source)) == 1


class Attack:
    """An object that writes a file where it is unpickled."""

    def __reduce__(self):
        return open, ("attacked", "w")


def test_a_pickle_in_a_checkpoint_does_not_run(config, tmp_path, monkeypatch):
    folder = train(config(train={"steps": 2}))
    path = folder / "checkpoints" / "step-0000002" / "trainer.pt"
    torch.save({**torch.load(path, weights_only=True), "optimizer": Attack()}, path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"trainer\.pt: the file is damaged \(UnpicklingError\)"):
        train(config(train={"steps": 3}), resume=True)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_a_pickle_in_a_base_model_does_not_run(folders, tmp_path, monkeypatch, part):
    models = {"encoder": folders["hubert"], "llm": folders["llama"]}
    copy = Path(shutil.copytree(models[part], tmp_path / "copy"))
    for weights in copy.glob("*.safetensors"):
        weights.unlink()
    torch.save({"a": Attack()}, copy / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="copy"):
        ModelConfig(**{name: str(path) for name, path in {**models, part: copy}.items()}).build()
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("part", ["encoder", "llm"])
@pytest.mark.parametrize("known", [True, False])
def test_code_in_the_folder_of_a_base_model_does_not_run(folders, tmp_path, monkeypatch, part, known):
    """A known architecture is loaded by the class of transformers; another one is refused, without a question."""
    models = {"encoder": folders["hubert"], "llm": folders["llama"]}
    copy = Path(shutil.copytree(models[part], tmp_path / "copy"))
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoFeatureExtractor")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        if (copy / name).is_file():
            about = json.loads((copy / name).read_text())
            about["auto_map"] = dict.fromkeys(classes, "evil.Evil")
            if not known:
                about |= {"model_type": "evil", "architectures": ["Evil"]} if name == "config.json" else {}
            (copy / name).write_text(json.dumps(about))
    (copy / "evil.py").write_text("open('attacked', 'w')\nclass Evil: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # a user who agrees to everything
    settings = ModelConfig(**{name: str(path) for name, path in {**models, part: copy}.items()})
    if known:
        settings.build()
    else:
        with pytest.raises(ModelError, match="copy") as caught:
            settings.build()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "attacked").exists()


def test_a_text_is_never_read_by_a_shell(tmp_path, monkeypatch):
    """Each text reaches the command as one argument, with every character that a shell would act on."""
    evil = [
        "$(touch attacked)",
        "`touch attacked`",
        "a; touch attacked",
        "a' && touch attacked '",
        "a | touch attacked",
    ]
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "en": t}) + "\n" for i, t in enumerate(evil))
    )
    (tmp_path / "speak.py").write_text(
        "import sys, numpy, soundfile\n"
        "text, out = sys.argv[1:]\n"
        "open(sys.argv[0] + '.log', 'a').write(text + '\\n')\n"
        "soundfile.write(out, numpy.full(16000, 0.1), 16000)\n"
    )
    monkeypatch.chdir(tmp_path)
    command = f"{sys.executable} {tmp_path / 'speak.py'} {{text}} {{out}}"
    prepare_tts(tmp_path / "texts.jsonl", tmp_path / "out", TtsOptions(command=command), jobs=1, show=False)
    assert sorted((tmp_path / "speak.py.log").read_text().splitlines()) == sorted(evil)
    assert sorted(line.text for line in read_manifest(tmp_path / "out" / "texts.jsonl")) == sorted(evil)
    assert not (tmp_path / "attacked").exists()


def test_a_flipped_byte_of_the_projector_falls_back_to_the_checkpoint_before(config, caplog):
    settings = config(train={"steps": 4, "save_every": 2})
    folder = train(settings)
    path = folder / "checkpoints" / "step-0000004" / "projector.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the lowest bits of the last weight
    path.write_bytes(content)
    before = (folder / "projector.safetensors").read_bytes()
    train(replace(settings, train=replace(settings.train, keep=2)), resume=True)
    assert "step-0000004" in caplog.text and "the next older checkpoint is tried" in caplog.text
    assert (folder / "projector.safetensors").read_bytes() == before
