"""What is known of a model: read from its folder and, where it is a model of a quickstart, from its neighbours.

Everything here is read, nothing is assumed: what a run did not write down is None or empty, and the card is silent
about it.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCard
from transformers.trainer import TRAINER_STATE_NAME

from ..cli.shipped import TEACHER
from ..data.corpus import MANIFEST, iterate_corpus
from ..data.storage import read_json
from ..eval.result_records import WHOLE_SUITE
from ..eval.results import STUDENT
from ..eval.results import TEACHER as TEACHER_ROLE
from ..stages.parsing import load_recipe
from ..training.model_card import CARD, read_licence

EVALUATION, REPORT, RESULTS, CONTINUATIONS = "evaluation.json", "report.json", "results.json", "continuations.json"
CORPUS, HUB_RESULTS = "corpus", ".eval_results"
# Which recipe of a quickstart made which of its models.
_RECIPE_OF_ROLE = {STUDENT: "distillation", "no_distillation": "distillation", TEACHER_ROLE: "correction"}
# What the trainer's state repeats of its settings.
_SETTING_OF_STATE = {
    "max_steps": "max_steps",
    "train_batch_size": "per_device_train_batch_size",
    "save_steps": "save_steps",
}


@dataclass(frozen=True)
class CorpusPart:
    """Documents of one kind, voice and licence in the corpus of a run; `hours` of speech."""

    split: str
    domain: str
    voice: str
    licence: str
    source: str
    documents: int
    hours: float


@dataclass(frozen=True)
class Sample:
    """Recordings of a prompt and of what the model says after it, and the words of the prompt."""

    prompt: Path
    continuation: Path
    text: str


@dataclass(frozen=True)
class RunFacts:
    """What is known of how a model was made and how good it is.

    Attributes:
        name (`str`): of the model folder.
        role (`str`): the model's name in `evaluation` and `report`.
        licence (`dict`): `license` and, for one of its own, `license_name` and `license_link`; empty if unknown.
        training_text (`str` or None): the section "Training" of the card that the distillation left in the folder.
        state (`dict`): the trainer's state: steps, losses.
        recipe_name (`str` or None), recipe (`dict`): of the training; the latter only where `state` confirms it.
        evaluation (`dict`): of `tinywave evaluate` or of the quickstart: suites, perplexity, retention.
        results (`list[dict]`): the model's accuracies as records, see `eval.result_records`.
        report (`dict`): of the quickstart.
        corpus (`list[CorpusPart]`): what the run was trained and tested on.
        samples (`list[Sample]`): recordings that the run made.
        hub_results (`list[Path]`): what `tinywave evaluate --dataset-id` left in the folder for the Hub.
    """

    name: str
    role: str
    licence: dict = field(default_factory=dict)
    training_text: str | None = None
    state: dict = field(default_factory=dict)
    recipe_name: str | None = None
    recipe: dict = field(default_factory=dict)
    evaluation: dict = field(default_factory=dict)
    results: list[dict] = field(default_factory=list)
    report: dict = field(default_factory=dict)
    corpus: list[CorpusPart] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    hub_results: list[Path] = field(default_factory=list)

    @property
    def is_distilled(self) -> bool:
        """Whether a teacher is known to have taught it."""
        return self.role == STUDENT if self.report else self.training_text is not None


def read_run_facts(folder: str | Path) -> RunFacts:
    """Read what a model folder, and the run that it is part of, say about the model.

    Args:
        folder: of the model. `evaluation.json`, `report.json`, `corpus` and `samples` are taken from beside it, where
            a quickstart put them, or else `evaluation.json` and `results.json` from inside it, where `tinywave
            evaluate --output-dir` can put them.

    Raises `ValueError` for a file that is there but is not JSON.
    """
    folder = Path(folder).resolve()
    run, role = folder.parent, folder.name
    beside = _read_json(run / EVALUATION)
    is_in_run = any(role in by_model for by_model in beside.get("suites", {}).values())
    evaluation = beside if is_in_run else _read_json(folder / EVALUATION)
    # `tinywave evaluate` calls every model that it scores the student.
    results = evaluation_to_results(evaluation, role if is_in_run else STUDENT)
    report = _read_json(run / REPORT) if is_in_run else {}
    state = _read_json(folder / TRAINER_STATE_NAME)
    recipe_name, recipe = _recipe_of_run(report, role, state)
    return RunFacts(
        name=folder.name,
        role=role,
        licence=_licence(folder, report),
        training_text=_training_section(folder),
        state=state,
        recipe_name=recipe_name,
        recipe=recipe,
        evaluation=evaluation,
        results=results if is_in_run else _read_json(folder / RESULTS) or results,
        report=report,
        corpus=_read_corpus(run / CORPUS) if is_in_run else [],
        samples=_samples(run, role) if is_in_run else [],
        hub_results=sorted(folder.glob(f"{HUB_RESULTS}/*.yaml")),
    )


def evaluation_to_results(evaluation: dict, role: str) -> list[dict]:
    """The accuracies of one model in an `evaluation.json` -> records of whole suites, see `eval.result_records`."""
    kept = evaluation.get("retention", {}).get("suites", {}) if role == STUDENT else {}
    results = []
    for suite, by_model in evaluation.get("suites", {}).items():
        if (score := by_model.get(role)) is None:
            continue
        record = {name: score[name] for name in ("n", "accuracy", "standard_error", "ci95")}
        record = {"suite": suite, "part": WHOLE_SUITE, "score": score["convention"]["normalisation"]} | record
        if suite in kept:
            record |= {f"{name}_ratio": value for name, value in kept[suite].items()}
        results.append(record)
    return results


def _read_json(path: Path) -> dict | list:
    if not path.is_file():
        return {}
    try:
        return read_json(path, may_be_list=True)
    except ValueError as error:
        raise ValueError(f"{error}; make it again or move it away") from error


def _licence(folder: Path, report: dict) -> dict:
    """What the model's own card states; a quickstart starts from the shipped teacher, whose licence goes on."""
    is_quickstart = "correction" in report.get("configuration", {})
    return read_licence(folder) or (read_licence(TEACHER) if is_quickstart else {})


