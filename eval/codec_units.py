"""Comparison of a codec's speech encoder with its larger teacher encoder, on the same audio."""

from collections.abc import Sequence

from ..speech_encoder_tinywave import SpeechEncoder
from .codec_material import HeldOutUtterance, pairs_of_voices
from .codec_measures import measured_ratio, not_measured
from .codec_quality import count_equal_frames, timed_phones_to_frames, unit_edit_distance, unit_purity

OWN, TEACHER = "codec", "teacher"


def encode_with_both(
    utterances: Sequence[HeldOutUtterance], own: SpeechEncoder, teacher: SpeechEncoder
) -> dict[str, list[list[int]]]:
    """Return the units of every utterance, repeats kept, by the "codec"'s own encoder and by its "teacher"."""
    waveforms = [utterance.waveform for utterance in utterances]
    encoders = {OWN: own, TEACHER: teacher}
    return {name: [row.tolist() for row in encoder.encode(waveforms)] for name, encoder in encoders.items()}


def measure_units(
    utterances: Sequence[HeldOutUtterance], own: SpeechEncoder, teacher: SpeechEncoder, seed: int = 0
) -> dict:
    """Measure the agreement of an encoder's units with its teacher's, and the phonetic information of both.

    Returns:
        {"frame_accuracy", "pnmi": {"codec", "teacher"}, "phone_purity": the same}. Phones and units of a frame are
        counted over the whole set, so that the last two are no means and have no interval.
    """
    units = encode_with_both(utterances, own, teacher)
    record = {"frame_accuracy": not_measured("the two encoders do not count the same units")}
    if own.num_units == teacher.num_units:
        counts = count_equal_frames(units[OWN], units[TEACHER])
        record["frame_accuracy"] = measured_ratio(*zip(*counts, strict=True), seed=seed)
    if not all(utterance.phones for utterance in utterances):
        unknown = not_measured("the phones of this set are not timed")
        return record | {"pnmi": unknown, "phone_purity": unknown}
    purities = {}
    for name, encoder in ((OWN, own), (TEACHER, teacher)):
        labels = [
            timed_phones_to_frames(utterance.phones, len(row), encoder.frame_rate)
            for utterance, row in zip(utterances, units[name], strict=True)
        ]
        purities[name] = unit_purity(units[name], labels)
    for measure in ("pnmi", "phone_purity"):
        record[measure] = {
            name: {"value": getattr(purity, measure), "n": len(utterances), "num_frames": purity.num_frames}
            for name, purity in purities.items()
        }
    return record


def measure_voice_distance(
    utterances: Sequence[HeldOutUtterance], own: SpeechEncoder, teacher: SpeechEncoder, seed: int = 0
) -> dict:
    """Measure how differently the same text is encoded in two voices: 0 for equal units, 1 for no common units.

    Args:
        utterances: the same sentences, each by several voices.

    Returns:
        {"codec", "teacher"}: mean unit edit distance over all pairs of voices, sentence by sentence; n is the number
        of pairs of utterances, and those of one pair of voices are resampled together.
    """
    units = encode_with_both(utterances, own, teacher)
    pairs = list(pairs_of_voices(utterances))
    if not pairs:
        raise ValueError("found no sentence that two voices say; expected the same sentences by several voices")
    groups = [tuple(sorted(utterances[index].voice for index in pair)) for pair in pairs]
    return {
        name: measured_ratio(
            [unit_edit_distance(rows[first], rows[second]) for first, second in pairs], groups=groups, seed=seed
        )
        for name, rows in units.items()
    }
