"""Check the lab's grammar against translations made by hand, its splits, tasks and tokenizer, and the packaged LLM."""

import random
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from ossicle_lab.models import build_llm as build_llm_module
from ossicle_lab.models import llm_eval, llm_model
from ossicle_lab.models.build_llm import build_llm
from ossicle_lab.models.llm_data import RowMaker, Stage
from ossicle_lab.models.llm_eval import greedy_answers
from ossicle_lab.models.llm_model import answer_loss, hidden_states, new_model
from ossicle_lab.models.tokenizer import ASSISTANT, BOS, END, PAD, USER, WordIds, train_tokenizer
from ossicle_lab.world import lexicon
from ossicle_lab.world.grammar import Phrase, Sentence, Where
from ossicle_lab.world.passages import SPLITS, Passage, sample_passages, split_of, vocabulary, word_strings
from ossicle_lab.world.tasks import TASKS, ask, questions

WEIGHTS = Path(str(files("ossicle_lab"))) / "weights" / "llm"

NOUNS = {noun.english: noun for noun in (*lexicon.NAMES, *lexicon.PEOPLE, *lexicon.OBJECTS)}
ADJECTIVES = {a.english: a for a in (*lexicon.THING_ADJECTIVES, *lexicon.PERSON_ADJECTIVES)}
VERBS = {verb.english[0]: verb for verb in lexicon.VERBS}
PLACES = {place.noun.english: place for place in lexicon.PLACES}
TIMES = {time.english: time for time in lexicon.TIMES}


def phrase(words: str) -> Phrase:
    """Return a phrase from its English words: anna, the doctor, a red car."""
    article, *rest = words.split()
    if not rest:
        return Phrase(NOUNS[article])
    adjective = ADJECTIVES[rest[0]] if len(rest) == 2 else None
    return Phrase(NOUNS[rest[-1]], adjective, definite=article == "the")


def sentence(subject: str, verb: str, target: str, **parts: object) -> Sentence:
    given = {key: phrase(str(parts[key])) for key in ("recipient", "companion") if key in parts}
    where = Where(PLACES[str(parts["place"])], str(parts.get("relation", "home"))) if "place" in parts else None
    when = TIMES[str(parts["time"])] if "time" in parts else None
    return Sentence(
        phrase(subject),
        VERBS[verb],
        phrase(target),
        **given,
        where=where,
        when=when,
        connector=str(parts.get("connector", "")),
        time_first="time_first" in parts,
        present="present" in parts,
    )


