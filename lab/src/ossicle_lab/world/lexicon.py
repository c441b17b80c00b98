"""The words of the lab world in English, German and Spanish, read from `ossicle_lab.world.word_tables`."""

from dataclasses import dataclass

from ossicle_lab.world import word_tables


@dataclass(frozen=True)
class Noun:
    """A person, an animal, a thing or a place; `kind` is the letter by which verbs choose their objects."""

    english: str
    synonym: str
    german: str
    german_gender: str
    """One of m, f, n."""
    german_oblique: str
    """Accusative and dative singular; differs from `german` for weak nouns (bär, bären)."""
    spanish: str
    spanish_gender: str
    kind: str
    is_name: bool = False
    """A first name: no article, no adjective, the same in every language."""


@dataclass(frozen=True)
class Adjective:
    """An adjective that stands before an English and German noun and after a Spanish one."""

    english: str
    synonym: str
    german: str
    """Stem to which the endings are added."""
    spanish: str
    """Masculine; a final o becomes a in the feminine."""


@dataclass(frozen=True)
class Verb:
    """A transitive verb; `objects` holds the noun kinds it takes, `gives` says whether it can have a recipient."""

    english: tuple[str, str, str]
    """Past, present third person, base form."""
    synonym: tuple[str, str, str] | None
    german: tuple[str, str]
    """Participle (with hat), present third person."""
    spanish: tuple[str, str]
    """Preterite, present third person."""
    objects: str
    gives: bool


@dataclass(frozen=True)
class Place:
    """A place and the prepositions that mean being there."""

    noun: Noun
    english: str
    """Preposition: in, at or on; near and behind work for every place."""
    german: str
    """Preposition with article: im, am, auf der, ..."""


@dataclass(frozen=True)
class Time:
    """A time as a whole phrase."""

    english: str
    german: str
    spanish: str
    is_past: bool
    """Only with a past tense (yesterday)."""


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

# English -> (German, Spanish); after "dann" and "später" German puts the verb before the subject.
CONNECTORS = {"and": ("und", "y"), "but": ("aber", "pero"), "then": ("dann", "luego"), "later": ("später", "más tarde")}
INVERTING = frozenset({"then", "later"})
