"""Represent a sentence by its content (who did what, for whom, where, when) and render it in three languages.

english  the old doctor gave a red book to anna in the park on monday
german   der alte arzt hat am montag anna ein rotes buch im park gegeben
spanish  el médico viejo dio un libro rojo a anna en el parque el lunes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ossicle_lab.world.lexicon import CONNECTORS, INVERTING, Adjective, Noun, Place, Time, Verb

Language = Literal["en", "de", "es"]
ENGLISH: Language = "en"
TRANSLATIONS: tuple[Language, ...] = ("de", "es")

_GERMAN_THE = {
    "nominative": {"m": "der", "f": "die", "n": "das"},
    "accusative": {"m": "den", "f": "die", "n": "das"},
    "dative": {"m": "dem", "f": "der", "n": "dem"},
}
_GERMAN_A = {"m": "einen", "f": "eine", "n": "ein"}  # accusative: only objects are indefinite here
_GERMAN_A_ADJECTIVE = {"m": "en", "f": "e", "n": "es"}


@dataclass(frozen=True)
class Phrase:
    """A noun with its article and adjective. ``swapped`` selects the synonyms."""

    noun: Noun
    adjective: Adjective | None = None
    definite: bool = True
    swapped: bool = False

    def english(self) -> str:
        """Return the English words, e.g. ``anna``, ``the doctor`` or ``an old book``."""
        noun = _variant(self.noun.english, self.noun.synonym, self.swapped)
        if self.noun.is_name:
            return noun
        words = [noun]
        if self.adjective:
            words.insert(0, _variant(self.adjective.english, self.adjective.synonym, self.swapped))
        article = "the" if self.definite else ("an" if words[0][0] in "aeio" or words[0] == "umbrella" else "a")
        return " ".join([article, *words])

    def german(self, case: str) -> str:
        """Return the German words in the nominative, accusative or dative. Indefinite phrases need the accusative."""
        if self.noun.is_name:
            return self.noun.german
        gender = self.noun.german_gender
        noun = self.noun.german if case == "nominative" else self.noun.german_oblique
        if not self.definite:
            article, ending = _GERMAN_A[gender], _GERMAN_A_ADJECTIVE[gender]
        else:
            article = _GERMAN_THE[case][gender]
            weak_e = case == "nominative" or (case == "accusative" and gender != "m")
            ending = "e" if weak_e else "en"
        return " ".join([article, *([self.adjective.german + ending] if self.adjective else []), noun])

    def spanish(self) -> str:
        """Return the Spanish words, with the adjective after the noun."""
        if self.noun.is_name:
            return self.noun.spanish
        feminine = self.noun.spanish_gender == "f"
        article = ("la" if feminine else "el") if self.definite else ("una" if feminine else "un")
        adjective = self.adjective.spanish if self.adjective else ""
        if feminine and adjective.endswith("o"):
            adjective = adjective[:-1] + "a"
        return " ".join(filter(None, [article, self.noun.spanish, adjective]))


@dataclass(frozen=True)
class Where:
    """A place with its preposition. ``relation`` is ``home`` (in the park, at the station), ``near`` or ``behind``."""

    place: Place
    relation: str = "home"
    swapped: bool = False

    def english(self) -> str:
        """Return the English words, e.g. ``in the park``, ``near the park`` or ``behind the park``."""
        preposition = self.place.english if self.relation == "home" else self.relation
        return f"{preposition} {Phrase(self.place.noun, swapped=self.swapped).english()}"

    def german(self) -> str:
        """Return the German words, e.g. ``im park``, ``beim park`` or ``hinter dem park``."""
        noun, gender = self.place.noun.german, self.place.noun.german_gender
        if self.relation == "home":
            return f"{self.place.german} {noun}"
        if self.relation == "near":
            return f"{'bei der' if gender == 'f' else 'beim'} {noun}"
        return f"hinter {_GERMAN_THE['dative'][gender]} {noun}"

    def spanish(self) -> str:
        """Return the Spanish words, e.g. ``en el parque``, ``cerca del parque`` or ``detrás del parque``."""
        preposition = {"home": "en", "near": "cerca de", "behind": "detrás de"}[self.relation]
        return _contract(f"{preposition} {Phrase(self.place.noun).spanish()}")


@dataclass(frozen=True)
class Sentence:
    """A sentence with subject, verb, object and optional parts. ``connector`` joins it to the sentence before."""

    subject: Phrase
    verb: Verb
    object: Phrase
    recipient: Phrase | None = None
    companion: Phrase | None = None
    where: Where | None = None
    when: Time | None = None
    connector: str = ""
    time_first: bool = False
    present: bool = False
    swapped: bool = False

    def text(self, language: Language = "en") -> str:
        """Return the sentence with its connector, in lower-case words."""
        return {"en": self._english, "de": self._german, "es": self._spanish}[language]()

    def verb_form(self, form: int) -> str:
        """Return a form of the English verb or of its synonym: 0 for past, 1 for present, 2 for the base form."""
        forms = self.verb.synonym if self.swapped and self.verb.synonym else self.verb.english
        return forms[form]

    def core(self) -> str:
        """Return who does what to what, without synonyms and details. It decides the split of the sentence."""
        return f"{self.subject.noun.english} {self.verb.english[2]} {self.object.noun.english}"

    def with_synonyms(self) -> Sentence:
        """Return the sentence with synonyms and original words exchanged."""
        return replace(
            self,
            subject=replace(self.subject, swapped=not self.subject.swapped),
            object=replace(self.object, swapped=not self.object.swapped),
            recipient=self.recipient and replace(self.recipient, swapped=not self.recipient.swapped),
            companion=self.companion and replace(self.companion, swapped=not self.companion.swapped),
            where=self.where and replace(self.where, swapped=not self.where.swapped),
            swapped=not self.swapped,
        )

    def _english(self) -> str:
        when = self.when.english if self.when else ""
        return _join(
            self.connector,
            when if self.time_first else "",
            self.subject.english(),
            self.verb_form(1 if self.present else 0),
            self.object.english(),
            f"to {self.recipient.english()}" if self.recipient else "",
            f"with {self.companion.english()}" if self.companion else "",
            self.where.english() if self.where else "",
            "" if self.time_first else when,
        )

    def _german(self) -> str:
        participle, present = self.verb.german
        finite, last = (present, "") if self.present else ("hat", participle)
        subject = self.subject.german("nominative")
        when = self.when.german if self.when else ""
        inverted = self.time_first or self.connector in INVERTING
        return _join(
            CONNECTORS[self.connector][0] if self.connector else "",
            when if self.time_first else "",
            *((finite, subject) if inverted else (subject, finite)),
            "" if self.time_first else when,
            self.recipient.german("dative") if self.recipient else "",
            self.object.german("accusative"),
            f"mit {self.companion.german('dative')}" if self.companion else "",
            self.where.german() if self.where else "",
            last,
        )

    def _spanish(self) -> str:
        personal = "a " if self.object.noun.kind == "p" else ""
        when = self.when.spanish if self.when else ""
        return _join(
            CONNECTORS[self.connector][1] if self.connector else "",
            when if self.time_first else "",
            self.subject.spanish(),
            self.verb.spanish[1 if self.present else 0],
            _contract(personal + self.object.spanish()),
            _contract(f"a {self.recipient.spanish()}") if self.recipient else "",
            f"con {self.companion.spanish()}" if self.companion else "",
            self.where.spanish() if self.where else "",
            "" if self.time_first else when,
        )


def render(sentences: Sequence[Sentence], language: Language = "en") -> str:
    """Return all sentences of a passage, joined by spaces."""
    return " ".join(sentence.text(language) for sentence in sentences)


def _variant(word: str, synonym: str, swapped: bool) -> str:
    return synonym if swapped and synonym else word


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _contract(spanish: str) -> str:
    """Contract ``a el`` to ``al`` and ``de el`` to ``del``."""
    words = f" {spanish} ".replace(" a el ", " al ").replace(" de el ", " del ")
    return words.strip()