@pytest.mark.parametrize(
    ("content", "english", "german", "spanish"),
    [
        (  # indefinite neuter object, dative without preposition, time before place; Spanish adjective after the noun
            sentence("the old doctor", "gave", "a red book", recipient="anna", place="park", time="on monday"),
            "the old doctor gave a red book to anna in the park on monday",
            "der alte arzt hat am montag anna ein rotes buch im park gegeben",
            "el médico viejo dio un libro rojo a anna en el parque el lunes",
        ),
        (  # masculine accusative; personal a with el contracts
            sentence("maria", "saw", "the young pilot"),
            "maria saw the young pilot",
            "maria hat den jungen piloten gesehen",
            "maria vio al piloto joven",
        ),
        (  # feminine person as object
            sentence("tom", "visited", "the rich queen", time="yesterday"),
            "tom visited the rich queen yesterday",
            "tom hat gestern die reiche königin besucht",
            "tom visitó a la reina rica ayer",
        ),
        (  # inversion after a time; weak masculine accusative
            sentence("the girl", "fed", "a small bear", time="at night", time_first=True),
            "at night the girl fed a small bear",
            "in der nacht hat das mädchen einen kleinen bären gefüttert",
            "por la noche la niña alimentó un oso pequeño",
        ),
        (  # inversion after a connector, none in Spanish
            sentence("the woman", "lost", "the new key", place="beach", connector="then"),
            "then the woman lost the new key on the beach",
            "dann hat die frau den neuen schlüssel am strand verloren",
            "luego la mujer perdió la llave nueva en la playa",
        ),
        (  # no inversion after und
            sentence("peter", "ate", "a cold soup", connector="and"),
            "and peter ate a cold soup",
            "und peter hat eine kalte suppe gegessen",
            "y peter comió una sopa fría",
        ),
        (  # weak dative after mit; de + el
            sentence("paul", "found", "a ring", companion="the boy", place="river", relation="near"),
            "paul found a ring with the boy near the river",
            "paul hat einen ring mit dem jungen beim fluss gefunden",
            "paul encontró un anillo con el niño cerca del río",
        ),
        (  # a + el before a recipient; detrás de la does not contract
            sentence("sara", "sent", "the letter", recipient="the king", place="church", relation="behind"),
            "sara sent the letter to the king behind the church",
            "sara hat dem könig den brief hinter der kirche geschickt",
            "sara envió la carta al rey detrás de la iglesia",
        ),
        (  # feminine dative; adjective that does not change in Spanish
            sentence("leo", "showed", "the blue photo", recipient="the famous nurse"),
            "leo showed the blue photo to the famous nurse",
            "leo hat der berühmten krankenschwester das blaue foto gezeigt",
            "leo mostró la foto azul a la enfermera famosa",
        ),
        (  # neuter with definite article; an before a vowel; stem teur
            sentence("the tired farmer", "sold", "an expensive horse", time="last week"),
            "the tired farmer sold an expensive horse last week",
            "der müde bauer hat letzte woche ein teures pferd verkauft",
            "el granjero cansado vendió un caballo caro la semana pasada",
        ),
        (  # present tense: no auxiliary, nothing at the end
            sentence("the neighbor", "read", "a strange newspaper", time="in the morning", present=True),
            "the neighbor reads a strange newspaper in the morning",
            "der nachbar liest am morgen eine seltsame zeitung",
            "el vecino lee un periódico extraño por la mañana",
        ),
        (  # present with inversion
            sentence("emma", "washed", "the white cat", time="in summer", time_first=True, present=True),
            "in summer emma washes the white cat",
            "im sommer wäscht emma die weiße katze",
            "en verano emma lava el gato blanco",
        ),
        (  # inside two-word Spanish connector and article contraction in a time
            sentence("the son", "drew", "the sun", time="before breakfast", connector="later"),
            "later the son drew the sun before breakfast",
            "später hat der sohn vor dem frühstück die sonne gezeichnet",
            "más tarde el hijo dibujó el sol antes del desayuno",
        ),
        (  # adverbial place on a feminine noun, weak noun as dative
            sentence("lisa", "lent", "the dirty shirt", recipient="the poor prince", place="bridge"),
            "lisa lent the dirty shirt to the poor prince on the bridge",
            "lisa hat dem armen prinzen das schmutzige hemd auf der brücke geliehen",
            "lisa prestó la camisa sucia al príncipe pobre en el puente",
        ),
    ],
)
def test_translations_are_those_a_speaker_would_write(
    content: Sentence, english: str, german: str, spanish: str
) -> None:
    assert (content.text("en"), content.text("de"), content.text("es")) == (english, german, spanish)


def test_synonyms_change_the_english_and_not_the_translation() -> None:
    plain = sentence("the doctor", "bought", "a small bike", place="shop")
    other = plain.with_synonyms()
    assert other.text() == "the physician purchased a little bicycle in the store"
    assert other.with_synonyms() == plain
    assert [other.text("de"), other.text("es")] == [plain.text("de"), plain.text("es")]
    assert split_of(other) == split_of(plain)


def test_no_sentence_is_in_two_splits() -> None:
    cores = [{s.core() for p in sample_passages(split, 150) for s in p.sentences} for split in SPLITS]
    assert all(len(found) > 200 for found in cores)
    assert not (cores[0] & cores[1] or cores[0] & cores[2] or cores[1] & cores[2])


