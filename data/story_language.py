"""A small, closed English: five-sentence stories, plain facts and word lists, sampled from a grammar.

A nano model sees about ten million tokens, too few for open English. This language keeps what the evaluation suites
measure - words, agreement and word order, topics that run through a story - inside some 300 content words, so that a
five-million-parameter teacher can learn it from synthetic speech.

Every *sentence* belongs to one split, decided by a hash of its text, and a document holds sentences of its own split
only. Held-out documents therefore share words and patterns with the training set, and no sentence.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

SPLITS = ("train", "validation", "test")
TEXT_LICENCE = "Apache-2.0 (sampled from the TinyWave story grammar)"


@dataclass(frozen=True)
class Topic:
    """Words that occur together: a place, landmarks in it, things found there and what is done with them."""

    name: str
    place: str
    landmarks: tuple[str, ...]
    things: tuple[str, ...]
    verbs: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """Five sentences about one topic; the last sentence is the ending."""

    topic: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class StoryPair:
    """A four-sentence context with its own ending and the ending of a story of another topic (topic StoryCloze)."""

    context: tuple[str, ...]
    right: str
    wrong: str
    topic: str
    wrong_topic: str


@dataclass(frozen=True)
class GrammarPair:
    """A sentence and the same sentence with one rule broken (after BLiMP, arXiv 1912.00582)."""

    phenomenon: str
    grammatical: str
    ungrammatical: str


def _topic(name: str, place: str, landmarks: str, things: str, verbs: str) -> Topic:
    return Topic(name, place, tuple(landmarks.split()), tuple(things.split()), tuple(verbs.split()))


TOPICS = (
    _topic(
        "farm",
        "farm",
        "barn fence pond meadow",
        "cow goat hen horse duck lamb donkey",
        "fed brushed chased counted",
    ),
    _topic(
        "beach",
        "beach",
        "pier rock wave cliff",
        "shell crab pebble bucket towel kite boat",
        "found rinsed carried hid",
    ),
    _topic(
        "cooking",
        "kitchen",
        "oven table sink shelf",
        "cake pie pancake cookie onion carrot muffin",
        "baked tasted sliced served",
    ),
    _topic(
        "garden",
        "garden",
        "gate bench hedge path",
        "rose tulip tomato daisy shovel bush flower",
        "planted watered trimmed smelled",
    ),
    _topic(
        "school",
        "school",
        "desk window blackboard hallway",
        "book pencil poem map puzzle letter notebook",
        "copied finished studied opened",
    ),
    _topic(
        "forest",
        "forest",
        "stream cave log clearing",
        "fox owl mushroom acorn squirrel rabbit beetle",
        "followed spotted watched heard",
    ),
    _topic(
        "market",
        "market",
        "stall corner fountain counter",
        "apple melon basket coin ribbon lemon peach",
        "bought sold weighed wrapped",
    ),
    _topic(
        "winter",
        "mountain",
        "slope cabin valley glacier",
        "sled snowman mitten scarf glove icicle blanket",
        "pulled warmed shook dropped",
    ),
    _topic(
        "travel",
        "station",
        "platform tunnel bridge clock",
        "ticket suitcase engine whistle wagon passenger driver",
        "checked lost noticed greeted",
    ),
    _topic(
        "music",
        "theater",
        "stage curtain balcony doorway",
        "drum violin flute trumpet piano guitar singer",
        "played tuned practiced admired",
    ),
    _topic(
        "animals",
        "zoo",
        "cage wall tower island",
        "lion tiger monkey giraffe parrot zebra panda",
        "photographed named teased feared",
    ),
    _topic(
        "building",
        "workshop",
        "cellar attic floor corridor",
        "hammer nail ladder chair wheel cupboard drawer",
        "mended measured lifted sanded",
    ),
    _topic(
        "sea",
        "harbor",
        "lighthouse dock reef current",
        "ship anchor sail whale sailor lantern dolphin",
        "steered painted saluted rescued",
    ),
    _topic(
        "sport",
        "stadium",
        "goal bleacher track scoreboard",
        "ball racket jersey helmet trophy runner referee",
        "kicked tossed caught cheered",
    ),
)

GIRLS = ("Anna", "Emma", "Lucy", "Mary", "Ruth", "Sarah", "Nina", "Alice")
BOYS = ("Peter", "Jack", "Henry", "David", "Oscar", "Martin", "Simon", "Robert")
RELATIVES = (
    "brother",
    "sister",
    "mother",
    "father",
    "uncle",
    "cousin",
    "teacher",
    "neighbor",
    "grandmother",
    "friend",
)
ADJECTIVES = (
    "red", "blue", "green", "yellow", "small", "big", "old", "shiny", "pretty", "heavy", "little", "brown",
    "white", "golden", "tiny", "strange", "perfect", "broken",
)  # fmt: skip
FEELINGS = ("happy", "tired", "proud", "hungry", "excited", "nervous", "quiet", "surprised")
DAY_TIMES = ("sunny morning", "rainy afternoon", "windy day", "cold evening", "warm morning", "cloudy afternoon")
# (base, third person, past participle): the forms that agreement and auxiliary pairs contrast.
VERB_FORMS = (
    ("see", "sees", "seen"), ("take", "takes", "taken"), ("eat", "eats", "eaten"), ("give", "gives", "given"),
    ("choose", "chooses", "chosen"), ("break", "breaks", "broken"), ("hide", "hides", "hidden"),
    ("draw", "draws", "drawn"), ("forget", "forgets", "forgotten"), ("steal", "steals", "stolen"),
)  # fmt: skip


def split_of(sentence: str) -> str:
    """Split of a sentence: 8 in 10 by the SHA-256 of its text are "train", 1 "validation", 1 "test"."""
    bucket = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4], "big") % 10
    return "validation" if bucket == 8 else "test" if bucket == 9 else "train"


def plural(noun: str) -> str:
    """Regular plural of a noun of this language."""
    if noun.endswith(("s", "ch", "sh", "x")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun == "tomato" else "s")


def content_words() -> tuple[str, ...]:
    """Every content word of the language in alphabetical order (nouns, verbs, adjectives; no names)."""
    words = {*ADJECTIVES, *FEELINGS, *RELATIVES}
    for topic in TOPICS:
        words.update((topic.place, *topic.landmarks, *topic.things, *topic.verbs))
    words.update(form for forms in VERB_FORMS for form in forms)
    words.update(word for day_time in DAY_TIMES for word in day_time.split())
    return tuple(sorted(words))


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


class _NoSentenceInSplit(Exception):
    """A scene whose few sentences of one kind all belong to other splits."""


def _in_split(sample: Callable[[], str], split: str, max_draws: int = 300) -> str:
    """Draws from `sample` until the sentence falls into `split`."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; expected one of {SPLITS}.")
    for _ in range(max_draws):
        if split_of(sentence := sample()) == split:
            return sentence
    raise _NoSentenceInSplit


