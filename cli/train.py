"""`tinywave train nano/teacher --units outputs/units --output-dir outputs/teacher`"""

from pathlib import Path

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, TrainingArguments, set_seed

from ..configuration_tinywave import TinyWaveConfig
from ..data.interleaving import (
    INTERLEAVED,
    SPEECH_ONLY,
    InterleavedDataset,
    JoinedDataset,
    read_documents,
    read_encoder,
)
from ..data.packing import PackedDataset
from ..stages.recipes import TrainRecipe
from ..tokenization_tinywave import build_tokenizer, text_part, train_text_tokenizer
from ..training.pretraining import add_streams, train_language_model
from .loading import load_for_training
from .recipe import RecipeArgument
from .runs import start_run

TRAINING_SPLITS = ("train", "validation")
MIXTURES = {"speech": SPEECH_ONLY, "interleaved": INTERLEAVED}

RECIPE = RecipeArgument("training recipe", TrainRecipe, training=TrainingArguments)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` wrote")
    parser.add_argument("--init-from", help="model folder to start from, in place of random weights")
    parser.add_argument("--output-dir", required=True, help="folder of the model and its checkpoints")


def run(arguments) -> int:
    recipe = RECIPE.read(arguments)
    inputs = {"units": arguments.units, "init_from": arguments.init_from}
    record = start_run(arguments.output_dir, "train", recipe, inputs)
    if record is None:
        return 0
    wanted = TinyWaveConfig.from_preset(recipe["preset"])
    if arguments.init_from:
        model, tokenizer = load_for_training(arguments.init_from)
        if model.config.vocab_size < wanted.vocab_size:
            set_seed(recipe["seed"])
            add_streams(model, wanted)
            tokenizer = build_tokenizer(model.config, text_part(tokenizer, model.config))
        config = model.config
    else:
        model = config = wanted
        documents = read_documents(arguments.units, "train", recipe.get("domains"))
        texts = [" ".join(document.words) for document in documents]
        tokenizer = build_tokenizer(config, train_text_tokenizer(texts, config))
    config.codec_fingerprint = read_encoder(arguments.units)
    datasets = {split: make_dataset(recipe, arguments.units, split, config, tokenizer) for split in TRAINING_SPLITS}
    trainer = train_language_model(
        model,
        pack(datasets["train"], recipe),
        TrainingArguments(output_dir=arguments.output_dir, seed=recipe["seed"], **recipe["training"]),
        tokenizer=tokenizer,
        eval_dataset=datasets["validation"],
    )
    if trainer.args.should_save:
        record.finish()
    print(arguments.output_dir)
    return 0


def make_dataset(
    recipe: dict, units_folder: str | Path, split: str, config: TinyWaveConfig, tokenizer: PreTrainedTokenizerFast
) -> InterleavedDataset | JoinedDataset:
    """Documents of one split as a training recipe wants them: its `domains`, `mixture`, `max_length` and `seed`.

    `mixture` is a name or the weights of patterns. `streams`, such as [unit], leaves out others that the model has. A
    recipe with a list `datasets` joins several, each of which may replace these settings.
    """
    if "datasets" in recipe:
        parts = ({**recipe, **part} for part in recipe["datasets"])
        settings = [{name: value for name, value in part.items() if name != "datasets"} for part in parts]
        return JoinedDataset([make_dataset(part, units_folder, split, config, tokenizer) for part in settings])
    if "streams" in recipe:
        config = config.with_streams(recipe["streams"])
    documents = read_documents(units_folder, split, recipe.get("domains"), config.unit_rate, config.prosody_streams)
    mixture = recipe.get("mixture")
    if mixture is None:
        raise ValueError("the recipe has no `mixture`; expected one of its own, or one in each of its `datasets`")
    if not isinstance(mixture, dict):
        mixture = MIXTURES[mixture]
    return InterleavedDataset(documents, config, tokenizer, mixture, recipe["max_length"], recipe["seed"])


def is_packed(recipe: dict) -> bool:
    """Whether a recipe says `packing: true`.

    Raises `ValueError` for another value, and for a recipe that packs and has no `max_length` for its rows.
    """
    packing = recipe.get("packing", False)
    if not isinstance(packing, bool):
        raise ValueError(f"`packing` must be true or false; found {packing!r}.")
    if packing and "max_length" not in recipe:
        raise ValueError("A recipe with `packing: true` needs `max_length`, the ids of a row, beside its `datasets`.")
    return packing


def pack(dataset: Dataset, recipe: dict) -> Dataset:
    """The documents in rows of the recipe's `max_length` where it says `packing: true`, else as they are."""
    return PackedDataset(dataset, recipe["max_length"]) if is_packed(recipe) else dataset