def _training_section(folder: Path) -> str | None:
    """The text under "## Training" of the folder's own card."""
    if not (folder / CARD).is_file():
        return None
    lines = ModelCard.load(folder / CARD).text.splitlines()
    if "## Training" not in lines:
        return None
    section = lines[lines.index("## Training") + 1 :]
    end = next((number for number, line in enumerate(section) if line.startswith("## ")), len(section))
    return "\n".join(section[:end]).strip() or None


def _recipe_of_run(report: dict, role: str, state: dict) -> tuple[str | None, dict]:
    """The recipe that the report names, and its content where the trainer's state confirms that it is still the same.

    A recipe can have changed since the run, or be a file that is no longer there.
    """
    name = report.get("configuration", {}).get(_RECIPE_OF_ROLE.get(role))
    if name is None or not state:
        return name, {}
    try:
        recipe = load_recipe(name)
    except FileNotFoundError:
        return name, {}
    training = recipe.get("training", {})
    is_the_same = all(state.get(key) == training.get(setting) for key, setting in _SETTING_OF_STATE.items())
    return name, recipe if is_the_same else {}


def _read_corpus(folder: Path) -> list[CorpusPart]:
    """The kinds of documents in a corpus, in its order; nothing where the run kept no corpus."""
    if not (folder / MANIFEST).is_file():
        return []
    columns = ("split", "domain", "voice", "licence", "source")
    documents, seconds = Counter(), Counter()
    for row in iterate_corpus(folder, [*columns, "num_samples", "sampling_rate"]):
        kind = tuple(row[name] for name in columns)
        documents[kind] += 1
        seconds[kind] += row["num_samples"] / row["sampling_rate"]
    return [CorpusPart(*kind, documents=count, hours=seconds[kind] / 3600) for kind, count in documents.items()]


def _samples(run: Path, role: str) -> list[Sample]:
    """The recordings of a quickstart that are there, and inside its folder."""
    found = []
    for card in _read_json(run / CONTINUATIONS).get("continuations", []):
        paths = [(run / card[name]).resolve() for name in ("prompt", role) if name in card]
        if len(paths) == 2 and all(path.is_file() and path.is_relative_to(run) for path in paths):
            found.append(Sample(*paths, text=card.get("text", "")))
    return found
