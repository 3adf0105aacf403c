"""`tinywave distill nano/distillation --teacher outputs/corrected --units outputs/units --output-dir outputs/out`"""

from pathlib import Path

from transformers import set_seed

from ..data.collators import CausalLanguageModelCollator
from ..distill_trainer import DistillationTrainer
from ..processing_tinywave import TinyWaveProcessor
from ..training.arguments import DistillationArguments
from ..training.checkpoints import last_checkpoint
from ..training.layer_map import LayerMap
from ..training.student_init import student_from_teacher
from .loading import load_for_training
from .recipe import read_recipe
from .shipped import TEACHER
from .train import make_dataset

# The baseline that distillation has to beat: the same pruned student on the data alone.
WITHOUT_TEACHER = {"cross_entropy_weight": 1.0, "logits_weight": 0.0, "hidden_weight": 0.0, "attention_weight": 0.0}


def add_arguments(parser):
    parser.add_argument("recipe", help="distillation recipe: a YAML file or the name of a packaged one")
    parser.add_argument("--teacher", default=str(TEACHER), help="model folder")
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` wrote")
    parser.add_argument("--output-dir", required=True, help="folder of the student and its checkpoints")
    parser.add_argument("--without-teacher", action="store_true", help="train the pruned student on the data alone")


def run(arguments) -> int:
    overrides = WITHOUT_TEACHER if arguments.without_teacher else {}
    distill(read_recipe(arguments.recipe), arguments.teacher, arguments.units, arguments.output_dir, overrides)
    print(arguments.output_dir)
    return 0


def distill(
    recipe: dict, teacher: str | Path, units_folder: str | Path, output_dir: str | Path, overrides: dict
) -> DistillationTrainer:
    """Prunes a teacher by the recipe's layer map, distils it on the training documents and saves the student.

    `overrides` replace fields of [`DistillationArguments`]. An interrupted run continues from its last checkpoint.
    """
    model, tokenizer = load_for_training(teacher, recipe.get("streams"))
    layer_map = LayerMap.from_pairs(recipe["layer_map"])
    set_seed(recipe["seed"])
    trainer = DistillationTrainer(
        student_from_teacher(model, layer_map),
        teacher_model=model,
        layer_map=layer_map,
        args=DistillationArguments(
            output_dir=str(output_dir), seed=recipe["seed"], **{**recipe["training"], **overrides}
        ),
        train_dataset=make_dataset(recipe, units_folder, "train", model.config, tokenizer),
        data_collator=CausalLanguageModelCollator(model.config.pad_token_id),
        processing_class=TinyWaveProcessor.from_config(model.config, tokenizer),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(output_dir)))
    trainer.save_model()
    trainer.save_state()
    return trainer
