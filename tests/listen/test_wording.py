from ossicle.listen.wording import instruction_for


def test_instructions_are_those_of_the_training_data(model):
    model.instructions = {"asr": "repeat the text", "st/de": "say it in german"}
    assert instruction_for(model, "asr") == "repeat the text"
    assert instruction_for(model, "st", "de") == "say it in german"


def test_an_unseen_language_is_asked_for_in_the_words_of_a_seen_one(model):
    model.instructions = {"asr": "repeat", "st/de": "say it in german"}
    assert instruction_for(model, "st", "es") == "say it in spanish"
    model.instructions = {"st/de": "German, please."}
    assert instruction_for(model, "st", "fr") == "French, please."


def test_without_any_there_is_a_plain_one(model):
    model.instructions = {"st/de": "uebersetze"}
    assert instruction_for(model, "st", "es") == "Translate the speech to Spanish."
    assert instruction_for(model, "asr") == "Transcribe the speech."
