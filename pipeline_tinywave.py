"""Speech in, speech out: waveform -> units -> language model -> units -> waveform."""

from dataclasses import dataclass

import numpy as np
import torch

from .modeling_tinywave import TinyWaveForCausalLM
from .processing_tinywave import TinyWaveProcessor
from .speech_encoder_tinywave import SpeechEncoder
from .tokenization_tinywave import deduplicate
from .vocoder_tinywave import NeuralDecoder, Vocoder


@dataclass(frozen=True)
class SpeechContinuation:
    """What the model says after a prompt.

    Attributes:
        waveform (`torch.FloatTensor` of shape `(samples,)`): the new part only; empty where the model ends at once.
        sampling_rate (`int`): of the waveform, Hz.
        units (`torch.LongTensor` of shape `(units,)`): the new units, as generated.
        durations (`torch.LongTensor` of shape `(units,)`): 25 Hz frames of each new unit.
        prompt_units, prompt_durations (`torch.LongTensor`): the de-duplicated prompt.
    """

    waveform: torch.FloatTensor
    sampling_rate: int
    units: torch.LongTensor
    durations: torch.LongTensor
    prompt_units: torch.LongTensor
    prompt_durations: torch.LongTensor


class SpeechContinuationPipeline:
    """Continues speech.

    Args:
        model, processor, speech_encoder, vocoder: a language model, its processor, and the encoder and vocoder of the
            same units.
        decoder (default None): neural decoder of the vocoder, see [`Vocoder.units_to_waveform`]; without it the voice
            is the Griffin-Lim fallback.

    Raises:
        ValueError: encoder, model and vocoder count different units.

    Example:

        pipeline = SpeechContinuationPipeline(model, processor, speech_encoder, vocoder, HibariDecoder().decode)
        continuation = pipeline(waveform, max_new_tokens=100, do_sample=True, temperature=0.8)
    """

    def __init__(
        self,
        model: TinyWaveForCausalLM,
        processor: TinyWaveProcessor,
        speech_encoder: SpeechEncoder,
        vocoder: Vocoder,
        decoder: NeuralDecoder | None = None,
    ):
        counts = [part.config.num_units for part in (model, speech_encoder, vocoder)]
        if len(set(counts)) > 1:
            raise ValueError(
                f"Found {counts[0]} units in the language model, {counts[1]} in the speech encoder and {counts[2]} in "
                "the vocoder; expected three parts made for the same units."
            )
        self.model = model
        self.processor = processor
        self.speech_encoder = speech_encoder
        self.vocoder = vocoder
        self.decoder = decoder

    @torch.no_grad()
    def __call__(
        self, waveform: np.ndarray | torch.Tensor, sampling_rate: int = 16_000, **generation_options
    ) -> SpeechContinuation:
        """Continue one mono waveform.

        Prompt and continuation are vocoded together, so that the voice runs through, and the new part is cut off where
        the units of the prompt end. Prompt units keep their true durations; those of new units are predicted.

        Args:
            waveform (`(samples,)`): the prompt, in [-1, 1].
            sampling_rate (default 16,000 Hz): of the prompt; must be the encoder's.
            generation_options: of [`TinyWaveForCausalLM.generate`], such as `max_new_tokens` or `do_sample`.

        Raises:
            ValueError: another sampling rate, audio under 80 ms, NaN samples, or a prompt that fills the context.
        """
        if sampling_rate != self.speech_encoder.sampling_rate:
            raise ValueError(
                f"Found audio at {sampling_rate} Hz; expected {self.speech_encoder.sampling_rate} Hz. Resample it "
                "first, for instance with soxr or tinywave.data.audio_io.load_audio."
            )
        prompt = deduplicate(self.speech_encoder.encode([waveform])[0])
        prompt_units, prompt_durations = (torch.from_numpy(part) for part in prompt)
        units = self.continue_units(prompt_units, **generation_options)
        all_units = torch.cat([prompt_units, units])
        durations = self.vocoder.predict_durations(all_units[None].to(self.vocoder.device))[0].cpu()
        durations = durations[len(prompt_units) :]
        all_durations = torch.cat([prompt_durations, durations])
        spoken = self.vocoder.units_to_waveform(all_units, all_durations, self.decoder)
        start = self.vocoder.samples_per_unit * int(prompt_durations.sum())
        return SpeechContinuation(
            spoken[start:], self.vocoder.sampling_rate, units, durations, prompt_units, prompt_durations
        )

    def continue_units(self, units: torch.LongTensor, **generation_options) -> torch.LongTensor:
        """Units `(length,)` of a prompt -> the units that the language model adds, `(new,)`, without EOS."""
        inputs = self.processor([("speech", units)], output_modality="speech").to(self.model.device)
        output = self.model.generate(**inputs, output_modality="speech", **generation_options)
        segments = self.processor.ids_to_segments(output[0, inputs["input_ids"].shape[1] :].cpu())
        return torch.tensor([unit for _, units in segments for unit in units], dtype=torch.long)
