"""The hibari voice, judged by its sound."""

import numpy as np
import pytest
from hibari import Hibari

from tinywave.data.hibari_voice import STYLES, HibariDecoder, HibariVoice, SpeakingStyle

TEXT = "My mother moved the long yellow ladder."


@pytest.fixture(scope="module")
def voice():
    return HibariVoice()


@pytest.fixture(scope="module")
def utterances(voice):
    return {style: voice.synthesize(TEXT, style=style, return_features=True) for style in STYLES}


def pitch_of(waveform: np.ndarray, rate: int = 24_000) -> np.ndarray:
    """Pitch of the clearly periodic 50 ms windows in Hz, by autocorrelation."""
    pitches = []
    for start in range(0, len(waveform) - 1200, 600):
        window = waveform[start : start + 1200] - waveform[start : start + 1200].mean()
        correlation = np.correlate(window, window, "full")[1199:]
        lags = np.arange(rate // 400, rate // 80)
        # The estimate is divided by the overlap, so that long lags do not look less periodic.
        normalized = correlation[lags] / (correlation[0] + 1e-3) * 1200 / (1200 - lags)
        best = normalized.argmax()
        if normalized[best] > 0.8:
            pitches.append(rate / lags[best])
    return np.array(pitches)


def centroid_of(waveform: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(waveform)) ** 2
    return float((np.fft.rfftfreq(len(waveform), 1 / 24_000) * power).sum() / power.sum())


def test_the_base_style_sounds_like_the_package_itself(utterances):
    utterance = utterances["base"]
    expected = Hibari().from_phonemes(utterance.phonemes, seed=0)
    np.testing.assert_allclose(utterance.waveform, expected, atol=1e-3)


def test_equal_arguments_give_equal_samples_and_the_seed_matters(voice, utterances):
    np.testing.assert_array_equal(HibariVoice().synthesize(TEXT).waveform, utterances["base"].waveform)
    assert not np.array_equal(voice.synthesize(TEXT, seed=1).waveform, utterances["base"].waveform)


@pytest.mark.parametrize("style", STYLES)
def test_waveforms_are_sane(utterances, style):
    utterance = utterances[style]
    frames = len(utterance.decoder_features)
    assert utterance.waveform.dtype == np.float32
    assert 0.1 < np.abs(utterance.waveform).max() <= 0.95
    assert utterance.waveform.shape == (600 * frames,)
    assert utterance.decoder_features.shape == (frames, 128)
    assert utterance.f0.shape == utterance.energy.shape == (2 * frames,)
    assert utterance.words[-1].end <= len(utterance.waveform) / utterance.sampling_rate


def test_styles_change_pitch_range_speed_and_timbre(utterances):
    pitch = {style: pitch_of(utterance.waveform) for style, utterance in utterances.items()}
    middle = {style: np.median(values) for style, values in pitch.items()}
    spread = {style: np.subtract(*np.percentile(np.log(values), [90, 10])) for style, values in pitch.items()}
    length = {style: len(utterance.waveform) for style, utterance in utterances.items()}
    centroid = {style: centroid_of(utterance.waveform) for style, utterance in utterances.items()}
    assert middle["happy"] > 1.1 * middle["base"]
    assert spread["sad"] < 0.7 * spread["base"] < spread["happy"]
    assert length["happy"] < length["base"] < length["sad"]
    assert centroid["sad"] < centroid["base"] < centroid["angry"]


def test_breath_adds_noise(utterances):
    def noise_share(waveform):
        power = np.abs(np.fft.rfft(waveform)) ** 2
        return power[len(power) // 2 :].sum() / power.sum()

    assert noise_share(utterances["breathy"].waveform) > 1.4 * noise_share(utterances["base"].waveform)


def test_warp_moves_the_formants_and_keeps_pitch_and_times(voice, utterances):
    base, warped = utterances["base"], voice.synthesize(TEXT, warp=1.2)
    assert centroid_of(warped.waveform) > 1.05 * centroid_of(base.waveform)
    np.testing.assert_allclose(np.median(pitch_of(warped.waveform)), np.median(pitch_of(base.waveform)), rtol=0.05)
    assert warped.phones == base.phones


def test_phone_times_agree_with_the_sound(voice):
    """The hiss of s and ʃ is what the waveform has above 4 kHz."""
    utterance = voice.synthesize(phonemes="ɑsˈɑ ɑʃˈɑ ɑsˈɑ.")
    spectrum = np.fft.rfft(utterance.waveform)
    spectrum[np.fft.rfftfreq(len(utterance.waveform), 1 / 24_000) < 4000] = 0
    hiss = np.fft.irfft(spectrum, len(utterance.waveform)) ** 2
    loudness = np.convolve(hiss, np.ones(480) / 480, "same")
    lateness = []
    for label, start, end in utterance.phones:
        if label in "sʃ":
            first, last = int((start - 0.1) * 24_000), int((end + 0.1) * 24_000)
            weights = loudness[first:last]
            heard = first + (np.arange(len(weights)) * weights).sum() / weights.sum()
            lateness.append((start + end) / 2 - heard / 24_000)
    # Sibilants begin early; without the 40 ms lead the mean would be above 60 ms.
    assert len(lateness) == 3
    assert abs(np.mean(lateness)) < 0.04


def test_silence_stands_outside_of_the_words(voice):
    utterance = voice.synthesize("Stop, said the sailor.")
    times = np.arange(len(utterance.waveform)) / utterance.sampling_rate
    spoken = np.zeros(len(times), bool)
    for _, start, end in utterance.phones:
        spoken |= (times >= start) & (times < end)
    loudness = utterance.waveform**2
    outside = (times < utterance.phones[0].start - 0.05) | (times > utterance.phones[-1].end + 0.05)
    assert loudness[outside].mean() < 0.001 * loudness[spoken].mean()


def test_pseudo_words_are_spoken_and_named(voice):
    utterance = voice.synthesize("blick dax", phonemes="blˈɪk dˈæks")
    assert [word for word, _, _ in utterance.words] == ["blick", "dax"]
    assert [phone for phone, _, _ in utterance.phones] == list("blɪkdæks")
    assert voice.synthesize(phonemes="blˈɪk dˈæks").text == "blˈɪk dˈæks"


@pytest.mark.parametrize("style", STYLES)
def test_decoder_completes_the_voice(utterances, style):
    utterance = utterances[style]
    names = ("base", "breathy", "unknown", "happy", "angry", "sad")
    codes = np.full(len(utterance.decoder_features), names.index(style))
    decoder = HibariDecoder(names)
    inputs = (utterance.decoder_features, utterance.f0, utterance.energy)
    np.testing.assert_allclose(decoder.decode(*inputs, codes), utterance.waveform, atol=1e-4)
    plain = decoder.decode(*inputs)
    has_timbre = style in ("sad", "angry", "breathy")
    assert np.allclose(plain, utterance.waveform, atol=1e-4) == (not has_timbre)
    for code in (-1, names.index("unknown")):
        np.testing.assert_array_equal(decoder.decode(*inputs, np.full(len(codes), code)), plain)


def test_each_frame_is_decoded_in_its_own_style(utterances):
    utterance = utterances["base"]
    inputs = (utterance.decoder_features, utterance.f0, utterance.energy)
    frames = len(utterance.decoder_features)
    half = frames // 2
    codes = np.where(np.arange(frames) < half, 0, list(STYLES).index("breathy"))
    decoder = HibariDecoder()
    mixed, base, breathy = (
        decoder.decode(*inputs, style) for style in (codes, np.zeros(frames, int), np.full(frames, codes[-1]))
    )
    edge, reach = 600 * half, 1200  # samples of a frame, and of the window of a spectrum
    # The level of a waveform is limited as a whole, so compare up to a factor.
    for part, whole in ((slice(0, edge - reach), base), (slice(edge + reach, None), breathy)):
        factor = (mixed[part] @ whole[part]) / (whole[part] @ whole[part])
        np.testing.assert_allclose(mixed[part], factor * whole[part], atol=1e-3)


def test_bad_input_is_refused(voice):
    with pytest.raises(ValueError, match="style 'furious'; expected one of base, happy"):
        voice.synthesize(TEXT, style="furious")
    with pytest.raises(ValueError, match="neither text nor phonemes"):
        voice.synthesize()
    with pytest.raises(ValueError, match="at most 400; split the text"):
        voice.synthesize("very " * 150)
    with pytest.raises(ValueError, match="shapes .* at least one frame"):
        HibariDecoder().decode(np.zeros((4, 128)), np.zeros(4), np.zeros(8))
    with pytest.raises(ValueError, match=r"style of shape \(8,\); expected \(4,\), a code for each frame"):
        HibariDecoder().decode(np.zeros((4, 128)), np.zeros(8), np.zeros(8), np.zeros(8, int))
    with pytest.raises(ValueError, match="speed=0.0; expected a factor"):
        SpeakingStyle(speed=0.0)
