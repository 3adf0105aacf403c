"""The recipe of every stage as a dataclass: what may stand in its YAML file, of which type and in which range.

A field without a default has to be given. `training` holds fields of the stage's `TrainingArguments`, `model` and
`encoder` those of a configuration; `tinywave.stages.parsing` checks them against these classes.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ..configuration_tinywave import STREAM_NAMES

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Length = Annotated[int, Field(ge=2, le=1_000_000)]
Layers = Annotated[int, Field(ge=1, le=1_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Hours = Annotated[float, Field(gt=0, le=1e6)]
Name = Annotated[str, Field(min_length=1)]
Settings = dict[str, Any]
Split = Literal["train", "validation", "test"]
Stream = Literal[STREAM_NAMES]
Streams = Annotated[list[Stream], Field(min_length=1)]
Domain = Literal["story", "facts", "word_list", "book", "recording"]
Pattern = Literal["speech", "text", "speech_text", "text_speech", "speech_text_speech"]
Mixture = Literal["speech", "interleaved"] | Annotated[dict[Pattern, Weight], Field(min_length=1)]
LayerPairs = Annotated[
    list[Annotated[list[Annotated[int, Field(ge=0, le=999)]], Field(min_length=2, max_length=2)]], Field(min_length=1)
]
Suite = Literal["lexical", "syntactic", "story", "speaker"]


class Recipe:
    """Base of every recipe; unknown keys, NaN and infinity are refused."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Documents(Recipe):
    """Documents of a synthetic corpus: `count` texts of a domain, spoken by a group of voices in weighted styles."""

    domain: Literal["story", "facts", "word_list", "book"]
    split: Split
    count: Count
    voices: Literal["hibari", "kokoro-train", "kokoro-test", "kokoro-mixed"]
    styles: Annotated[dict[str, Weight], Field(min_length=1)] | None = None


@dataclass(frozen=True)
class Recordings(Recipe):
    """A folder of recordings of a corpus, with its licence and source."""

    folder: Name
    split: Split = "train"
    licence: str = ""
    source: str = ""


@dataclass(frozen=True)
class DebianPackage(Recipe):
    """A Debian package of recordings, who speaks, and its licence."""

    name: Name
    voice: Name
    licence: Name


@dataclass(frozen=True)
class SpokenCorpusRecipe(Recipe):
    """`tinywave prepare`: a corpus of texts that are spoken."""

    seed: Seed
    documents: Annotated[list[Documents], Field(min_length=1)]


@dataclass(frozen=True)
class RecordedCorpusRecipe(Recipe):
    """`tinywave prepare`: a corpus of folders of recordings."""

    recordings: Annotated[list[Recordings], Field(min_length=1)]


@dataclass(frozen=True)
class DebianCorpusRecipe(Recipe):
    """`tinywave prepare`: a corpus of the recordings in Debian packages."""

    debian_packages: Annotated[list[DebianPackage], Field(min_length=1)]


@dataclass(frozen=True)
class UnitsRecipe(Recipe):
    """`tinywave fit-units`: k-means on features of a layer of the speech encoder."""

    num_units: Annotated[int, Field(ge=2, le=100_000)]
    layer: Layers
    max_frames: Count
    seed: Seed


@dataclass(frozen=True)
class SuitesRecipe(Recipe):
    """`tinywave build-suites`: number of pairs of every suite."""

    seed: Seed
    suites: Annotated[dict[Suite, Annotated[int, Field(ge=1, le=100_000)]], Field(min_length=1)]


@dataclass(frozen=True)
class Dataset(Recipe):
    """One of several data sets of a training; what it leaves out is that of the recipe."""

    streams: Streams | None = None
    domains: Annotated[list[Domain], Field(min_length=1)] | None = None
    mixture: Mixture | None = None
    max_length: Length | None = None
    seed: Seed | None = None


@dataclass(frozen=True, kw_only=True)
class LanguageModelRecipe(Recipe):
    """What every training of a language model is given: its settings, and the documents it reads."""

    seed: Seed
    training: Settings
    max_length: Length
    mixture: Mixture | None = None
    domains: Annotated[list[Domain], Field(min_length=1)] | None = None
    streams: Streams | None = None
    datasets: Annotated[list[Dataset], Field(min_length=1)] | None = None
    packing: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(LanguageModelRecipe):
    """`tinywave train`: a language model from random weights or from another model."""

    preset: Name