def test_passages_depend_on_the_seed_only_and_extend_each_other() -> None:
    passages = sample_passages("train", 30, seed=3)
    assert passages == sample_passages("train", 60, seed=3)[:30]
    assert passages != sample_passages("train", 30, seed=4)
    assert word_strings(20, 1) == word_strings(20, 1) != word_strings(20, 2)


def test_passages_are_spoken_words_of_a_modest_vocabulary() -> None:
    words = set(vocabulary())
    assert 250 <= len(words) <= 400
    texts = [p.text for p in sample_passages("dev", 300)]
    assert all(set(text.split()) <= words for text in texts)
    assert all(character == " " or character.islower() for text in texts for character in text)
    assert {len(p.sentences) for p in sample_passages("dev", 30)} == {1, 2, 3}
    assert {len(p.sentences) for p in sample_passages("dev", 30, max_sentences=1)} == {1}


def test_a_passage_names_each_thing_once() -> None:
    for passage in sample_passages("train", 300):
        phrases = [p for s in passage.sentences for p in (s.subject, s.object, s.recipient, s.companion) if p]
        nouns = [p.noun.english for p in phrases] + [s.where.place.noun.english for s in passage.sentences if s.where]
        assert len(nouns) == len(set(nouns))
        assert len({s.verb.english for s in passage.sentences}) == len(passage.sentences)


def test_every_question_has_one_answer_which_the_passage_contains() -> None:
    for passage in sample_passages("test", 200):
        asked = questions(passage)
        assert len({item.instruction for item in asked}) == len(asked) >= len(passage.sentences)
        assert all(f" {item.answers[0]} " in f" {passage.text} " for item in asked)


def test_tasks_of_a_passage_known_by_heart() -> None:
    passage = Passage(
        (
            sentence("anna", "bought", "a red car", time="on monday"),
            sentence("the old king", "saw", "tom", place="garden", connector="and"),
        )
    )
    rng = random.Random(0)
    answers = {}
    for task in TASKS:
        asked = ask(passage, task, rng)
        answers[task] = asked.answers[0] if asked else None
    assert answers["asr"] == "anna bought a red car on monday and the old king saw tom in the garden"
    assert answers["st"] == "anna hat am montag ein rotes auto gekauft und der alte könig hat tom im garten gesehen"
    assert answers["persons"] == "anna and the old king and tom"
    assert (answers["objects"], answers["places"], answers["count"]) == ("a red car", "in the garden", "three")
    assert answers["time_first"] == "on monday anna bought a red car and the old king saw tom in the garden"
    assert answers["present"] == "anna buys a red car on monday and the old king sees tom in the garden"
    assert answers["paraphrase"] == "anna purchased a red car on monday and the old king saw tom in the garden"
    assert answers["backwards"] == "garden the in tom saw king old the and monday on car red a bought anna"
    assert {(q.instruction, q.answers[0]) for q in questions(passage)} == {
        ("who bought the red car", "anna"),
        ("what did anna buy", "a red car"),
        ("when did anna buy the red car", "on monday"),
        ("who saw tom", "the old king"),
        ("where did the king see tom", "in the garden"),
    }
    spanish = ask(passage, "st", rng, "es")
    assert spanish and spanish.target_language == "es"
    assert spanish.answers == ("anna compró un coche rojo el lunes y el rey viejo vio a tom en el jardín",)


