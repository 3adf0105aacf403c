"""The hibari voice: one neural English speaker with exact phone times, 130 times faster than real time.

hibari-tts (Apache-2.0) is an ONNX graph from phonemes to a spectrum in five parts, followed by a source-filter
synthesis in numpy. This module edits the graph in memory: phone durations and the decoder's inputs become outputs, and
pitch and pitch range become inputs. The decoder half alone turns frame features into a waveform.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .pronunciation import (
    Utterance,
    durations_to_times,
    hibari_assets,
    limit_peak,
    missing_material,
    phonemes_to_ids,
    pronunciation_of,
)

SAMPLING_RATE = 24_000
FEATURE_RATE = 40.0
"""Frames of decoder features a second; f0 and energy have twice as many."""

NUM_FEATURES = 128
MAX_PHONEMES = 400
VOICE = "hibari"

_DURATIONS, _FEATURES, _ENERGY = "/Clip_output_0", "/Gather_32_output_0", "/Mul_62_output_0"
_SPECTRUM = ("lh", "theta", "ln", "lr", "phi")
_REFERENCE_PITCH = 200.0
_BIN_WIDTH = 20.0


@dataclass(frozen=True)
class SpeakingStyle:
    """How the voice speaks; the defaults are its own manner.

    `pitch`: factor on the fundamental frequency.
    `pitch_range`: exponent on its distance from 200 Hz; 0.5 is flat, 1.5 is lively.
    `speed`: factor on the speaking rate.
    `tilt`: dB added per octave above 1 kHz (and taken below it).
    `breathiness`: nats by which the noise is raised; the harmonics fall by three tenths of it.
    `warp`: factor on the formant frequencies; above 1 is a shorter vocal tract.
    """

    pitch: float = 1.0
    pitch_range: float = 1.0
    speed: float = 1.0
    tilt: float = 0.0
    breathiness: float = 0.0
    warp: float = 1.0

    def __post_init__(self):
        for name in ("pitch", "pitch_range", "speed", "warp"):
            if not 0.25 <= getattr(self, name) <= 4.0:
                raise ValueError(f"Found {name}={getattr(self, name)}; expected a factor from 0.25 to 4.")


STYLES = {
    "base": SpeakingStyle(),
    "happy": SpeakingStyle(pitch=1.2, pitch_range=1.5, speed=1.12),
    "sad": SpeakingStyle(pitch=0.88, pitch_range=0.5, speed=0.8, tilt=-3.0),
    "angry": SpeakingStyle(pitch=1.1, pitch_range=1.3, speed=1.15, tilt=3.0),
    "breathy": SpeakingStyle(breathiness=4.0),
}


class HibariVoice:
    """Text or phonemes to speech. Runs on one thread; parallelism is by process.

    Raises `MissingMaterialError` if hibari-tts, onnx or onnxruntime is not installed.
    """

    sampling_rate = SAMPLING_RATE

    def __init__(self):
        self._session = onnx_session(_controllable_graph())

    def synthesize(
        self,
        text: str | None = None,
        phonemes: str | None = None,
        style: str = "base",
        seed: int = 0,
        warp: float = 1.0,
        return_features: bool = False,
    ) -> Utterance:
        """Speaks one sentence; equal arguments give equal samples.

        `text`: the sentence. `phonemes`: spoken instead, so that pseudo-words need no spelling; `text` then only names
        the words. `style`: a key of `STYLES`. `seed`: of the noise. `warp`: factor on the formants on top of the
        style's. `return_features`: also return the decoder's inputs.

        Raises `ValueError` for an unknown style, unpronounceable text and sentences above 400 phonemes.
        """
        if style not in STYLES:
            raise ValueError(f"Found style {style!r}; expected one of {', '.join(STYLES)}.")
        settings = STYLES[style]
        pronunciation = pronunciation_of(text, phonemes)
        names = (*_SPECTRUM, "f0", _DURATIONS, *((_FEATURES, _ENERGY) if return_features else ()))
        inputs = {
            "ids": phonemes_to_ids(pronunciation.phonemes, MAX_PHONEMES),
            "speed": np.array([settings.speed], np.float32),
            "pitch": np.array([settings.pitch], np.float32),
            "pitch_range": np.array([settings.pitch_range], np.float32),
        }
        outputs = dict(zip(names, self._session.run(names, inputs), strict=True))
        spectrum = _warp_spectrum([outputs[name][0] for name in _SPECTRUM], settings.warp * warp)
        spectrum = _shape_spectrum(spectrum, settings.tilt, settings.breathiness)
        f0 = outputs["f0"][0]
        phones, words = durations_to_times(pronunciation, outputs[_DURATIONS].ravel())
        return Utterance(
            waveform=_spectrum_to_waveform(spectrum, f0, seed),
            sampling_rate=SAMPLING_RATE,
            text=" ".join(word for word, _, _ in pronunciation.words) if text is None else text,
            phonemes=pronunciation.phonemes,
            phones=phones,
            words=words,
            style=style,
            voice=VOICE,
            decoder_features=np.ascontiguousarray(outputs[_FEATURES][0].T) if return_features else None,
            f0=f0 if return_features else None,
            energy=outputs[_ENERGY][0] if return_features else None,
        )


class HibariDecoder:
    """The second half of the voice: frame features to a waveform, a 5 MB neural vocoder.

    `style_names`: of the style codes that [`~HibariDecoder.decode`] is given, in their order. One that is no key of
    `STYLES` sounds as the base style does.
    """

    sampling_rate = SAMPLING_RATE

    def __init__(self, style_names: Iterable[str] = tuple(STYLES)):
        self._session = onnx_session(_decoder_graph())
        styles = [STYLES.get(name, STYLES["base"]) for name in (*style_names, "base")]  # code -1 is the last one
        self._tilt, self._breathiness = (
            np.array([getattr(style, name) for style in styles], np.float32) for name in ("tilt", "breathiness")
        )

    def decode(
        self,
        features: np.ndarray,
        f0: np.ndarray,
        energy: np.ndarray,
        style: np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Returns the waveform, float32 of shape `(600 * frames,)` at 24 kHz.

        `features` (`(frames, 128)`), `f0` (`(2 * frames,)`, Hz, 0 where unvoiced), `energy` (`(2 * frames,)`): as
        `HibariVoice.synthesize(..., return_features=True)` returns them. `style` (`(frames,)`): codes, -1 for none;
        they give the tilt and the breathiness, while pitch and speed are in the other inputs. Raises `ValueError` for
        other shapes.
        """
        frames = len(features)
        found = (features.shape, f0.shape, energy.shape)
        expected = ((frames, NUM_FEATURES), (2 * frames,), (2 * frames,))
        if frames == 0 or found != expected:
            raise ValueError(
                f"Found features, f0 and energy of shapes {found}; "
                f"expected (frames, {NUM_FEATURES}), (2 * frames,) and (2 * frames,) with at least one frame."
            )
        f0 = f0.astype(np.float32)
        inputs = {_FEATURES: features.T[None].astype(np.float32), "f0": f0[None]}
        inputs[_ENERGY] = energy[None].astype(np.float32)
        spectrum = [part[0] for part in self._session.run(_SPECTRUM, inputs)]
        if style is not None:
            if style.shape != (frames,):
                raise ValueError(f"Found style of shape {style.shape}; expected ({frames},), a code for each frame.")
            codes = np.repeat(style, 2)
            spectrum = _shape_spectrum(spectrum, self._tilt[codes], self._breathiness[codes])
        return _spectrum_to_waveform(spectrum, f0, seed)


