"""Instructions that a recipe sets are those of the trained model, wherever it is used."""

from ossicle.batch import Sample
from ossicle.models.speech_llm import SpeechLLM
from ossicle.prompts import ASR_INSTRUCTIONS
from ossicle.train import train

OWN = ("write it down", "put the words on paper")


def drawn(model: SpeechLLM, tmp_path) -> set[str]:
    """Return the instructions of 50 samples that have none of their own."""
    prompter = model.prompter()
    return {prompter.instruction(Sample(id=str(i), audio=tmp_path / "a.wav", text="x"), 0) for i in range(50)}


def test_instructions_of_the_recipe_are_saved_and_used_afterwards(config, tmp_path):
    folder = train(config(objective={"name": "next_token"}, data={"asr_instructions": list(OWN)}, train={"steps": 1}))
    assert drawn(SpeechLLM.from_pretrained(folder), tmp_path) == set(OWN)


def test_without_a_setting_the_default_instructions_are_drawn(config, tmp_path):
    folder = train(config(objective={"name": "next_token"}, train={"steps": 1}))
    assert drawn(SpeechLLM.from_pretrained(folder), tmp_path) == set(ASR_INSTRUCTIONS)