@dataclass(frozen=True)
class _Scene:
    """What stays fixed through one story."""

    topic: Topic
    name: str
    subject: str
    possessive: str
    companion: str
    things: tuple[str, ...]
    landmark: str


def _sample_scene(rng: Random, topic: Topic) -> _Scene:
    girl = rng.random() < 0.5
    possessive = "her" if girl else "his"
    return _Scene(
        topic=topic,
        name=rng.choice(GIRLS if girl else BOYS),
        subject="she" if girl else "he",
        possessive=possessive,
        companion=f"{possessive} {rng.choice(RELATIVES)}",
        things=tuple(rng.sample(topic.things, 3)),
        landmark=rng.choice(topic.landmarks),
    )


def _opening(rng: Random, scene: _Scene) -> str:
    return rng.choice(
        (
            f"On a {rng.choice(DAY_TIMES)}, {scene.name} went to the {scene.topic.place} with {scene.companion}.",
            f"One {rng.choice(DAY_TIMES)}, {scene.name} and {scene.companion} walked to the {scene.topic.place}.",
            f"{scene.name} was {rng.choice(FEELINGS)} and ran to the {scene.topic.place} to meet {scene.companion}.",
            f"{scene.name} and {scene.companion} were at the {scene.topic.place} on a {rng.choice(DAY_TIMES)}.",
        )
    )


