"""The card of a model repository, written from the facts of its run; what is not known is left out."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace

import yaml

from ..configuration_tinywave import TinyWaveConfig
from ..eval.result_records import results_to_model_index
from ..eval.results_table import MODELS, REQUIRED_KEYS, format_accuracy, report_to_markdown, suite_to_label
from ..training.arguments import DistillationArguments
from ..training.layer_map import LayerMap
from ..training.model_card import escape_markdown
from ..training.terms import describe_terms
from .run_facts import CorpusPart, RunFacts

CHANCE = 0.5
_NAME_OF_STREAM = {"text": "text", "unit": "units of speech", "pitch": "pitch", "style": "speaking style"}


@dataclass(frozen=True)
class Example:
    """Files of a repository, by their paths in it: a prompt, what the model says after it, and how they were made."""

    prompt: str
    continuation: str
    caption: str


@dataclass(frozen=True)
class CodecFacts:
    """What the card says of the codec.

    Attributes:
        needs_decoder (`bool`): whether the vocoder leaves the sound to hibari's decoder or else to Griffin-Lim.
        needs_f0 (`bool`): whether prompts need an F0 extractor.
        licences (`list[tuple[str, str]]`): part and licence, those that are known.
    """

    needs_decoder: bool
    needs_f0: bool
    licences: Sequence[tuple[str, str]]


def repository_card(
    repo_id: str,
    config: TinyWaveConfig,
    num_parameters: int,
    facts: RunFacts,
    codec: CodecFacts,
    examples: Sequence[Example],
) -> str:
    """Return README.md of a model repository.

    Args:
        repo_id: "owner/name" on the Hub.
        config, num_parameters: of the language model.
        facts, codec: what is known of them.
        examples: recordings in the repository.
    """
    sections = [
        _front_matter(repo_id, facts),
        _introduction(repo_id, config, num_parameters, facts),
        _usage(repo_id, codec),
        _examples(repo_id, examples),
        _training(facts),
        _data(facts.corpus),
        _results(facts),
        _limits(config, facts),
        _licences(facts, codec),
        _citation(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(repo_id: str, facts: RunFacts) -> str:
    data = {
        **facts.licence,
        "library_name": "transformers",
        "pipeline_tag": "audio-to-audio",
        "tags": ["tinywave", "speech", "speech-language-model"],
    }
    if facts.is_distilled:
        data["tags"].append("knowledge-distillation")
    if facts.results:
        data |= results_to_model_index(facts.results, repo_id.split("/")[-1])
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def _introduction(repo_id: str, config: TinyWaveConfig, num_parameters: int, facts: RunFacts) -> str:
    streams = [_NAME_OF_STREAM[name] for name in config.stream_ranges()]
    teacher = facts.report.get("teacher", {}).get("parameters") if facts.role != "teacher" else None
    size = f"{num_parameters:,} parameters"
    if teacher:
        size += f", {100 * num_parameters / teacher:.1f} % of the {teacher:,} of its teacher"
    return f"""# {repo_id.split("/")[-1]}

