"""From a corpus recipe to the documents that voices will speak.

A recipe is a mapping (usually YAML) with `seed` and a list `documents`; each entry names a `domain` ("story", "facts",
"word_list" or "book"), a `split`, a `count` and the voices: `voices: hibari` with `styles` (a mapping from style to
weight), or `voices: kokoro-train` / `kokoro-test`, shared out in turn. `kokoro-mixed` are new speakers, each halfway
between two of `kokoro-train` with the same accent.
"""

from collections.abc import Mapping
from importlib.resources import files
from itertools import combinations
from random import Random

from .corpus import TextItem
from .hibari_voice import VOICE as HIBARI
from .kokoro_voice import MIX, TEST_VOICES, TRAIN_VOICES
from .story_language import TEXT_LICENCE, sample_facts, sample_story, sample_word_list, split_of

_MIXED_VOICES = tuple(MIX.join(pair) for pair in combinations(TRAIN_VOICES, 2) if pair[0][0] == pair[1][0])
_VOICES = {
    HIBARI: (HIBARI,),
    "kokoro-train": TRAIN_VOICES,
    "kokoro-test": TEST_VOICES,
    "kokoro-mixed": tuple(Random(0).sample(_MIXED_VOICES, len(_MIXED_VOICES))),
}
_SENTENCES_PER_DOCUMENT = 5


def book_sentences(split: str) -> list[str]:
    """Sentences of Jane Austen's novels (public domain) that belong to `split`, in a fixed order."""
    text = files("tinywave.assets").joinpath("text/austen_sentences.txt").read_text(encoding="utf-8")
    return [sentence for sentence in text.splitlines() if sentence and split_of(sentence) == split]


def _sample_sentences(domain: str, split: str, rng: Random) -> tuple[str, ...]:
    if domain == "story":
        return sample_story(rng, split).sentences
    if domain == "facts":
        return sample_facts(rng, split, _SENTENCES_PER_DOCUMENT)
    if domain == "word_list":
        return tuple(sample_word_list(rng, split) for _ in range(_SENTENCES_PER_DOCUMENT))
    if domain == "book":
        return tuple(rng.sample(book_sentences(split), 3))
    raise ValueError(f"Unknown domain {domain!r}; expected 'story', 'facts', 'word_list' or 'book'.")


def _text_source(domain: str) -> tuple[str, str]:
    if domain == "book":
        return "public domain", "Jane Austen, novels (r-cran-janeaustenr)"
    return TEXT_LICENCE, "tinywave.data.story_language"


def text_items(recipe: Mapping) -> list[TextItem]:
    """Documents of a corpus recipe, the same for the same recipe.

    Raises `ValueError` for an unknown domain, split, voice group or key.
    """
    items = []
    for number, entry in enumerate(recipe["documents"]):
        unknown = set(entry) - {"domain", "split", "count", "voices", "styles"}
        if unknown:
            raise ValueError(f"Entry {number} of `documents` has unknown keys {sorted(unknown)}.")
        if entry["voices"] not in _VOICES:
            raise ValueError(f"Unknown voices {entry['voices']!r}; expected one of {tuple(_VOICES)}.")
        rng = Random(f"{recipe['seed']}/{number}/{entry['domain']}/{entry['split']}")
        items.extend(_entry_items(entry, number, rng))
    return items


def _entry_items(entry: Mapping, number: int, rng: Random) -> list[TextItem]:
    voices, styles = _VOICES[entry["voices"]], entry.get("styles", {"base": 1.0})
    licence, source = _text_source(entry["domain"])
    return [
        TextItem(
            id=f"{entry['split']}-{number:02d}-{entry['domain']}-{index:05d}",
            split=entry["split"],
            domain=entry["domain"],
            sentences=_sample_sentences(entry["domain"], entry["split"], rng),
            voice=voices[index % len(voices)],
            style=rng.choices(tuple(styles), tuple(styles.values()))[0],
            seed=rng.getrandbits(31),
            text_licence=licence,
            source=source,
        )
        for index in range(entry["count"])
    ]
