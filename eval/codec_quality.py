"""Quality of speech units: agreement with a teacher, information about phones, and independence of the voice.

The functions compare existing sequences of units; they do not run an encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..tokenization_tinywave import deduplicate

NO_PHONE = "silence"
"""Label of a frame that lies in no phone."""
MAX_LENGTH_DIFFERENCE = 2
_LEAD_SECONDS = 0.04


@dataclass(frozen=True)
class UnitPurity:
    """Mutual information and purities of units and phones, as in HuBERT (Hsu et al. 2021, arXiv 2106.07447, IV-D).

    Args:
        pnmi (`float`): mutual information of phone and unit / entropy of the phone: the share of the uncertainty about
            the phone that the unit removes. 0 for units independent of the phone, 1 for units that determine it.
        phone_purity (`float`): frame accuracy of guessing the most frequent phone of each unit.
        unit_purity (`float`): frame accuracy of guessing the most frequent unit of each phone ("cluster purity").
        num_frames (`int`): frames counted.
    """

    pnmi: float
    phone_purity: float
    unit_purity: float
    num_frames: int


def count_equal_frames(units: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return, for each utterance, the frames on which two encoders give the same unit, and the frames compared.

    Args:
        units, reference: units of each utterance, repeats kept, at the same rate. An encoder that does not pad may
            give up to two frames less than another; these are not counted.

    Raises `ValueError` when the utterances do not correspond.
    """
    _check_utterances(units, reference, "reference units")
    counts = []
    for found, expected in zip(units, reference, strict=True):
        length = min(len(found), len(expected))
        counts.append((int((np.asarray(found)[:length] == np.asarray(expected)[:length]).sum()), length))
    return counts


def frame_accuracy(units: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Return the share of frames on which two encoders give the same unit, over all utterances together.

    Arguments and errors as of [`count_equal_frames`]; `ValueError` also when there is no frame.
    """
    counts = count_equal_frames(units, reference)
    num_frames = sum(length for _, length in counts)
    if not num_frames:
        raise ValueError("found no frame to compare; expected at least one")
    return sum(equal for equal, _ in counts) / num_frames


def timed_phones_to_frames(
    phones: Sequence[dict], num_frames: int, frame_rate: float = 25.0, lead_seconds: float = _LEAD_SECONDS
) -> list[str]:
    """Return the phone at the middle of every frame.

    Args:
        phones: dictionaries with `phone`, `start` and `end` in seconds, in order, as the corpora hold them.
        num_frames: frames to label.
        frame_rate (`float`, default 25.0): frames per second (Hz).
        lead_seconds (`float`, default 0.04): how much earlier than its stated times a phone is heard. The stated times
            of the hibari and Kokoro voices are 0.04 s late.

    A frame in no phone is labelled [`NO_PHONE`].
    """
    middles = (np.arange(num_frames) + 0.5) / frame_rate + lead_seconds
    if not phones:
        return [NO_PHONE] * num_frames
    ends = np.array([phone["end"] for phone in phones])
    indices = np.minimum(np.searchsorted(ends, middles, side="right"), len(phones) - 1)
    inside = [phones[index]["start"] <= time < ends[index] for index, time in zip(indices, middles, strict=True)]
    return [phones[index]["phone"] if is_in else NO_PHONE for index, is_in in zip(indices, inside, strict=True)]


def unit_purity(units: Sequence[Sequence[int]], phones: Sequence[Sequence[str]]) -> UnitPurity:
    """Compare units with phone labels, frame by frame.

    Args:
        units: units of each utterance, repeats kept.
        phones: labels of the same frames, from [`timed_phones_to_frames`]. Up to two frames more or less are dropped.

    The more units there are, the higher all numbers but `unit_purity`: compare encoders of equal numbers of units on
    the same utterances.

    Raises `ValueError` when the utterances do not correspond or hold one phone only.
    """
    _check_utterances(units, phones, "phone labels")
    pairs = [pair for row in zip(units, phones, strict=True) for pair in zip(*row, strict=False)]
    if len({phone for _, phone in pairs}) < 2:
        raise ValueError(f"found {len(pairs)} frames of fewer than two phones; purity needs at least two")
    _, unit_index = np.unique([unit for unit, _ in pairs], return_inverse=True)
    _, phone_index = np.unique([phone for _, phone in pairs], return_inverse=True)
    counts = np.zeros((phone_index.max() + 1, unit_index.max() + 1))
    np.add.at(counts, (phone_index, unit_index), 1)
    joint = counts / counts.sum()
    phone_share, unit_share = joint.sum(1), joint.sum(0)
    seen = joint > 0
    expected = np.outer(phone_share, unit_share)
    mutual_information = float((joint[seen] * np.log(joint[seen] / expected[seen])).sum())
    entropy = float(-(phone_share * np.log(phone_share)).sum())
    return UnitPurity(
        pnmi=mutual_information / entropy,
        phone_purity=float(counts.max(0).sum() / len(pairs)),
        unit_purity=float(counts.max(1).sum() / len(pairs)),
        num_frames=len(pairs),
    )


def unit_edit_distance(first: Sequence[int], second: Sequence[int]) -> float:
    """Return how differently two renditions of the same text are encoded: 0 for equal units, at most 1.

    The Levenshtein distance between the de-duplicated units / the length of the longer, so that slow and fast speech
    of the same units agree (after Gat et al. 2022, arXiv 2209.15483, section 3).

    Raises `ValueError` for an empty sequence.
    """
    if not len(first) or not len(second):
        raise ValueError("found a rendition without units; expected at least one unit in each")
    first, second = (deduplicate(units)[0].tolist() for units in (first, second))
    return _levenshtein(first, second) / max(len(first), len(second))


def _levenshtein(first: Sequence[int], second: Sequence[int]) -> int:
    """Insertions, deletions and substitutions that turn one sequence into the other."""
    row = list(range(len(second) + 1))
    for count, unit in enumerate(first, start=1):
        above_left, row[0] = row[0], count
        for column, other in enumerate(second, start=1):
            replaced = above_left + (unit != other)
            above_left, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, replaced)
    return row[-1]


def _check_utterances(units: Sequence[Sequence], other: Sequence[Sequence], name: str) -> None:
    if len(units) != len(other):
        raise ValueError(f"found units of {len(units)} utterances and {name} of {len(other)}; expected both of all")
    for index, (found, expected) in enumerate(zip(units, other, strict=True)):
        if abs(len(found) - len(expected)) > MAX_LENGTH_DIFFERENCE:
            raise ValueError(
                f"utterance {index} has {len(found)} units and {len(expected)} {name}; expected the same number up to "
                f"{MAX_LENGTH_DIFFERENCE}: are both of the same audio and rate?"
            )
