"""`tinywave cache-teacher nano/distillation --units outputs/units --output-dir outputs/cache`

The data, the layer map and the temperature are those of the distillation recipe. Training then reads the cache in
place of the teacher; attention maps are not in it, so the recipe must have `attention_weight: 0`.
"""

from collections.abc import Iterator

from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from ..data.collators import CausalLanguageModelCollator
from ..stages.recipes import DistillationRecipe
from ..training.arguments import DistillationArguments
from ..training.cached_teacher import CachedTeacher
from ..training.layer_map import LayerMap
from ..training.teacher_cache import CacheSettings, TeacherCacheWriter
from .argument_types import COUNT, NUM_TOKENS
from .distill import prune
from .loading import load_for_training
from .plan import read_training
from .recipe import RecipeArgument
from .shipped import TEACHER
from .train import make_dataset, pack

_KNOWN_IDS = {"top-k": "top_k", "speech": "speech", "all": "all"}
# Examples on which the student is compared with what is kept, and on which two epochs are compared.
_NUM_COMPARED, _NUM_DRAWN = 4, 64

RECIPE = RecipeArgument("distillation recipe", DistillationRecipe, training=DistillationArguments)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--teacher", default=str(TEACHER), help="model folder")
    parser.add_argument("--units", required=True, help="folder that `tinywave extract-units` wrote")
    parser.add_argument("--output-dir", required=True, help="folder of the cache; an interrupted one continues there")
    parser.add_argument("--known-ids", choices=_KNOWN_IDS, default="top-k", help="ids whose probability is kept")
    parser.add_argument("--top-k", type=NUM_TOKENS, default=64, help="number of most probable ids kept for top-k")
    parser.add_argument("--hidden-states", action="store_true", help="keep the layer map's hidden states too")
    parser.add_argument("--epochs", type=COUNT, default=1, help="draws of the data to cache, one an epoch of training")


def run(arguments) -> int:
    recipe = RECIPE.read(arguments)
    if arguments.epochs < 1:
        raise ValueError(f"--epochs is {arguments.epochs}; expected 1 or more")
    training, layer_map = read_training(recipe["training"]), LayerMap.from_pairs(recipe["layer_map"])
    dtype = recipe.get("teacher", {}).get("dtype", "float32")
    teacher, tokenizer = load_for_training(arguments.teacher, recipe.get("streams"), dtype)
    layer_map.check_depths(teacher.config.num_hidden_layers, len(layer_map.pairs))
    settings = CacheSettings(
        known_ids=_KNOWN_IDS[arguments.known_ids],
        top_k=arguments.top_k,
        temperature=training.temperature,
        hidden_blocks=layer_map.teacher_blocks if arguments.hidden_states else (),
    )
    dataset = make_dataset(recipe, arguments.units, "train", teacher.config, tokenizer)
    writer = TeacherCacheWriter(teacher, arguments.output_dir, settings)
    num_examples = announce(writer, dataset, arguments.epochs)
    collator = CausalLanguageModelCollator(teacher.config.pad_token_id)
    announce_error(writer, prune(teacher, layer_map, recipe, dataset, collator).eval(), dataset)
    with tqdm(total=num_examples, desc="caching", unit="example") as bar:
        for number in writer.write(draw(dataset, arguments.epochs), training.per_device_train_batch_size):
            bar.update(number)
    cache = CachedTeacher(arguments.output_dir)
    print(f"{len(cache):,} examples; the ids left out have a mean probability of {cache.mean_tail_mass():.2e}")
    sequences = training.max_steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
    announce_epochs(dataset, arguments.epochs, sequences / len(pack(dataset, recipe)))
    print(arguments.output_dir)
    return 0


def announce(writer: TeacherCacheWriter, dataset: Dataset, num_epochs: int) -> int:
    """Say how much is to be written, before it is, and refuse a disk too small; returns the number of examples."""
    num_examples, num_rows, num_bytes = writer.estimate(draw(dataset, num_epochs))
    print(
        f"{len(writer.finished):,} examples are cached; {num_examples:,} with {num_rows:,} ids to predict are to "
        f"come: {num_bytes:,} bytes in {writer.folder}",
        flush=True,
    )
    writer.check_free_disk(num_bytes)
    return num_examples


def announce_error(writer: TeacherCacheWriter, student: PreTrainedModel, dataset: Dataset) -> None:
    """Say how much of the logits term is lost by what is left out, at the start of the training."""
    examples = [dataset[index]["input_ids"] for index in range(min(_NUM_COMPARED, len(dataset)))]
    whole, kept = writer.compare(student, examples)
    print(
        f"the pruned student's KL is {whole:.6f} nats per id, {kept:.6f} from what is kept: "
        f"approximation error {whole - kept:.2e}",
        flush=True,
    )


def announce_epochs(dataset: Dataset, num_epochs: int, num_trained: float) -> None:
    """Say so where the recipe trains on more draws of its data than are cached."""
    if num_trained > num_epochs and is_drawn_anew(dataset):
        print(
            f"this data is drawn anew for every epoch: {num_epochs} of the {num_trained:.1f} epochs that the recipe "
            "trains on one process are cached, and training stops at the first example of the next; see --epochs"
        )


def is_drawn_anew(dataset: Dataset) -> bool:
    """Whether the second epoch begins with other examples than the first."""
    draws = []
    for epoch in (1, 0):
        dataset.set_epoch(epoch)
        draws.append([dataset[index]["input_ids"] for index in range(min(_NUM_DRAWN, len(dataset)))])
    return draws[0] != draws[1]


def draw(dataset: Dataset, num_epochs: int) -> Iterator[list[int]]:
    """The ids of every example of the first `num_epochs` epochs, as the trainer draws them."""
    for epoch in range(num_epochs):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            yield dataset[index]["input_ids"]
    dataset.set_epoch(0)
