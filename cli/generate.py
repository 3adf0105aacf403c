"""`tinywave generate prompt.wav continuation.wav --model outputs/quickstart/student`"""

import numpy as np
from transformers.trainer_utils import set_seed

from ..data.audio_io import load_audio, write_audio
from ..pipeline_tinywave import TinyWavePipeline
from .loading import add_codec_arguments, load_language_model, open_codec
from .shipped import TEACHER


def add_arguments(parser):
    parser.add_argument("prompt", help="audio file to continue; any sampling rate and number of channels")
    parser.add_argument("output", help="audio file to write, .wav or .flac")
    parser.add_argument("--model", default=str(TEACHER), help="folder of the language model")
    add_codec_arguments(parser)
    parser.add_argument("--max-new-tokens", type=int, default=100, help="most tokens to add; 18 to 28 make a second")
    parser.add_argument("--temperature", type=float, default=0.8, help="of sampling; 0 takes the likeliest unit")
    parser.add_argument("--top-k", type=int, default=25, help="sample from this many likeliest units")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same continuation")
    parser.add_argument("--with-prompt", action="store_true", help="write the prompt before the continuation")


def run(arguments) -> int:
    """Continue a recording, write the new part and print its path."""
    sampling = sampling_options(arguments.temperature, arguments.top_k, arguments.max_new_tokens)
    waveform = load_audio(arguments.prompt)
    model, processor = load_language_model(arguments.model)
    codec = open_codec(arguments, model.config.stream_ranges())
    set_seed(arguments.seed)
    segments = TinyWavePipeline(model, processor, codec)([("speech", waveform)], **sampling)
    if not segments:
        raise ValueError(f"the model ends right after {arguments.prompt}; try another --seed or a shorter prompt")
    spoken = segments[0].waveform.numpy()
    if arguments.with_prompt:
        spoken = np.concatenate([load_audio(arguments.prompt, codec.output_sampling_rate), spoken])
    write_audio(arguments.output, spoken, codec.output_sampling_rate)
    print(arguments.output)
    return 0


def sampling_options(temperature: float, top_k: int, max_new_tokens: int) -> dict:
    """The options of `generate`. Raises `ValueError` for a setting out of range."""
    if temperature < 0 or top_k < 1 or max_new_tokens < 1:
        raise ValueError(
            f"found temperature {temperature}, top-k {top_k} and {max_new_tokens} new tokens; expected a temperature "
            "of 0 or more, and at least 1 of the others"
        )
    if temperature == 0:
        return {"do_sample": False, "max_new_tokens": max_new_tokens}
    return {"do_sample": True, "temperature": temperature, "top_k": top_k, "max_new_tokens": max_new_tokens}
