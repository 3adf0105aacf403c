"""`tinywave train nano/teacher --units outputs/units --output-dir outputs/teacher`"""

from pathlib import Path

from transformers import PreTrainedTokenizerFast, TrainingArguments

from ..configuration_tinywave import TinyWaveConfig
from ..data.interleaving import INTERLEAVED, SPEECH_ONLY, InterleavedDataset, read_documents
from ..modeling_tinywave import TinyWaveForCausalLM
from ..tokenization_tinywave import build_tokenizer, train_text_tokenizer
from ..training.pretraining import train_language_model
from .recipe import read_recipe

TRAINING_SPLITS = ("train", "validation")
MIXTURES = {"speech": SPEECH_ONLY, "interleaved": INTERLEAVED}


def add_arguments(parser):
    parser.add_argument("recipe", help="training recipe: a YAML file or the name of a packaged one")
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` wrote")
    parser.add_argument("--init-from", help="model folder to start from, in place of random weights")
    parser.add_argument("--output-dir", required=True, help="folder of the model and its checkpoints")


def run(arguments) -> int:
    recipe = read_recipe(arguments.recipe)
    if arguments.init_from:
        model = TinyWaveForCausalLM.from_pretrained(arguments.init_from, dtype="float32")
        config, tokenizer = model.config, PreTrainedTokenizerFast.from_pretrained(arguments.init_from)
    else:
        model = config = TinyWaveConfig.from_preset(recipe["preset"])
        documents = read_documents(arguments.units, "train", recipe.get("domains"))
        texts = [" ".join(document.words) for document in documents]
        tokenizer = build_tokenizer(config, train_text_tokenizer(texts, config))
    datasets = {split: make_dataset(recipe, arguments.units, split, config, tokenizer) for split in TRAINING_SPLITS}
    train_language_model(
        model,
        datasets["train"],
        TrainingArguments(output_dir=arguments.output_dir, seed=recipe["seed"], **recipe["training"]),
        tokenizer=tokenizer,
        eval_dataset=datasets["validation"],
    )
    print(arguments.output_dir)
    return 0


def make_dataset(
    recipe: dict, units_folder: str | Path, split: str, config: TinyWaveConfig, tokenizer: PreTrainedTokenizerFast
) -> InterleavedDataset:
    """Documents of one split as a training recipe wants them: its `domains`, `mixture`, `max_length` and `seed`.

    `mixture` is a name or the weights of patterns. Pitch and style are read where the model has them.
    """
    prosody = [name for name in ("pitch", "style") if name in config.stream_ranges()]
    documents = read_documents(units_folder, split, recipe.get("domains"), config.unit_rate, prosody)
    mixture = recipe["mixture"]
    if not isinstance(mixture, dict):
        mixture = MIXTURES[mixture]
    return InterleavedDataset(documents, config, tokenizer, mixture, recipe["max_length"], recipe["seed"])
