"""Minimal pairs of grammar in the words of the story language, named by the fields of BLiMP (arXiv 1912.00582).

Seven phenomena are those of `data/story_language.py`; five more are made here: reflexives, negative polarity,
agreement past a distractor, and quantifiers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ..data.story_language import (
    ADJECTIVES,
    BOYS,
    GIRLS,
    PHENOMENA,
    RELATIVES,
    TOPICS,
    VERB_FORMS,
    plural,
    split_of,
)


@dataclass(frozen=True)
class BlimpPair:
    """`field` and `subtype`: names of the phenomenon; `grammatical`, `ungrammatical`: one sentence, two ways."""

    field: str
    subtype: str
    grammatical: str
    ungrammatical: str


def _anaphor_gender(rng: Random) -> tuple[str, str]:
    girl = rng.random() < 0.5
    name, landmark = rng.choice(GIRLS if girl else BOYS), rng.choice(rng.choice(TOPICS).landmarks)
    verb = rng.choice(("hid", "saw", "washed", "warmed", "hurt", "found"))
    right, wrong = ("herself", "himself") if girl else ("himself", "herself")
    return f"{name} {verb} {right} near the {landmark}.", f"{name} {verb} {wrong} near the {landmark}."


def _anaphor_number(rng: Random) -> tuple[str, str]:
    relative, landmark = rng.choice(RELATIVES), rng.choice(rng.choice(TOPICS).landmarks)
    verb, place = rng.choice(("hid", "saw", "washed", "warmed", "hurt")), rng.choice(("behind", "near"))
    wrong = "herself" if relative in ("sister", "mother", "grandmother") else "himself"
    start, end = f"The {plural(relative)} {verb}", f"{place} the {landmark}."
    return f"{start} themselves {end}", f"{start} {wrong} {end}"


def _negative_polarity(rng: Random) -> tuple[str, str]:
    participle, adjective = rng.choice(VERB_FORMS)[2], rng.choice(ADJECTIVES)
    rest = f"has ever {participle} this {adjective} {rng.choice(rng.choice(TOPICS).things)}."
    return f"Nobody {rest}", f"Everybody {rest}"


def _distractor_agreement(rng: Random) -> tuple[str, str]:
    topic = rng.choice(TOPICS)
    first, second = rng.sample(topic.things, 2)
    many = rng.random() < 0.5
    subject = f"The {plural(first) if many else first} near the {second if many else plural(second)}"
    right, wrong = ("are", "is") if many else ("is", "are")
    adjective = rng.choice(ADJECTIVES)
    return f"{subject} {right} {adjective}.", f"{subject} {wrong} {adjective}."


def _quantifier(rng: Random) -> tuple[str, str]:
    topic = rng.choice(TOPICS)
    start = rng.choice(("There are too", "There were so"))
    end = f"{plural(rng.choice(topic.things))} at the {topic.place}."
    return f"{start} many {end}", f"{start} much {end}"


_FIELDS = {
    "determiner_noun_agreement": "determiner_noun_agreement",
    "subject_verb_agreement": "subject_verb_agreement",
    "third_person_verb": "subject_verb_agreement",
    "distractor_agreement": "subject_verb_agreement",
    "auxiliary_participle": "irregular_forms",
    "adjective_order": "word_order",
    "article_order": "word_order",
    "possessive_gender": "anaphor_agreement",
    "anaphor_gender_agreement": "anaphor_agreement",
    "anaphor_number_agreement": "anaphor_agreement",
    "negative_polarity": "npi_licensing",
    "many_much": "quantifiers",
}

_SAMPLERS: dict[str, Callable[[Random], tuple[str, str]]] = PHENOMENA | {
    "anaphor_gender_agreement": _anaphor_gender,
    "anaphor_number_agreement": _anaphor_number,
    "negative_polarity": _negative_polarity,
    "distractor_agreement": _distractor_agreement,
    "many_much": _quantifier,
}

SUBTYPES = tuple(_FIELDS)
"""Names of all phenomena."""


def sample_blimp_pair(rng: Random, subtype: str, split: str) -> BlimpPair:
    """One pair of a phenomenon whose grammatical sentence belongs to `split`."""
    while True:
        grammatical, ungrammatical = _SAMPLERS[subtype](rng)
        if split_of(grammatical) == split:
            return BlimpPair(_FIELDS[subtype], subtype, grammatical, ungrammatical)