@dataclass(frozen=True, kw_only=True)
class CorrectionRecipe(LanguageModelRecipe):
    """`tinywave correct`: a LoRA fine-tune of the teacher on the domain that it is distilled on."""


@dataclass(frozen=True)
class Teacher(Recipe):
    """The teacher of a planned run: a preset, its depth, and the type of its weights."""

    preset: Name | None = None
    num_hidden_layers: Layers | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclass(frozen=True)
class Hardware(Recipe):
    """The machine of a planned run: an accelerate configuration, memory of a GPU in GiB, and the assumed MFU."""

    accelerate: Name
    gpu_memory_gib: Annotated[float, Field(gt=0, le=1e5)]
    model_flops_utilisation: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class DistillationRecipe(LanguageModelRecipe):
    """`tinywave distill`, `cache-teacher` and `plan`: a student from the mapped blocks of its teacher."""

    layer_map: LayerPairs
    student: Settings | None = None
    teacher: Teacher | None = None
    hardware: Hardware | None = None


@dataclass(frozen=True)
class ParallelHeadsRecipe(Recipe):
    """`tinywave train-heads`: heads that predict further tokens."""

    num_parallel_heads: Annotated[int, Field(ge=1, le=64)]
    seed: Seed
    training: Settings
    max_length: Length
    mixture: Mixture
    domains: Annotated[list[Domain], Field(min_length=1)] | None = None
    packing: bool = False


@dataclass(frozen=True)
class PitchHours(Recipe):
    """Hours of speech of each split."""

    train: Hours
    validation: Hours


@dataclass(frozen=True)
class PitchRecipe(Recipe):
    """`tinywave train-pitch`."""

    seed: Seed
    hours: PitchHours
    model: Settings
    training: Settings


@dataclass(frozen=True)
class StyleRecipe(Recipe):
    """`tinywave train-style`."""

    seed: Seed
    model: Settings
    training: Settings
    hours_per_style: Hours | None


@dataclass(frozen=True)
class VocoderRecipe(Recipe):
    """`tinywave train-vocoder`."""

    streams: Streams
    num_story_sentences: Count
    kokoro_share: Share
    seed: Seed
    model: Settings
    training: Settings


@dataclass(frozen=True)
class HifiGanRecipe(Recipe):
    """`tinywave train-hifigan`."""

    seed: Seed
    model: Settings
    training: Settings


@dataclass(frozen=True)
class SpeechEncoderRecipe(Recipe):
    """`tinywave train-speech-encoder`."""

    seed: Seed
    training: Settings
    encoder: Settings | None = None
    pruning_utterances: Count | None = None
    weight_bits: Literal[8] | None = None


@dataclass(frozen=True)
class Variant(Recipe):
    """What the models of a variant of the quickstart read and write."""

    streams: Streams
    mixture: Mixture
    max_length: Length | None = None


@dataclass(frozen=True)
class Prosody(Recipe):
    """Prompts of the quickstart that are compared by style."""

    styles: Annotated[list[str], Field(min_length=2)]
    max_per_style: Count
    generation: Settings


@dataclass(frozen=True)
class QuickstartRecipe(Recipe):
    """`tinywave quickstart`."""

    corpus: SpokenCorpusRecipe
    variants: dict[Literal["base", "expressive", "interleaved"], Variant]
    correction: Name
    distillation: Name
    suites: Annotated[list[Suite], Field(min_length=1)]
    num_resynthesis_clips: Count
    num_continuations: Count
    prompt_sentences: Count
    generation: Settings
    prosody: Prosody
    seed: Seed


@dataclass(frozen=True)
class AblationRunRecipe(Recipe):
    """What one run of an ablation changes."""

    from_scratch: bool = False
    corrected: bool = True
    layer_map: LayerPairs | None = None
    training: Settings | None = None


@dataclass(frozen=True)
class AblationRecipe(Recipe):
    """`tinywave ablate`."""

    distillation: Name
    correction: Name
    streams: Streams
    suites: Annotated[list[Suite], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    reference: Name
    training: Settings
    runs: Annotated[dict[str, AblationRunRecipe | None], Field(min_length=1)]
