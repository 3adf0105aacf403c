"""`tinywave train nano/teacher --units outputs/units --output-dir outputs/teacher`"""

from transformers import PreTrainedTokenizerFast, TrainingArguments

from ..configuration_tinywave import TinyWaveConfig
from ..data.interleaving import INTERLEAVED, SPEECH_ONLY, AlignedDocument, InterleavedDataset, read_documents
from ..modeling_tinywave import TinyWaveForCausalLM
from ..tokenization_tinywave import build_tokenizer, train_text_tokenizer
from ..training.pretraining import train_language_model
from .recipe import read_recipe

MIXTURES = {"speech": SPEECH_ONLY, "interleaved": INTERLEAVED}


def add_arguments(parser):
    parser.add_argument("recipe", help="training recipe: a YAML file or the name of a packaged one")
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` wrote")
    parser.add_argument("--init-from", help="model folder to start from, in place of random weights")
    parser.add_argument("--output-dir", required=True, help="folder of the model and its checkpoints")


def run(arguments) -> int:
    recipe = read_recipe(arguments.recipe)
    documents = {
        split: read_documents(arguments.units, split, recipe.get("domains")) for split in ("train", "validation")
    }
    if arguments.init_from:
        model = TinyWaveForCausalLM.from_pretrained(arguments.init_from, dtype="float32")
        config, tokenizer = model.config, PreTrainedTokenizerFast.from_pretrained(arguments.init_from)
    else:
        model = config = TinyWaveConfig.from_preset(recipe["preset"])
        texts = [" ".join(document.words) for document in documents["train"]]
        tokenizer = build_tokenizer(config, train_text_tokenizer(texts, config))
    datasets = {split: make_dataset(recipe, rows, config, tokenizer) for split, rows in documents.items()}
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
    recipe: dict, documents: list[AlignedDocument], config: TinyWaveConfig, tokenizer: PreTrainedTokenizerFast
) -> InterleavedDataset:
    """The data set of a training recipe: its `mixture` (a name or weights of patterns), `max_length` and `seed`."""
    mixture = recipe["mixture"]
    if not isinstance(mixture, dict):
        mixture = MIXTURES[mixture]
    return InterleavedDataset(documents, config, tokenizer, mixture, recipe["max_length"], recipe["seed"])
