"""What parallel heads bring: tokens per forward pass, CPU time and quality, against ordinary decoding.

    python -m tinywave.benchmarks.parallel_decoding --model outputs/heads --judge outputs/quickstart/teacher \\
        --units outputs/quickstart/units --output benchmarks/results/parallel_decoding.json

Beginnings of held-out documents are continued in ordinary steps, with verified drafts and with unverified ones. The
ways take turns on every prompt, and the time is that of the CPU, because other programs use the machine too. Quality
is the likelihood of the continuations under a larger model. Intervals hold 95 % and resample prompts.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import DynamicCache, set_seed

from ..cli.loading import load_for_training, load_language_model
from ..cli.train import make_dataset
from ..configuration_tinywave import TinyWaveConfig
from ..data.storage import write_json
from ..eval.statistics import bootstrap_mean_interval, ratio_interval
from ..modeling_tinywave import TinyWaveForCausalLM
from ..quantization_tinywave import INT8
from .decode import TOKENS_PER_SECOND_OF_SPEECH, random_prompt, with_random_weights
from .pairs import time_pairs

ORDINARY, VERIFIED, UNVERIFIED = WAYS = ("ordinary", "verified", "unverified")
_OPTIONS_OF_WAY = {
    ORDINARY: {},
    VERIFIED: {"parallel_heads": True},
    UNVERIFIED: {"parallel_heads": True, "verify_drafts": False},
}
SAMPLINGS = {
    "greedy": {"do_sample": False},
    "temperature 0.7, top-p 0.9": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0},
    "temperature 1": {"do_sample": True, "temperature": 1.0, "top_k": 0},
}
NUM_PROMPT_TOKENS, NUM_NEW_TOKENS = 60, 120
REPETITION_LENGTH = 4


@dataclass(frozen=True)
class Continuation:
    """One prompt, continued in one way.

    Attributes:
        ids (`tuple[int, ...]`): the new ones.
        num_passes (`int`): forward passes of the decoder, that of the prompt included.
        cpu_seconds (`float`): of the process, from the prompt on.
        nll (`float`): mean negative log-likelihood of the new ids under the judge, nats a token.
        repetition (`float`): 1 - distinct / all runs of four ids.
    """

    ids: tuple[int, ...]
    num_passes: int
    cpu_seconds: float
    nll: float
    repetition: float


@torch.no_grad()
def continue_prompt(
    model: TinyWaveForCausalLM, judge: TinyWaveForCausalLM, prompt: torch.Tensor, **options
) -> Continuation:
    """Continue ids `(1, T)`, count and time the passes, and ask the judge, another model of the same ids."""
    passes = []
    with model.model.register_forward_hook(lambda *_: passes.append(None)):
        start = process_time()
        ids = model.generate(prompt, output_modality="speech", **options)
        seconds = process_time() - start
    new = ids[0, prompt.shape[1] :]
    scores = judge(ids[:, :-1]).logits[0, prompt.shape[1] - 1 :].float()
    runs = list(zip(*(new.tolist()[first:] for first in range(REPETITION_LENGTH)), strict=False))
    return Continuation(
        ids=tuple(new.tolist()),
        num_passes=len(passes),
        cpu_seconds=seconds,
        nll=nn.functional.cross_entropy(scores, new).item(),
        repetition=1 - len(set(runs)) / len(runs),
    )


def continue_all(
    model: TinyWaveForCausalLM,
    judge: TinyWaveForCausalLM,
    prompts: Sequence[torch.Tensor],
    sampling: Mapping,
    ways: Sequence[str] = WAYS,
) -> dict[str, list[Continuation]]:
    """Every prompt in every way; the ways take turns at going first."""
    found: dict[str, list[Continuation]] = {way: [] for way in ways}
    lengths = {"min_new_tokens": NUM_NEW_TOKENS, "max_new_tokens": NUM_NEW_TOKENS}
    for index, prompt in enumerate(tqdm(prompts, unit="prompt", leave=False)):
        for turn in range(len(ways)):
            way = ways[(index + turn) % len(ways)]
            set_seed(index)
            found[way].append(continue_prompt(model, judge, prompt, **lengths, **sampling, **_OPTIONS_OF_WAY[way]))
    return found


def summarize(found: Mapping[str, Sequence[Continuation]]) -> dict[str, dict]:
    """Each way's measures, `{"value", "ci95"}`, and how it differs from ordinary decoding.

    "tokens_per_pass", "cpu_seconds_per_token", "nll" (nats a token under the judge) and "repetition"; against ordinary
    decoding "cpu_speedup" (above 1 is faster), "nll_difference", "repetition_difference" and "same_ids", the share of
    prompts that are continued with the same ids.
    """
    ordinary = found[ORDINARY]
    summary = {}
    for way, continuations in found.items():
        tokens = [len(item.ids) for item in continuations]
        seconds = [item.cpu_seconds for item in continuations]
        row = {
            "tokens_per_pass": ratio_of_sums(tokens, [item.num_passes for item in continuations]),
            "cpu_seconds_per_token": ratio_of_sums(seconds, tokens),
            **{name: _mean([getattr(item, name) for item in continuations]) for name in ("nll", "repetition")},
        }
        if way != ORDINARY:
            # Every continuation has as many tokens.
            row["cpu_speedup"] = ratio_of_sums([item.cpu_seconds for item in ordinary], seconds)
            pairs = list(zip(continuations, ordinary, strict=True))
            for name in ("nll", "repetition"):
                row[f"{name}_difference"] = _mean([getattr(one, name) - getattr(other, name) for one, other in pairs])
            row["same_ids"] = sum(one.ids == other.ids for one, other in pairs) / len(pairs)
        summary[way] = row
    return summary


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> dict:
    """`sum(numerators) / sum(denominators)` and its interval over items."""
    return {"value": sum(numerators) / sum(denominators), "ci95": ratio_interval(numerators, denominators)}


def _mean(values: Sequence[float]) -> dict:
    return {"value": float(np.mean(values)), "ci95": bootstrap_mean_interval(values)}


def tokens_per_pass_by_heads(model, judge, prompts, sampling: Mapping) -> dict[str, dict]:
    """Verified tokens per pass with the first head alone, with two, and so on, short of all."""
    heads, found = list(model.parallel_heads), {}
    for count in range(1, len(heads)):
        model.parallel_heads = nn.ModuleList(heads[:count])
        continuations = continue_all(model, judge, prompts, sampling, [VERIFIED])[VERIFIED]
        found[str(count)] = ratio_of_sums(
            [len(item.ids) for item in continuations], [item.num_passes for item in continuations]
        )
    model.parallel_heads = nn.ModuleList(heads)
    return found


def measure_pass(model: TinyWaveForCausalLM, num_prompt_tokens: int = 128, num_passes: int = 4) -> dict:
    """Time of a step of ordinary decoding, and of a pass that drafts and reads a token for every head.

    Returns:
        `dict` of "seconds_per_step" and "steps_per_pass" (how many steps cost as much as a pass), medians of pairs
        that take turns, with the "quartiles" of the latter.
    """
    ids, cache = random_prompt(model.config, num_prompt_tokens), DynamicCache()
    with torch.no_grad():
        model.model(ids[:, :-1], past_key_values=cache, use_cache=True)

    def generate(num_tokens: int, **options) -> None:
        lengths = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens}
        model.generate(ids, past_key_values=cache, output_modality="speech", do_sample=False, **lengths, **options)
        cache.crop(num_prompt_tokens - 1 - cache.get_seq_length())

    # Both begin with a step; random heads are never right, so that nothing is verified here.
    num_tokens = 1 + num_passes * (1 + model.config.num_parallel_heads)
    timing = time_pairs(
        lambda: generate(1 + num_passes), lambda: generate(num_tokens, **_OPTIONS_OF_WAY[UNVERIFIED]), num_pairs=6
    )

    def steps(ratio: float) -> float:
        return (ratio * (1 + num_passes) - 1) / num_passes

    return {
        "seconds_per_step": timing.first_seconds / (1 + num_passes),
        "steps_per_pass": steps(timing.ratio),
        "quartiles": [steps(ratio) for ratio in timing.ratio_quartiles],
    }


def project(preset: str, num_heads: int, tokens_per_pass: Mapping[str, float]) -> dict:
    """What a preset with random weights in 8 bits would reach, if its heads were as good as those measured.

    Args:
        tokens_per_pass: verified, by the name of the sampling.
    """
    config = TinyWaveConfig.from_preset(preset, num_parallel_heads=num_heads, weight_format=INT8)
    record = measure_pass(with_random_weights(config, torch.bfloat16))
    pass_seconds = record["seconds_per_step"] * record["steps_per_pass"]
    rates = {"ordinary": 1 / record["seconds_per_step"]}
    rates |= {name: tokens / pass_seconds for name, tokens in tokens_per_pass.items()}
    record["projected"] = {
        name: {
            "tokens_per_second": rate,
            "real_time_factor": {streams: needed / rate for streams, needed in TOKENS_PER_SECOND_OF_SPEECH.items()},
        }
        for name, rate in rates.items()
    }
    return {"preset": preset, "engine": "torch-int8", "num_threads": torch.get_num_threads(), **record}


def read_prompts(model: TinyWaveForCausalLM, tokenizer, units: str | Path, count: int) -> list[torch.Tensor]:
    """Beginnings `(1, 60)` of held-out documents that go on for at least as long as they are continued."""
    recipe = {"mixture": "speech", "max_length": NUM_PROMPT_TOKENS + NUM_NEW_TOKENS, "seed": 0}
    dataset = make_dataset(recipe, units, "test", model.config, tokenizer)
    rows = [torch.as_tensor(dataset[index]["input_ids"]) for index in range(len(dataset))]
    prompts = [row[None, :NUM_PROMPT_TOKENS] for row in rows if len(row) >= recipe["max_length"]]
    return prompts[:count]


def measure(model_folder: str, judge_folder: str, units: str, num_prompts: int) -> dict:
    """All samplings in all ways, with the number of heads, and in 8 bits."""
    model, processor = load_language_model(model_folder)
    streams = [name for name in model.config.stream_ranges() if name != "text"]
    judge = load_for_training(judge_folder, streams)[0].eval()
    prompts = read_prompts(model, processor.tokenizer, units, num_prompts)
    record: dict = {"num_prompts": len(prompts), "num_new_tokens": NUM_NEW_TOKENS, "streams": streams}
    record["num_threads"] = torch.get_num_threads()
    in_heads = sum(parameter.numel() for parameter in model.parallel_heads.parameters())
    record["num_parameters"] = {"heads": in_heads, "without": model.num_parameters() - in_heads}
    continue_all(model, judge, prompts[:1], SAMPLINGS["greedy"])
    for name, sampling in SAMPLINGS.items():
        record[name] = summarize(continue_all(model, judge, prompts, sampling))
        record[name]["tokens_per_pass_by_heads"] = tokens_per_pass_by_heads(model, judge, prompts, sampling)
    quantized = load_language_model(model_folder)[0].quantize()
    record["8 bits"] = {
        name: summarize(continue_all(quantized, judge, prompts, sampling, [ORDINARY, VERIFIED]))
        for name, sampling in SAMPLINGS.items()
    }
    return record


def main() -> None:
    """Measure a model with heads and, where asked, project its numbers onto a preset; print or write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model with parallel heads")
    parser.add_argument("--judge", required=True, help="folder of a larger model, such as the teacher")
    parser.add_argument("--units", required=True, help="folder of units, of which the test split is continued")
    parser.add_argument("--num-prompts", type=int, default=60, help="most documents to continue")
    parser.add_argument("--preset", help="preset to project onto, such as speech-base-2b")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    arguments = parser.parse_args()
    record = measure(arguments.model, arguments.judge, arguments.units, arguments.num_prompts)
    if arguments.preset:
        verified = {name: record[name][VERIFIED]["tokens_per_pass"]["value"] for name in SAMPLINGS}
        num_heads = TinyWaveConfig.from_pretrained(arguments.model).num_parallel_heads
        record["projection"] = project(arguments.preset, num_heads, verified)
    if arguments.output:
        write_json(record, arguments.output)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
