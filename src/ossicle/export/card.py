"""Write the model card of an export: that of the checkpoint, with how the export is used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ossicle.files import write_text
from ossicle.models.card import CARD, model_card
from ossicle.models.saving import read_record

_CODE = re.compile(r"```python\nfrom ossicle import SpeechLLM.*?```", re.DOTALL)
CUSTOM = """```python
import soundfile
from transformers import AutoModelForMultimodalLM, AutoProcessor

folder = "FOLDER OR HUB ID"
model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
waveform, rate = soundfile.read("recording.wav", dtype="float32")  # mono, 16,000 Hz
parts = [{{"type": "audio", "audio": waveform}}, {{"type": "text", "text": "{instruction}"}}]
turn = [{{"role": "user", "content": parts}}]
inputs = processor.apply_chat_template(turn, tokenize=True, add_generation_prompt=True, return_dict=True)
answer = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0].strip())
```"""
GRANITE = """```python
import soundfile
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor  # the processor needs torchaudio

folder = "FOLDER OR HUB ID"
model = AutoModelForMultimodalLM.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
waveform, rate = soundfile.read("recording.wav", dtype="float32")  # mono, 16,000 Hz
turn = [{{"role": "user", "content": [{{"type": "audio"}}, {{"type": "text", "text": "{instruction}"}}]}}]
text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
inputs = processor(text, torch.from_numpy(waveform)[None], return_tensors="pt", add_special_tokens=False)
answer = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0].strip())
```"""
ULTRAVOX = """```sh
vllm serve FOLDER --trust-remote-code
```"""
ALONE = """

This export answers with the LLM alone. `ossicle transcribe` also follows the spelling of the projector (joint
decoding), so that its transcripts are more accurate."""
"""Note in the card of a model with the projector ``ctc``: joint decoding is not exported."""
USES = {"custom": CUSTOM, "granite_speech": GRANITE, "ultravox": ULTRAVOX}


def write_card(model: Any, folder: Path, form: str) -> None:
    """Write the card of an export of ``model`` to ``folder`` as ``README.md``; none for a model that was not saved."""
    if model.origin is None:
        return
    record, origin = read_record(model.origin), Path(model.origin)
    own = next((origin / name for name in (CARD, "CARD.md") if (origin / name).is_file()), None)
    text = own.read_text(encoding="utf-8") if own else model_card(record, origin)
    instruction = record["instructions"].get("asr", "Transcribe the speech.")
    use = USES[form].format(instruction=instruction.replace('"', '\\"'))
    if model.config.projector.name == "ctc":
        use += ALONE
    text, replaced = _CODE.subn(lambda _: use, text, count=1)
    if not replaced:
        text = f"{text.rstrip()}\n\n## Use of this export\n\n{use}\n"
    write_text(folder / CARD, text.replace("library_name: ossicle\n", "library_name: transformers\n", 1))
