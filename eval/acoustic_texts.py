"""Sentences that tell a mood or a place, for the parts of a suite where the sound has to fit the words.

They are filled templates, all of the split "test" by `split_of`. A sentence names what is heard or felt, as those
written for SALMon do ("sentiment alignment" and "background alignment", arXiv 2409.07437).
"""

from random import Random

from ..data.story_language import BOYS, GIRLS, split_of

MOOD_TEMPLATES = {
    "happy": (
        "{name} won the {prize} and everybody cheered with joy.",
        "What a wonderful day, {name} is coming home and we will celebrate {when}.",
        "I love this {prize}, it is the best present {name} ever gave me.",
        "We laughed and danced all night because {name} passed the exam {when}.",
        "Great news, {name} is healthy again and we all feel fantastic {when}.",
    ),
    "sad": (
        "{name} lost the {prize} and cried alone the whole night.",
        "I miss {name} so much, the house feels empty and cold {when}.",
        "Nobody came to the funeral of {name} {when}, and my heart is broken.",
        "The old dog died in the arms of {name}, and we buried it {when}.",
        "{name} sold the {prize} in tears, there was no hope left.",
    ),
    "angry": (
        "{name} stole my {prize} again, and I will not forgive it this time.",
        "How dare you shout at {name} {when}, get out of my house.",
        "I am furious, {name} broke the {prize} and lied about it.",
        "Stop it, {name}, you ruined everything {when} and I hate it.",
        "This is an outrage, {name} destroyed our {prize} on purpose.",
    ),
}
"""Mood, which is a style of the hibari voice -> sentences that only this mood fits."""

SCENE_TEMPLATES = {
    "rain": (
        "{name} forgot the umbrella {when}, and the rain is pouring down on us.",
        "Listen to the heavy rain on the roof, {name}, we cannot go out {when}.",
        "Raindrops fall on the window while {name} waits for the storm to end {when}.",
    ),
    "wind": (
        "The wind blows so hard {when} that {name} can hardly stand.",
        "Hold your hat, {name}, this gale is bending the trees {when}.",
        "A storm wind howls around the cabin where {name} sits {when}.",
    ),
    "waves": (
        "{name} sits on the beach {when} and listens to the waves.",
        "The waves of the ocean roll to the shore, {name}, let us swim {when}.",
        "Every wave washes over the sand castle that {name} built {when}.",
    ),
    "engine": (
        "{name} started the engine {when}, and the old truck drives up the hill.",
        "The motor of this car hums loudly, {name}, drive slower {when}.",
        "Our bus has a noisy engine, so {name} cannot sleep {when}.",
    ),
    "crowd": (
        "{name} lost us {when} in a crowded hall full of talking people.",
        "Everybody at the party is talking at once, {name}, come closer {when}.",
        "The restaurant is packed {when}, and {name} cannot hear me over the chatter.",
    ),
    "alarm": (
        "The fire alarm is ringing, {name}, leave the building {when}.",
        "{name} set off the alarm {when}, and the siren will not stop.",
        "An ambulance with its siren on stopped in front of {name} {when}.",
    ),
    "music": (
        "{name} plays the guitar {when}, what a lovely melody.",
        "Turn up the music, {name}, this is my favorite song {when}.",
        "The band plays a slow tune for {name} {when}.",
    ),
    "footsteps": (
        "Somebody is walking behind {name} {when}, I hear the steps.",
        "{name} walks down the long corridor {when} in heavy boots.",
        "Those footsteps on the stairs must be {name} coming home {when}.",
    ),
    "clock": (
        "The old clock is ticking on the wall, and {name} is late {when}.",
        "{name} stares at the clock {when} and counts the seconds.",
        "Every tick of the clock tells {name} that time runs out {when}.",
    ),
    "birds": (
        "The birds are singing in the trees, {name}, spring came {when}.",
        "{name} woke up {when} because a bird sang at the window.",
        "Hear the birds chirp in the forest where {name} walks {when}.",
    ),
}
"""Domain of `eval/background_sounds.py` -> sentences in which it is heard."""

_SLOTS = {
    "name": (*GIRLS, *BOYS),
    "prize": (
        "race",
        "house",
        "car",
        "medal",
        "picture",
        "garden",
        "guitar",
        "boat",
        "bicycle",
        "piano",
        "watch",
        "camera",
    ),  # fmt: skip
    "when": (
        "today",
        "tonight",
        "this morning",
        "this evening",
        "right now",
        "once more",
        "again",
        "at last",
        "this summer",
        "after school",
        "at noon",
        "on Sunday",
    ),  # fmt: skip
}
_MAX_DRAWS = 10_000


def sample_telling_sentence(templates: tuple[str, ...], rng: Random, used: set[str]) -> str:
    """A filled template of the split "test" that is not in `used`, to which it is added.

    Raises `ValueError` once the sentences are used up (some tens for each mood and domain).
    """
    for _ in range(_MAX_DRAWS):
        sentence = rng.choice(templates).format(**{slot: rng.choice(words) for slot, words in _SLOTS.items()})
        if sentence not in used and split_of(sentence) == "test":
            used.add(sentence)
            return sentence
    raise ValueError(f"Found no further sentence like {templates[0]!r} after {len(used)}; ask for fewer pairs.")
