"""Model cards of corrected teachers and of distilled students, from the facts of their runs."""

import html
import os
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..data.storage import atomic_file
from .arguments import CorrectionArguments, DistillationArguments
from .layer_map import LayerMap
from .terms import describe_terms

CARD = "README.md"
_MARKUP = re.compile(r"[\\`*_\[\]|~]|^[#>+-]")


def escape_markdown(text: object) -> str:
    """Return text from a file or a name as plain words of a Markdown page: one line, no markup, links or HTML.

    ```python
    >>> print(escape_markdown("a|b <script>[x](y)"))
    a\\|b &lt;script&gt;\\[x\\](y)

    ```
    """
    line = html.escape(" ".join(str(text).split()), quote=False)
    return _MARKUP.sub(lambda match: "\\" + match[0], line)


def read_licence(folder: str | os.PathLike) -> dict[str, str]:
    """`license`, `license_name` and `license_link` of the card in a folder, those that its front matter states."""
    card = Path(folder) / CARD
    if not card.is_file():
        return {}
    try:
        stated = ModelCard(card.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data
    except (ValueError, yaml.YAMLError):
        return {}
    names = ("license", "license_name", "license_link")
    return {name: str(value) for name in names if (value := stated.to_dict().get(name))}


def _front_matter(teacher: str | os.PathLike, *tags: str) -> str:
    """The front matter of a model made from a teacher, whose licence goes on to hold."""
    data = ModelCardData(
        **read_licence(teacher),
        library_name="transformers",
        pipeline_tag="audio-to-audio",
        tags=["tinywave", "speech", *tags],
    )
    return f"---\n{data.to_yaml()}\n---"


def write_correction_card(
    folder: str | os.PathLike, *, teacher: str | os.PathLike, args: CorrectionArguments, num_examples: int
) -> Path:
    """Writes README.md beside a corrected teacher.

    Args:
        folder: of the corrected teacher.
        teacher: folder of what it was before; the licence that its card states is passed on.
        args: of the correction.
        num_examples: documents that it was corrected on.
    """
    content = f"""{_front_matter(teacher, "lora")}

# {_name_of(folder)}

{_name_of(teacher)}, corrected on the speech that a student will learn from, as in TinyWave
([arXiv 2506.23670](https://arxiv.org/abs/2506.23670)): LoRA of rank {args.lora_rank} (alpha {args.lora_alpha}) on
{", ".join(args.lora_target_modules)}, {num_examples:,} documents, learning rate {args.learning_rate:g},
seed {args.seed}; merged into the weights, so that it loads as it did before.
"""
    return _write_card(content, folder)


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
    terms = "\n".join(f"- {line}" for line in describe_terms(args))
    content = f"""{_front_matter(teacher, "knowledge-distillation")}

# {_name_of(folder)}

A speech language model of {parameters[0]:,} parameters, {share:.1f} % of the {parameters[1]:,} of its teacher
{_name_of(teacher)}, distilled as in TinyWave ([arXiv 2506.23670](https://arxiv.org/abs/2506.23670)).

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
    return _write_card(content, folder)


def _name_of(folder: str | os.PathLike) -> str:
    return escape_markdown(Path(folder).resolve().name)


def _write_card(content: str, folder: str | os.PathLike) -> Path:
    path = Path(folder) / CARD
    with atomic_file(path) as partial:
        partial.write_text(content, encoding="utf-8")
    return path
