"""Read the words of the lab's world in English, German and Spanish from `ossicle_lab.world.word_tables`."""

from dataclasses import dataclass

from ossicle_lab.world import word_tables


@dataclass(frozen=True)
class Noun:
    """A person, an animal, a thing or a place. Verbs choose their objects by the letter ``kind``."""

    english: str
    synonym: str
    german: str
    german_gender: str
    """Gender: ``m``, ``f`` or ``n``."""
    german_oblique: str
    """Accusative and dative singular, which differ from ``german`` for weak nouns (bär, bären)."""
    spanish: str
    spanish_gender: str
    kind: str
    is_name: bool = False
    """True for first names, which have no article and no adjective and are the same in every language."""


@dataclass(frozen=True)
class Adjective:
    """An adjective that stands before an English and German noun and after a Spanish one."""

    english: str
    synonym: str
    german: str
    """Stem to which the endings are added."""
    spanish: str
    """Masculine form; a final o becomes a in the feminine."""


@dataclass(frozen=True)
class Verb:
    """A transitive verb. ``objects`` lists the kinds of noun it takes; ``gives`` is True if it can have a recipient."""

    english: tuple[str, str, str]
    """Past, third person present, base form."""
    synonym: tuple[str, str, str] | None
    german: tuple[str, str]
    """Participle (with hat), third person present."""
    spanish: tuple[str, str]
    """Preterite, third person present."""
    objects: str
    gives: bool


@dataclass(frozen=True)
class Place:
    """A place and its prepositions."""

    noun: Noun
    english: str
    """Preposition: in, at or on. The prepositions near and behind fit every place."""
    german: str
    """Preposition with article: im, am, auf der, ..."""


@dataclass(frozen=True)
class Time:
    """An expression of time, as a whole phrase."""

    english: str
    german: str
    spanish: str
    is_past: bool
    """True if it needs a past tense (yesterday)."""


def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def _noun(english: str, german: str, spanish: str, kind: str) -> Noun:
    word, _, synonym = english.partition("/")
    german_word, gender, *oblique = german.split()
    spanish_word, spanish_gender = spanish.split()
    return Noun(
        word, synonym, german_word, gender, oblique[0] if oblique else german_word, spanish_word, spanish_gender, kind
    )


def _adjectives(table: str) -> tuple[Adjective, ...]:
    return tuple(Adjective(*english.partition("/")[::2], *rest) for english, *rest in _rows(table))


def _three(words: str) -> tuple[str, str, str]:
    first, second, third = words.split()
    return first, second, third


def _two(words: str) -> tuple[str, str]:
    first, second = words.split()
    return first, second


def _verb(english: str, german: str, spanish: str, objects: str) -> Verb:
    forms, _, synonym = english.partition("/")
    return Verb(
        _three(forms),
        _three(synonym) if synonym else None,
        _two(german),
        _two(spanish),
        objects.rstrip("+"),
        objects.endswith("+"),
    )


NAMES = tuple(Noun(name, "", name, "f", name, name, "f", "p", is_name=True) for name in word_tables.NAMES.split())
PEOPLE = tuple(_noun(*row) for row in _rows(word_tables.PEOPLE))
OBJECTS = tuple(_noun(*row) for row in _rows(word_tables.NOUNS))
THING_ADJECTIVES = _adjectives(word_tables.THING_ADJECTIVES)
PERSON_ADJECTIVES = _adjectives(word_tables.PERSON_ADJECTIVES)
VERBS = tuple(_verb(*row) for row in _rows(word_tables.VERBS))
PLACES = tuple(
    Place(_noun(en, de, es, "l"), preposition, german) for en, de, es, preposition, german in _rows(word_tables.PLACES)
)
TIMES = tuple(Time(row[0], row[1], row[2], row[3:] == ["past"]) for row in _rows(word_tables.TIMES))

# English: (German, Spanish). After "dann" and "später" the German verb precedes the subject.
CONNECTORS = {"and": ("und", "y"), "but": ("aber", "pero"), "then": ("dann", "luego"), "later": ("später", "más tarde")}
INVERTING = frozenset({"then", "later"})
