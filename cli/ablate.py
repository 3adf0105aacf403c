"""`tinywave ablate --units outputs/units --output-dir outputs/ablation`"""

import json
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from transformers import set_seed

from ..configuration_tinywave import PROSODY_STREAMS
from ..data.interleaving import read_documents, read_encoder
from ..data.storage import read_json, write_json
from ..eval.ablation import TEACHER as TEACHER_RUN
from ..eval.ablation import ablation_to_markdown, build_ablation, score_run, write_page
from ..eval.suites import check_streams, read_suite
from ..loading_tinywave import load_pretrained
from ..modeling_tinywave import TinyWaveForCausalLM
from ..stages.recipes import AblationRecipe, CorrectionRecipe, DistillationRecipe
from ..training.arguments import CorrectionArguments, DistillationArguments
from ..training.layer_map import LayerMap
from ..training.student_init import student_config
from ..training.teacher_cache import teacher_fingerprint
from .correct import correct
from .distill import distill
from .loading import load_for_training
from .recipe import RecipeArgument, read_recipe
from .shipped import SUITES, TEACHER

RECIPE_KEYS = ("distillation", "correction", "streams", "suites", "seeds", "reference", "training", "runs")

RECIPE = RecipeArgument("ablation recipe", AblationRecipe, default="ablation", training=DistillationArguments)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--teacher", default=str(TEACHER), help="model folder")
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` wrote")
    parser.add_argument("--suites", default=str(SUITES), help="folder of suite manifests")
    parser.add_argument("--output-dir", required=True, help="folder of ablation.json and of every run")
    parser.add_argument("--page", help="Markdown page that gets the table; ablation.json is written beside it")


def run(arguments) -> int:
    recipe, folder = RECIPE.read(arguments), Path(arguments.output_dir)
    ablation = Ablation(recipe, arguments.teacher, arguments.units, arguments.suites, folder).run()
    write_json(ablation, folder / "ablation.json")
    if arguments.page:
        write_page(ablation, arguments.page)
    print(ablation_to_markdown(ablation))
    return 0


@dataclass(frozen=True)
class AblationRun:
    """What one run of a recipe changes; by default nothing.

    Args:
        from_scratch (`bool`): start from random weights, not from the teacher's blocks.
        corrected (`bool`): learn from the corrected teacher.
        layer_map (`list`, *optional*): pairs (teacher block, student block), in place of the distillation recipe's.
        training (`dict`): fields of [`DistillationArguments`], in place of those of the recipes.
    """

    from_scratch: bool = False
    corrected: bool = True
    layer_map: list | None = None
    training: dict = field(default_factory=dict)

    @classmethod
    def from_recipe(cls, name: str, settings: dict | None) -> "AblationRun":
        """Reads one entry of `runs`. Raises `ValueError` for a setting that a run does not have."""
        known = {run_field.name for run_field in fields(cls)}
        if unknown := sorted(set(settings or {}) - known):
            raise ValueError(f"Run {name!r} sets {', '.join(unknown)}; a run can set {', '.join(sorted(known))}.")
        return cls(**(settings or {}))


def _correction_recipe(recipe: dict) -> dict:
    correction = read_recipe(recipe["correction"], CorrectionRecipe, training=CorrectionArguments)
    return correction | {"streams": recipe["streams"]}


def _base_recipe(recipe: dict) -> dict:
    distillation = read_recipe(recipe["distillation"], DistillationRecipe, training=DistillationArguments)
    return distillation | {"streams": recipe["streams"]}


class Ablation:
    """The runs of one recipe, each of every seed. A finished run leaves one file and is not repeated.

    Args:
        recipe: as `recipes/ablation.yaml`.
        teacher: folder of the teacher, which is corrected once for all runs.
        units_folder: its training split is learnt, its test split gives the perplexity.
        suites_folder: holds the manifests of the recipe's `suites`.
        folder: of all results.

    Raises:
        ValueError: for settings that cannot be used, and suites of another codec than the units; nothing is trained
            then.
        FileNotFoundError: for a suite that is missing.
    """

    def __init__(self, recipe: dict, teacher, units_folder, suites_folder, folder: Path):
        if missing := [name for name in RECIPE_KEYS if name not in recipe]:
            raise ValueError(f"The recipe has no {', '.join(missing)}; expected {', '.join(RECIPE_KEYS)}.")
        self.recipe, self.teacher, self.units_folder, self.folder = recipe, teacher, units_folder, folder
        self.correction = read_recipe(recipe["correction"], CorrectionRecipe, training=CorrectionArguments) | {
            "streams": recipe["streams"]
        }
        self.runs = {name: AblationRun.from_recipe(name, settings) for name, settings in recipe["runs"].items()}
        if recipe["reference"] not in self.runs or TEACHER_RUN in self.runs:
            raise ValueError(
                f"The recipe's reference must be one of its runs {', '.join(self.runs)}, and none of them may be "
                f"called {TEACHER_RUN!r}; found the reference {recipe['reference']!r}."
            )
        for name in self.runs:
            self._check(name)
        self.suites = {suite: Path(suites_folder) / f"{suite}.parquet" for suite in recipe["suites"]}
        if missing := [str(path) for path in self.suites.values() if not path.is_file()]:
            raise FileNotFoundError(f"No suite at {', '.join(missing)}; build it with tinywave build-suites.")
        prosody = [name for name in PROSODY_STREAMS if name in recipe["streams"]]
        self.held_out = read_documents(units_folder, "test", prosody=prosody)
        encoder = read_encoder(units_folder)
        for path in self.suites.values():
            check_streams(read_suite(path)[0], recipe["streams"], encoder)
        model = load_pretrained(TinyWaveForCausalLM, teacher)
        self.origin = {"teacher": teacher_fingerprint(model), "encoder": encoder}

    def _check(self, name: str) -> None:
        """Refuse now what would stop a run after hours of others."""
        settings = self._distillation_recipe(name, seed=0)
        LayerMap.from_pairs(settings["layer_map"])
        known = {argument.name for argument in fields(DistillationArguments)}
        if unknown := sorted(set(settings["training"]) - known):
            raise ValueError(f"Run {name!r} trains with {', '.join(unknown)}, which DistillationArguments lack.")
        DistillationArguments(output_dir=str(self.folder), **settings["training"])

    def run(self) -> dict:
        """Runs what is not done, and returns the results of all."""
        records: dict[str, dict[int, dict]] = {name: {} for name in (TEACHER_RUN, *self.runs)}
        seed = self.correction["seed"]
        records[TEACHER_RUN][seed] = self._scores(TEACHER_RUN, seed)
        for seed in self.recipe["seeds"]:
            for name in self.runs:
                records[name][seed] = self._scores(name, seed)
        return build_ablation(records, self.recipe["reference"])

    def _scores(self, name: str, seed: int) -> dict:
        """The scores of a run: from its file, or of the model that is trained for it."""
        path, settings = self.folder / "runs" / name / f"seed_{seed}.json", self._settings(name, seed)
        if path.is_file():
            record = read_json(path)
            if record.get("settings") != settings:
                raise ValueError(
                    f"{path} is of other settings than the recipe's, of another teacher or of units of another codec; "
                    "delete it to repeat the run, or choose another --output-dir."
                )
            return record
        print(f"\n{name}, seed {seed}", flush=True)
        # What an interrupted run left may be of other settings.
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        folder = self._corrected_teacher() if name == TEACHER_RUN else self._train(name, seed, path.with_suffix(""))
        model = load_pretrained(TinyWaveForCausalLM, folder, dtype="float32")
        record = {"settings": settings, **score_run(model, self.suites, self.held_out)}
        write_json(record, path)
        return record

    def _settings(self, name: str, seed: int) -> dict:
        """All that the result of a run depends on, as it comes back from JSON."""
        if name == TEACHER_RUN:
            settings = {"correction": self.correction}
        else:
            settings = {**asdict(self.runs[name]), "recipe": self._distillation_recipe(name, seed)}
            settings["correction"] = self.correction if self.runs[name].corrected else None
        return json.loads(json.dumps(self.origin | settings))

    def _distillation_recipe(self, name: str, seed: int) -> dict:
        changes = self.runs[name]
        recipe = read_recipe(self.recipe["distillation"], DistillationRecipe, training=DistillationArguments) | {
            "streams": self.recipe["streams"],
            "seed": seed,
        }
        recipe["training"] = {**recipe["training"], **self.recipe["training"], **changes.training}
        return recipe | ({"layer_map": changes.layer_map} if changes.layer_map else {})

    def _train(self, name: str, seed: int, folder: Path) -> Path:
        recipe = self._distillation_recipe(name, seed)
        teacher = self._corrected_teacher() if self.runs[name].corrected else self.teacher
        untrained = None
        if self.runs[name].from_scratch:
            untrained = folder / "untrained"
            save_untrained_student(teacher, LayerMap.from_pairs(recipe["layer_map"]), seed, untrained)
        distill(recipe, teacher, self.units_folder, folder, {}, init_from=untrained)
        return folder

    def _corrected_teacher(self) -> Path:
        """Made once for all runs."""
        folder = self.folder / "corrected_teacher"
        correct(self.correction, self.teacher, self.units_folder, folder)
        return folder


def save_untrained_student(teacher: str | Path, layer_map: LayerMap, seed: int, folder: Path) -> None:
    """Saves a student of the teacher's widths and the map's depth with random weights, and the tokenizer."""
    model, tokenizer = load_for_training(teacher)
    set_seed(seed)
    TinyWaveForCausalLM(student_config(model.config, layer_map)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
