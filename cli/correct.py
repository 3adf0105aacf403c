"""`tinywave correct nano/correction --teacher assets/teacher --units outputs/units --output-dir outputs/corrected`"""

import sys
from pathlib import Path

from ..data.collators import CausalLanguageModelCollator
from ..data.interleaving import read_encoder
from ..processing_tinywave import TinyWaveProcessor
from ..stages.recipes import CorrectionRecipe
from ..training.arguments import CorrectionArguments
from ..training.checkpoints import last_checkpoint
from ..training.model_card import write_correction_card
from ..training.run_record import RunRecord
from ..training.teacher_correction import correct_teacher
from .loading import load_for_training
from .recipe import RecipeArgument
from .shipped import TEACHER
from .train import make_dataset, pack

RECIPE = RecipeArgument("correction recipe", CorrectionRecipe, training=CorrectionArguments)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--teacher", default=str(TEACHER), help="model folder")
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` wrote")
    parser.add_argument("--output-dir", required=True, help="folder of the corrected teacher")


def run(arguments) -> int:
    correct(RECIPE.read(arguments), arguments.teacher, arguments.units, arguments.output_dir)
    print(arguments.output_dir)
    return 0


def correct(recipe: dict, teacher: str | Path, units_folder: str | Path, output_dir: str | Path) -> None:
    """Correct a teacher on the training documents of `units_folder`, and save it in `output_dir`.

    An interrupted run continues from its last checkpoint; a finished one is left as it is.

    Raises:
        ValueError: where `output_dir` belongs to a run of other settings or inputs.
    """
    run = RunRecord(output_dir, "correct", {"recipe": recipe}, {"teacher": teacher, "units": units_folder})
    if run.is_finished:
        print(run.describe(), file=sys.stderr)
        return
    model, tokenizer = load_for_training(teacher, recipe.get("streams"))
    dataset = make_dataset(recipe, units_folder, "train", model.config, tokenizer)
    model.config.codec_fingerprint = read_encoder(units_folder)
    args = CorrectionArguments(
        output_dir=str(output_dir),
        seed=recipe["seed"],
        resume_from_checkpoint=last_checkpoint(Path(output_dir)),
        **recipe["training"],
    )
    collator = CausalLanguageModelCollator(model.config.pad_token_id)
    processor = TinyWaveProcessor.from_config(model.config, tokenizer)
    correct_teacher(model, pack(dataset, recipe), collator, args, processor)
    if args.should_save:
        write_correction_card(output_dir, teacher=teacher, args=args, num_examples=len(dataset))
        run.finish()