A speech language model: it reads a prompt and goes on. It has {size}
({config.num_hidden_layers} Llama blocks, width {config.hidden_size}, {config.num_attention_heads} heads, context
{config.max_position_embeddings:,} tokens) and a vocabulary of {config.vocab_size:,}: {", ".join(streams)},
{config.unit_rate:g} units a second. The encoders that turn sound into these streams and the vocoder that makes them
audible are in folders of their own. Made with TinyWave, an independent implementation of
[arXiv 2506.23670](https://arxiv.org/abs/2506.23670)."""


def _usage(repo_id: str, codec: CodecFacts) -> str:
    notes = []
    if codec.needs_f0:
        notes.append(
            "Prompts of speech need the package swift-f0 (`pip install swift-f0`), which measures their pitch."
        )
    if codec.needs_decoder:
        notes.append(
            "Without more it speaks in the metallic voice of Griffin-Lim. With `tinywave[voice]` installed, "
            "`pipeline(..., decoder=tinywave.data.hibari_voice.HibariDecoder().decode)` gives it a natural one."
        )
    return f"""## How to use

Speech in, speech out; `waveform` is mono, at 16,000 Hz, in [-1, 1]:

```python
from transformers import pipeline

speaker = pipeline("speech-continuation", model="{repo_id}", trust_remote_code=True)
said = speaker({{"array": waveform, "sampling_rate": 16000}}, max_new_tokens=100, do_sample=True, temperature=0.8)
audio, sampling_rate = said["audio"], said["sampling_rate"]
```

`pipeline("text-to-audio", ...)` goes on in speech after a text. The language model alone:

```python
from transformers import AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained("{repo_id}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
inputs = processor([("text", "Once upon a time")], output_modality="speech")
ids = model.generate(**inputs, output_modality="speech", max_new_tokens=100, do_sample=True)
```

Without `trust_remote_code` the same repository loads as a plain `LlamaForCausalLM` with the same logits.
{" ".join(notes)}""".rstrip()


def _examples(repo_id: str, examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    blocks = ["## Examples"]
    for example in examples:
        players = (
            f'<audio controls src="https://huggingface.co/{repo_id}/resolve/main/{path}"></audio>'
            for path in (example.prompt, example.continuation)
        )
        blocks.append(
            f"{escape_markdown(example.caption)}\n\nPrompt: {next(players)}\n\nContinuation: {next(players)}"
        )
    return "\n\n".join(blocks)


def _training(facts: RunFacts) -> str:
    paragraphs = [
        html.escape(facts.training_text or "", quote=False),
        "" if facts.training_text else _recipe(facts),
        _trainer_state(facts),
    ]
    if "correction" in facts.report.get("configuration", {}):
        paragraphs.insert(0, _quickstart(facts))
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    return f"## Training\n\n{text}" if text else ""


def _quickstart(facts: RunFacts) -> str:
    origin = "The TinyWave nano teacher, corrected with LoRA on the data below"
    made = {
        "teacher": f"{origin}: this is the corrected teacher.",
        "student": f"{origin}, was pruned to this student and distilled into it.",
        "no_distillation": f"{origin}, was pruned to this model, which then learnt from the data without a teacher: "
        "the baseline of distillation.",
    }
    recipe = f" Recipe of TinyWave: `{facts.recipe_name.replace('`', '')}`." if facts.recipe_name else ""
    return made.get(facts.role, "") + recipe


def _recipe(facts: RunFacts) -> str:
    """What a recipe says of the run; of distillation also its layer map and the terms of its loss."""
    training = facts.recipe.get("training")
    if training is None:
        return ""
    settings = ", ".join(
        f"{name.replace('_', ' ')} {training[key]:g}"
        for name, key in (
            ("steps", "max_steps"),
            ("batch_size", "per_device_train_batch_size"),
            ("learning_rate", "learning_rate"),
            ("warm-up_steps", "warmup_steps"),
            ("weight_decay", "weight_decay"),
        )
        if key in training
    )
    lines = [f"{settings[0].upper()}{settings[1:]}; seed {facts.recipe['seed']}."]
    if "layer_map" in facts.recipe:
        lines.insert(0, LayerMap.from_pairs(facts.recipe["layer_map"]).describe())
    text = " ".join(lines)
    if facts.is_distilled:
        names = {item.name: item.default for item in fields(DistillationArguments)}
        # A namespace: the arguments themselves would ask this machine for the devices and precision of the run.
        terms = describe_terms(SimpleNamespace(**{**names, **training}))
        text += " Loss terms, each a mean over the supervised tokens:\n\n" + "\n".join(f"- {term}" for term in terms)
    return text


def _trainer_state(facts: RunFacts) -> str:
    """Steps and last losses that the trainer logged."""
    history = [entry for entry in facts.state.get("log_history", []) if "loss" in entry]
    if not history:
        return ""
    last = history[-1]
    losses = [f"{name.replace('_', ' ')} {last[name]:.3f}" for name in sorted(last) if name.endswith("loss")]
    return f"Losses at step {last['step']}, the last that was logged: {', '.join(losses)}."


def _data(corpus: Sequence[CorpusPart]) -> str:
    if not corpus:
        return ""
    lines = ["| split | kind | documents | hours | voice | licence | source |", "|---|---|---:|---:|---|---|---|"]
    lines.extend(
        f"| {part.split} | {escape_markdown(part.domain.replace('_', ' '))} | {part.documents} | {part.hours:.2f} | "
        f"{escape_markdown(part.voice)} | {escape_markdown(part.licence)} | {escape_markdown(part.source)} |"
        for part in corpus
    )
    return "## Data\n\n" + "\n".join(lines)


def _results(facts: RunFacts) -> str:
    if not facts.results:
        return ""
    is_complete = set(REQUIRED_KEYS) <= facts.report.keys() and set(MODELS) <= facts.report["perplexity"].keys()
    this = f' This repository holds the model of the column "{MODELS.get(facts.role, facts.role)}".'
    table = report_to_markdown(facts.report) if is_complete else _results_table(facts.results)
    return f"""## Results

Accuracy on minimal pairs: right is a model that finds the real word, the grammatical sentence, the fitting ending or
the unchanged voice likelier than its counterpart; chance is 50 %. Brackets hold 95 % bootstrap intervals.\
{this if is_complete else ""}

{table}"""


def _results_table(results: Sequence[dict]) -> str:
    lines = ["| suite | part | score | n | accuracy |", "|---|---|---|---:|---:|"]
    lines.extend(
        f"| {escape_markdown(suite_to_label(result['suite']))} | {escape_markdown(result['part'])} | "
        f"{result['score']} | {result['n']} | {format_accuracy(result)} |"
        for result in results
    )
    return "\n".join(lines)


def _limits(config: TinyWaveConfig, facts: RunFacts) -> str:
    lines = ["It goes on, it does not answer: nothing makes what it says true, and no filter stands behind it."]
    heard = [part for part in facts.corpus if part.split == "train"]
    if heard:
        voices = {part.voice for part in heard}
        names = escape_markdown(", ".join(sorted(voices)))
        lines.append(
            f"In its last training it heard {sum(part.hours for part in heard):.1f} hours of speech in "
            f"{len(voices)} {'voice' if len(voices) == 1 else 'voices'} ({names}); other speech "
            "and other subjects are outside of what it knows."
        )
    if _is_of_speech_alone(config, facts):
        lines.append("Its last training was on speech alone: what it knows of text is left over from its teacher.")
    guessed = [
        suite_to_label(result["suite"]).lower()
        for result in facts.results
        if result["part"] == "all" and result["ci95"][0] <= CHANCE
    ]
    if guessed:
        lines.append(f"Not shown to be better than guessing on: {', '.join(guessed)}.")
    if not config.prosody_streams:
        lines.append("Units keep what is said and lose who says it and how: melody, mood and voice do not go on.")
    lines.append(f"It sees at most {config.max_position_embeddings:,} tokens, prompt and continuation together.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _is_of_speech_alone(config: TinyWaveConfig, facts: RunFacts) -> bool:
    """Whether every variant of the quickstart that has the model's streams trains on speech without text."""
    streams = config.stream_ranges().keys() - {"text"}
    variants = facts.report.get("configuration", {}).get("variants", {}).values()
    mixtures = [variant["mixture"] for variant in variants if set(variant["streams"]) == streams]
    return bool(mixtures) and all(mixture == "speech" for mixture in mixtures)


def _licences(facts: RunFacts, codec: CodecFacts) -> str:
    stated = facts.licence.get("license_name") or facts.licence.get("license")
    rows = [*([("language model", stated)] if stated else []), *codec.licences]
    if not rows:
        return ""
    return "## Licences\n\n| part | licence |\n|---|---|\n" + "\n".join(
        f"| {escape_markdown(part)} | {escape_markdown(name)} |" for part, name in rows
    )


def _citation() -> str:
    return """## Citation

```bibtex
@article{nouriborji2025tinywave,
  title = {Efficient Interleaved Speech Modeling through Knowledge Distillation},
  author = {Nouriborji and Rohanian},
  journal = {arXiv preprint arXiv:2506.23670},
  year = {2025}
}
```"""
