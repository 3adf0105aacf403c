"""The model card of a distilled student, from the facts of its run."""

import os
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .arguments import DistillationArguments
from .layer_map import LayerMap

CARD = "README.md"
_TERMS = {
    "cross_entropy_weight": "cross-entropy on the data",
    "logits_weight": "logits: {logits_loss} at temperature {temperature:g}",
    "hidden_weight": "hidden states: {hidden_loss}",
    "attention_weight": "attention: {attention_loss}",
}


def describe_terms(args: DistillationArguments) -> list[str]:
    """One line for each loss term that counts, with its weight.

    ```python
    >>> describe_terms(DistillationArguments(hidden_weight=0, logits_weight=0, attention_weight=0.5, use_cpu=True))
    ['cross-entropy on the data, weight 1', 'attention: auto, weight 0.5']

    ```
    """
    settings = {name: getattr(args, name) for name in ("logits_loss", "temperature", "hidden_loss", "attention_loss")}
    return [
        f"{text.format(**settings)}, weight {weight:g}"
        for name, text in _TERMS.items()
        if (weight := getattr(args, name))
    ]


def write_model_card(
    folder: str | os.PathLike,
    *,
    teacher: str | os.PathLike,
    parameters: tuple[int, int],
    layer_map: LayerMap,
    args: DistillationArguments,
    num_examples: int,
    num_steps: int,
) -> Path:
    """Writes README.md beside a student's weights.

    Args:
        folder: of the student.
        teacher: its folder; the licence that its own card states is passed on.
        parameters: of the student and of the teacher.
        layer_map, args: of the distillation.
        num_examples, num_steps: documents that it learnt from, and optimizer steps.
    """
    share = 100 * parameters[0] / parameters[1]
    stated = ModelCard.load(Path(teacher) / CARD).data if (Path(teacher) / CARD).is_file() else ModelCardData()
    data = ModelCardData(
        license=stated.license,
        license_name=stated.to_dict().get("license_name"),
        library_name="transformers",
        pipeline_tag="audio-to-audio",
        tags=["tinywave", "speech", "knowledge-distillation"],
    )
    terms = "\n".join(f"- {line}" for line in describe_terms(args))
    content = f"""---
{data.to_yaml()}
---

# {Path(folder).resolve().name}

A speech language model of {parameters[0]:,} parameters, {share:.1f} % of the {parameters[1]:,} of its teacher
{Path(teacher).resolve().name}, distilled as in TinyWave ([arXiv 2506.23670](https://arxiv.org/abs/2506.23670)).

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", trust_remote_code=True)
```

## Training

{layer_map.describe()} The student started from these blocks, and learnt from {num_examples:,} documents
in {num_steps:,} steps (learning rate {args.learning_rate:g}, seed {args.seed}). Loss terms, each a mean over the
supervised tokens:

{terms}

## Limits

It knows the kind of speech that it was trained on and little else, and says things that are not true. Its scores are
those that `tinywave evaluate` gives; none is quoted here that was not measured.
"""
    path = Path(folder) / CARD
    path.write_text(content, encoding="utf-8")
    return path
