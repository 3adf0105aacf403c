"""`tinywave distill nano/distillation --teacher outputs/corrected --units outputs/units --output-dir outputs/out`"""

import sys
from pathlib import Path

from torch.utils.data import DataLoader, Subset
from transformers import set_seed

from ..data.collators import CausalLanguageModelCollator
from ..data.interleaving import read_encoder
from ..distill_trainer import DistillationTrainer
from ..modeling_tinywave import TinyWaveForCausalLM
from ..processing_tinywave import TinyWaveProcessor
from ..stages.recipes import DistillationRecipe
from ..training.arguments import DistillationArguments
from ..training.cached_teacher import CachedTeacher
from ..training.checkpoints import last_checkpoint
from ..training.layer_map import LayerMap
from ..training.model_card import write_model_card
from ..training.run_record import RunRecord
from ..training.student_init import student_config, student_from_teacher
from ..training.terms import TERMS
from .loading import load_for_training
from .recipe import RecipeArgument
from .shipped import TEACHER
from .train import make_dataset, pack

# The baseline that distillation has to beat: the same pruned student on the data alone.
WITHOUT_TEACHER = {term.weight_field: float(not term.needs_teacher) for term in TERMS}
# What Minitron ranks units, heads and channels on (arXiv 2407.14679).
NUM_CALIBRATION_EXAMPLES = 1024

RECIPE = RecipeArgument("distillation recipe", DistillationRecipe, training=DistillationArguments)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--teacher", default=str(TEACHER), help="model folder")
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` wrote")
    parser.add_argument("--output-dir", required=True, help="folder of the student and its checkpoints")
    parser.add_argument("--init-from", help="model folder the student starts from, in place of the pruned teacher")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--teacher-cache", help="folder that `tinywave cache-teacher` wrote, read in place of the teacher"
    )
    group.add_argument("--without-teacher", action="store_true", help="train the pruned student on the data alone")


def run(arguments) -> int:
    overrides = WITHOUT_TEACHER if arguments.without_teacher else {}
    distill(
        RECIPE.read(arguments),
        arguments.teacher,
        arguments.units,
        arguments.output_dir,
        overrides,
        init_from=arguments.init_from,
        teacher_cache=arguments.teacher_cache,
    )
    print(arguments.output_dir)
    return 0


def distill(
    recipe: dict,
    teacher: str | Path,
    units_folder: str | Path,
    output_dir: str | Path,
    overrides: dict,
    *,
    init_from: str | Path | None = None,
    teacher_cache: str | Path | None = None,
) -> None:
    """Prune a teacher by the recipe's layer map, distil it on the training documents and save the student.

    An interrupted run continues from its last checkpoint; a finished one is left as it is.

    Args:
        recipe: settings of the run.
        teacher, units_folder, output_dir: folders.
        overrides: fields of [`DistillationArguments`] that replace those of the recipe.
        init_from (*optional*): folder of a student to start from, in place of the pruned teacher.
        teacher_cache (*optional*): folder that is read in place of running the teacher.

    Raises:
        ValueError: where `output_dir` belongs to a run of other settings or inputs.
    """
    inputs = {"teacher": teacher, "units": units_folder, "init_from": init_from, "teacher_cache": teacher_cache}
    run = RunRecord(output_dir, "distill", {"recipe": recipe, "overrides": overrides}, inputs)
    if run.is_finished:
        print(run.describe(), file=sys.stderr)
        return
    dtype = recipe.get("teacher", {}).get("dtype", "float32")
    model, tokenizer = load_for_training(teacher, recipe.get("streams"), dtype)
    layer_map = LayerMap.from_pairs(recipe["layer_map"])
    dataset = make_dataset(recipe, units_folder, "train", model.config, tokenizer)
    collator = CausalLanguageModelCollator(model.config.pad_token_id)
    set_seed(recipe["seed"])
    student = (
        load_for_training(init_from, recipe.get("streams"))[0]
        if init_from
        else prune(model, layer_map, recipe, dataset, collator)
    )
    student.config.codec_fingerprint = read_encoder(units_folder)
    trainer = DistillationTrainer(
        student,
        teacher_model=None if teacher_cache else model,
        teacher_source=CachedTeacher(teacher_cache) if teacher_cache else None,
        layer_map=layer_map,
        args=DistillationArguments(
            output_dir=str(output_dir), seed=recipe["seed"], **{**recipe["training"], **overrides}
        ),
        train_dataset=pack(dataset, recipe),
        data_collator=collator,
        processing_class=TinyWaveProcessor.from_config(model.config, tokenizer),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(output_dir)))
    trainer.save_model()
    trainer.save_state()
    if trainer.args.should_save:
        write_model_card(
            output_dir,
            teacher=teacher,
            parameters=(student.num_parameters(), model.num_parameters()),
            layer_map=layer_map,
            args=trainer.args,
            num_examples=len(dataset),
            num_steps=trainer.state.global_step,
        )
        run.finish()


def prune(teacher: TinyWaveForCausalLM, layer_map: LayerMap, recipe: dict, dataset, collator) -> TinyWaveForCausalLM:
    """The student of a recipe, in float32: the mapped blocks, cut to the sizes under `student` where there are any."""
    sizes = recipe.get("student")
    if not sizes:
        return student_from_teacher(teacher, layer_map).float()
    examples = Subset(dataset, range(min(NUM_CALIBRATION_EXAMPLES, len(dataset))))
    calibration = DataLoader(examples, recipe["training"]["per_device_train_batch_size"], collate_fn=collator)
    config = student_config(teacher.config, layer_map, sizes)
    return student_from_teacher(teacher, layer_map, config, calibration).float()