def import_onnx():
    """The onnx package; `MissingMaterialError` if it is not installed."""
    try:
        import onnx
        import onnx.utils
    except ImportError as error:
        raise missing_material("onnx") from error
    return onnx


def onnx_session(model):
    """Session of an onnx `ModelProto` on one CPU thread; `MissingMaterialError` without onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_material("onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _controllable_graph():
    """hibari's graph with `f0 = (f0 / 200) ** pitch_range * 200 * pitch` before its decoder, and more outputs."""
    onnx = import_onnx()
    model = onnx.load(hibari_assets() / "hibari.onnx")
    graph, make_node = model.graph, onnx.helper.make_node
    position, producer = next((i, node) for i, node in enumerate(graph.node) if "f0" in node.output)
    producer.output[0] = "f0_of_network"
    reference = onnx.numpy_helper.from_array(np.array(_REFERENCE_PITCH, np.float32), "reference_pitch")
    graph.initializer.append(reference)
    nodes = [
        make_node("Relu", ["f0_of_network"], ["f0_positive"]),
        make_node("Div", ["f0_positive", "reference_pitch"], ["f0_relative"]),
        make_node("Pow", ["f0_relative", "pitch_range"], ["f0_ranged"]),
        make_node("Mul", ["f0_ranged", "reference_pitch"], ["f0_centred"]),
        make_node("Mul", ["f0_centred", "pitch"], ["f0"]),
    ]
    for offset, node in enumerate(nodes, start=1):
        graph.node.insert(position + offset, node)
    for name in ("pitch", "pitch_range"):
        graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]))
    for name in (_DURATIONS, _FEATURES, _ENERGY):
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model


def _decoder_graph():
    onnx = import_onnx()
    model = onnx.load(hibari_assets() / "hibari.onnx")
    return onnx.utils.Extractor(model).extract_model([_FEATURES, "f0", _ENERGY], list(_SPECTRUM))


def _warp_spectrum(spectrum: list[np.ndarray], warp: float) -> list[np.ndarray]:
    """Move the formants by a factor; parts are `(601 bins, frames)`."""
    if warp == 1.0:
        return spectrum
    *magnitudes, phase = spectrum
    num_bins = len(phase)
    source = np.clip(np.arange(num_bins) / warp, 0, num_bins - 1)
    below = np.floor(source).astype(int)
    above = np.minimum(below + 1, num_bins - 1)
    weight = (source - below).astype(np.float32)[:, None]
    magnitudes = [part[below] * (1 - weight) + part[above] * weight for part in magnitudes]
    return [*magnitudes, phase[np.round(source).astype(int)]]


def _shape_spectrum(
    spectrum: list[np.ndarray], tilt: float | np.ndarray, breathiness: float | np.ndarray
) -> list[np.ndarray]:
    """Tilt the spectrum and raise its noise, as a [`SpeakingStyle`] says or, of shape `(frames,)`, for each frame."""
    harmonic, rotation, noise, residual, phase = spectrum
    if np.any(tilt):
        octaves = np.log2(np.maximum(np.arange(len(harmonic)) * _BIN_WIDTH, 100.0) / 1000.0)[:, None]
        gain = (tilt * octaves * np.log(10.0) / 20.0).astype(np.float32)
        harmonic, noise, residual = harmonic + gain, noise + gain, residual + gain
    if np.any(breathiness):
        harmonic, noise = harmonic - np.float32(0.3) * breathiness, noise + breathiness
        harmonic, noise = harmonic.astype(np.float32), noise.astype(np.float32)
    return [harmonic, rotation, noise, residual, phase]


def _spectrum_to_waveform(spectrum: list[np.ndarray], f0: np.ndarray, seed: int) -> np.ndarray:
    from hibari.dsp import synth

    parts = [np.ascontiguousarray(part) for part in spectrum]
    return limit_peak(synth(*parts, f0, np.random.default_rng(seed)))