def test_tasks_that_do_not_apply_give_none() -> None:
    passage = Passage((sentence("tom", "greeted", "anna", time="yesterday", time_first=True),))
    rng = random.Random(0)
    assert [task for task in TASKS if ask(passage, task, rng) is None] == [
        "objects",
        "places",
        "time_first",
        "present",
        "paraphrase",
    ]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([p.text for p in sample_passages("train", 300)], vocab_size=600)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_passage_has_the_same_tokens_alone_and_in_the_chat(tokenizer: PreTrainedTokenizerFast) -> None:
    passage, instruction = "anna saw the bear", "translate to german"
    alone = tokenizer(passage)["input_ids"]
    rest = ids_of(tokenizer, " " + instruction)
    assert ids_of(tokenizer, f"{passage} {instruction}") == alone + rest
    message = [{"role": "user", "content": f"{passage} {instruction}"}]
    chat = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    assert chat == f"{BOS}{USER}{passage} {instruction}{END}{ASSISTANT}"
    markers = {token: tokenizer.get_vocab()[token] for token in (BOS, USER, END, ASSISTANT)}
    around = [markers[BOS], markers[USER]], [markers[END], markers[ASSISTANT]]
    assert tokenizer(chat)["input_ids"] == [*around[0], *alone, *rest, *around[1]]
    assert WordIds(tokenizer)(passage) == alone
    german = "der müde bauer hat süßes brot"
    assert tokenizer.decode(ids_of(tokenizer, german)) == german


def test_every_branch_of_a_row_is_the_chat_it_stands_for(tokenizer: PreTrainedTokenizerFast) -> None:
    """A packed row in our forward pass has the hidden states of each single chat in that of transformers."""
    special = {token: tokenizer.get_vocab()[token] for token in (PAD, BOS, USER, ASSISTANT, END)}
    stage = Stage(0, (0.2, 0.4, 0.4), 0.0)
    (batch,) = RowMaker(WordIds(tokenizer), special).block(random.Random(1), stage, batches=1, rows=3)
    model = new_model(tokenizer, seed=0).eval()
    with torch.no_grad():
        packed = hidden_states(model, batch, torch.Generator().manual_seed(0), torch.float32)
        for row in range(3):
            last = int((batch.ids[row] != special[PAD]).nonzero().max())
            seen = batch.visible[row, last].nonzero()[:, 0]  # the last branch and, if it reads it, the passage
            alone = model.model(batch.ids[row, seen][None]).last_hidden_state[0]
            assert torch.equal(batch.positions[row, seen], torch.arange(len(seen)))
            torch.testing.assert_close(packed[row, seen], alone, rtol=1e-4, atol=1e-4)


def test_a_killed_training_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROWS": 2, "_CHECKPOINT_EVERY": 1, "_TOKENIZER_PASSAGES": 50, "_TEST_PASSAGES": 1}.items():
        monkeypatch.setattr(build_llm_module, name, value)
    monkeypatch.setattr(llm_model, "_LAYERS", 1)
    monkeypatch.setattr(llm_eval, "greedy_answers", lambda model, tokenizer, requests: [""] * len(requests))
    build_llm(tmp_path / "whole", tmp_path / "whole" / "out", steps=3)

    calls = iter((False, False, True))

    def killed(*arguments: object) -> torch.Tensor:
        if next(calls):
            raise KeyboardInterrupt
        return answer_loss(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build_llm_module, "answer_loss", killed)
        build_llm(tmp_path / "cut", tmp_path / "cut" / "out", steps=3)
    build_llm(tmp_path / "cut", tmp_path / "cut" / "out", steps=3)

    whole, cut = (tmp_path / name / "out" / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    assert (tmp_path / "cut" / "out" / "scores.json").exists()


@pytest.mark.skipif(not (WEIGHTS / "config.json").exists(), reason="the lab LLM has not been built")
def test_the_shipped_llm_answers_held_out_questions() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    rng = random.Random(5)
    passages = sample_passages("test", 12, seed=5)
    asked = [(p, ask(p, task, rng)) for p in passages for task in ("asr", "st", "qa")]
    items = [(f"{passage.text} {task.instruction}", task.answers[0]) for passage, task in asked if task]
    answers = greedy_answers(model, tokenizer, [request for request, _ in items])
    right = sum(answer == expected for answer, (_, expected) in zip(answers, items, strict=True))
    assert right >= 0.9 * len(items)
