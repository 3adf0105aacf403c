"""How loud a continuation is beside its prompt, with and without matching.

    python -m tinywave.benchmarks.loudness --output benchmarks/results/loudness.json

The prompts are the beginnings of held-out stories, spoken by the hibari voice, and the shipped recordings of Kokoro
voices and of people; the shipped teacher continues them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..cli.loading import load_for_training
from ..cli.shipped import AUDIO, CODEC, TEACHER
from ..data.audio_io import load_audio
from ..data.codec_loading import load_codec
from ..data.corpus import SAMPLING_RATE, iterate_corpus, prepare_corpus
from ..data.storage import write_json
from ..data.text_items import text_items
from ..eval.statistics import bootstrap_mean_interval
from ..loudness_tinywave import integrated_loudness
from ..pipeline_tinywave import TinyWavePipeline
from ..processing_tinywave import TinyWaveProcessor

SEED = 0
NUM_STORIES = 40
PROMPT_SECONDS = 4.0
OPTIONS = {"max_new_tokens": 80, "min_new_tokens": 60, "do_sample": True, "temperature": 0.7, "top_p": 0.9}


def read_prompts(folder: Path) -> dict[str, list[np.ndarray]]:
    """Return the prompts by where they come from; what is spoken goes into `folder`."""
    recipe = {
        "seed": 70,
        "documents": [{"domain": "story", "split": "test", "count": NUM_STORIES, "voices": "hibari"}],
    }
    sources = {"hibari": prepare_corpus(text_items(recipe), folder, num_processes=1), "kokoro": AUDIO / "kokoro"}
    prompts = {
        name: [load_audio(row["audio"]["bytes"], SAMPLING_RATE, name=row["id"]) for row in iterate_corpus(corpus)]
        for name, corpus in sources.items()
    }
    prompts["people"] = [load_audio(path, SAMPLING_RATE) for path in sorted((AUDIO / "librivox").glob("*.flac"))]
    length = int(PROMPT_SECONDS * SAMPLING_RATE)
    return {name: [waveform[:length] for waveform in waveforms] for name, waveforms in prompts.items()}


def measure(pipeline: TinyWavePipeline, prompts: list[np.ndarray]) -> dict[str, list[float]]:
    """Return the loudness of each continuation less that of its prompt, in dB, without and with matching."""
    found = {"as generated": [], "matched": []}
    for prompt in tqdm(prompts, desc="Continuing", unit="prompt"):
        for name, differences in found.items():
            torch.manual_seed(SEED)
            segments = pipeline([("speech", prompt)], match_loudness=name == "matched", **OPTIONS)
            spoken = torch.cat([segment.waveform for segment in segments]).numpy()
            loudness = integrated_loudness(spoken, pipeline.codec.output_sampling_rate)
            differences.append(loudness - integrated_loudness(prompt, SAMPLING_RATE))
    return found


def summarize(differences: list[float]) -> dict:
    """Return mean, interval, extremes and number of some differences in dB."""
    return {
        "mean": float(np.mean(differences)),
        "ci95": bootstrap_mean_interval(differences, seed=SEED),
        "minimum": float(min(differences)),
        "maximum": float(max(differences)),
        "n": len(differences),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/loudness.json"))
    parser.add_argument("--corpus", type=Path, default=Path("outputs/loudness_corpus"), help="folder of the stories")
    arguments = parser.parse_args(argv)
    model, tokenizer = load_for_training(TEACHER, ["unit"])
    codec = load_codec(CODEC, ["unit"])
    pipeline = TinyWavePipeline(model.eval(), TinyWaveProcessor.from_config(model.config, tokenizer), codec)
    record = {"seed": SEED, "unit": "dB", "prompt_seconds": PROMPT_SECONDS, "generation": OPTIONS, "prompts": {}}
    for name, prompts in read_prompts(arguments.corpus).items():
        differences = measure(pipeline, prompts)
        record["prompts"][name] = {kind: summarize(values) for kind, values in differences.items()}
        for kind, summary in record["prompts"][name].items():
            low, high = summary["minimum"], summary["maximum"]
            print(f"{name:>7} {kind:>13}: {summary['mean']:+.1f} dB, {low:+.1f} to {high:+.1f}, n = {summary['n']}")
    write_json(record, arguments.output)


if __name__ == "__main__":
    main()