def _discovery(rng: Random, scene: _Scene) -> str:
    thing = _article(f"{rng.choice(ADJECTIVES)} {scene.things[0]}")
    return rng.choice(
        (
            f"There {scene.subject} saw {thing} near the {scene.landmark}.",
            f"Behind the {scene.landmark}, {scene.subject} found {thing}.",
            f"{scene.name} looked at the {scene.landmark} and saw {thing}.",
            f"Next to the {scene.landmark} there was {thing}.",
        )
    )


def _action(rng: Random, scene: _Scene) -> str:
    first, second = rng.sample(scene.topic.verbs, 2)
    adjective = rng.choice(ADJECTIVES)
    return rng.choice(
        (
            f"{scene.name} {first} the {scene.things[0]} and {second} the {adjective} {scene.things[1]}.",
            f"First {scene.subject} {first} the {scene.things[0]}, "
            f"then {scene.subject} {second} the {scene.things[1]}.",
            f"{scene.subject.capitalize()} {first} the {adjective} {scene.things[1]} and the {scene.things[0]}.",
            f"With {scene.companion}, {scene.subject} {first} the {adjective} {scene.things[1]}.",
        )
    )


def _turn(rng: Random, scene: _Scene) -> str:
    verb, feeling = rng.choice(scene.topic.verbs), rng.choice(FEELINGS)
    return rng.choice(
        (
            f"{scene.companion.capitalize()} was {feeling} and {verb} the {scene.things[2]}.",
            f"Then {scene.companion} {verb} {_article(rng.choice(ADJECTIVES))} {scene.things[2]}.",
            f"{scene.companion.capitalize()} pointed to the {scene.landmark} and {verb} the {scene.things[2]}.",
            f"After that, {scene.name} {verb} the {scene.things[2]} and felt {feeling}.",
        )
    )


def _ending(rng: Random, scene: _Scene) -> str:
    adjective = rng.choice(ADJECTIVES)
    return rng.choice(
        (
            f"At last, {scene.subject} took the {adjective} {scene.things[0]} home from the {scene.topic.place}.",
            f"In the end, the {scene.things[0]} and the {scene.things[1]} stayed at the {scene.topic.place}.",
            f"That night, {scene.subject} dreamed about the {adjective} {scene.things[0]} near the {scene.landmark}.",
            f"{scene.subject.capitalize()} never forgot the {scene.things[0]} at the {scene.topic.place}.",
            f"So they left the {scene.topic.place} with the {scene.things[2]} and the {adjective} {scene.things[0]}.",
        )
    )


_BODY = (_opening, _discovery, _action, _turn)


def sample_story(rng: Random, split: str) -> Story:
    """Samples one five-sentence story, all sentences of `split`."""
    scene = _sample_scene(rng, rng.choice(TOPICS))
    parts = (*_BODY, _ending)
    try:
        return Story(scene.topic.name, tuple(_in_split(lambda part=part: part(rng, scene), split) for part in parts))
    except _NoSentenceInSplit:
        return sample_story(rng, split)


def sample_story_pair(rng: Random, split: str) -> StoryPair:
    """Samples a story and an ending about another topic, told of the same person with the same words around it.

    Every sentence is of `split`, the wrong ending included: neither ending has been heard in training.
    """
    topic, other = rng.sample(TOPICS, 2)
    scene = _sample_scene(rng, topic)
    elsewhere = replace(
        scene, topic=other, things=tuple(rng.sample(other.things, 3)), landmark=rng.choice(other.landmarks)
    )
    try:
        context = tuple(_in_split(lambda part=part: part(rng, scene), split) for part in _BODY)
        right, wrong = _sample_endings(rng, scene, elsewhere, split)
    except _NoSentenceInSplit:
        return sample_story_pair(rng, split)
    return StoryPair(context, right, wrong, topic.name, other.name)


def _sample_endings(
    rng: Random, scene: _Scene, elsewhere: _Scene, split: str, max_draws: int = 2000
) -> tuple[str, str]:
    """The same ending told of two scenes: one seed chooses template and adjective of both."""
    for _ in range(max_draws):
        seed = rng.random()
        endings = _ending(Random(seed), scene), _ending(Random(seed), elsewhere)
        if all(split_of(ending) == split for ending in endings):
            return endings
    raise _NoSentenceInSplit


def _determiner_noun(rng: Random) -> tuple[str, str]:
    noun, adjective = rng.choice(rng.choice(TOPICS).things), rng.choice(ADJECTIVES)
    feeling = rng.choice(("very", "really", "not"))
    if rng.random() < 0.5:
        return f"These {plural(noun)} are {feeling} {adjective}.", f"These {noun} are {feeling} {adjective}."
    return f"This {noun} is {feeling} {adjective}.", f"This {plural(noun)} is {feeling} {adjective}."


def _subject_verb(rng: Random) -> tuple[str, str]:
    topic = rng.choice(TOPICS)
    noun, adjective, landmark = rng.choice(topic.things), rng.choice(ADJECTIVES), rng.choice(topic.landmarks)
    many = rng.random() < 0.5
    subject = f"The {adjective} {plural(noun) if many else noun}"
    right, wrong = ("are", "is") if many else ("is", "are")
    return f"{subject} {right} near the {landmark}.", f"{subject} {wrong} near the {landmark}."


def _auxiliary(rng: Random) -> tuple[str, str]:
    base, _, participle = rng.choice(VERB_FORMS)
    name, noun, adjective = rng.choice(GIRLS + BOYS), rng.choice(rng.choice(TOPICS).things), rng.choice(ADJECTIVES)
    return f"{name} has {participle} the {adjective} {noun}.", f"{name} has {base} the {adjective} {noun}."


def _third_person(rng: Random) -> tuple[str, str]:
    base, third, _ = rng.choice(VERB_FORMS)
    noun, relative = rng.choice(rng.choice(TOPICS).things), rng.choice(RELATIVES)
    if rng.random() < 0.5:
        company = f"the {noun} with my {relative}."
        return f"They often {base} {company}", f"They often {third} {company}"
    return f"My {relative} often {third} the {noun}.", f"My {relative} often {base} the {noun}."


def _adjective_order(rng: Random) -> tuple[str, str]:
    topic = rng.choice(TOPICS)
    name, noun, adjective = rng.choice(GIRLS + BOYS), rng.choice(topic.things), rng.choice(ADJECTIVES)
    verb, place = rng.choice(topic.verbs), topic.place
    return (
        f"{name} {verb} the {adjective} {noun} at the {place}.",
        f"{name} {verb} the {noun} {adjective} at the {place}.",
    )


def _article_order(rng: Random) -> tuple[str, str]:
    topic = rng.choice(TOPICS)
    name, noun, landmark = rng.choice(GIRLS + BOYS), rng.choice(topic.things), rng.choice(topic.landmarks)
    verb = rng.choice(topic.verbs)
    return f"{name} {verb} the {noun} near the {landmark}.", f"{name} {verb} {noun} the near the {landmark}."


def _gender(rng: Random) -> tuple[str, str]:
    girl = rng.random() < 0.5
    name, relative = rng.choice(GIRLS if girl else BOYS), rng.choice(RELATIVES)
    noun = rng.choice(rng.choice(TOPICS).things)
    right, wrong = ("her", "his") if girl else ("his", "her")
    return f"{name} and {right} {relative} like the {noun}.", f"{name} and {wrong} {relative} like the {noun}."


PHENOMENA = {
    "determiner_noun_agreement": _determiner_noun,
    "subject_verb_agreement": _subject_verb,
    "auxiliary_participle": _auxiliary,
    "third_person_verb": _third_person,
    "adjective_order": _adjective_order,
    "article_order": _article_order,
    "possessive_gender": _gender,
}


def sample_grammar_pair(rng: Random, split: str) -> GrammarPair:
    """Samples one grammatical sentence of `split` and its ungrammatical twin."""
    phenomenon = rng.choice(tuple(PHENOMENA))
    while True:
        grammatical, ungrammatical = PHENOMENA[phenomenon](rng)
        if split_of(grammatical) == split:
            return GrammarPair(phenomenon, grammatical, ungrammatical)


def sample_facts(rng: Random, split: str, num_sentences: int = 3) -> tuple[str, ...]:
    """Samples plain sentences: the grammatical halves of the minimal pairs."""
    return tuple(sample_grammar_pair(rng, split).grammatical for _ in range(num_sentences))


def sample_word_list(rng: Random, split: str) -> str:
    """Samples two to four content words read one after the other, such as "Barn, violin, yellow."."""
    words = content_words()
    return _in_split(lambda: ", ".join(rng.sample(words, rng.randint(2, 4))).capitalize() + ".", split)
