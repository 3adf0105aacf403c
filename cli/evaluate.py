"""`tinywave evaluate outputs/student --units outputs/units`"""

from pathlib import Path

from ..data.interleaving import read_documents
from ..eval.results import write_json
from ..eval.runner import evaluate_models
from ..eval.scoring import STREAM_FIELDS
from ..modeling_tinywave import TinyWaveForCausalLM
from .shipped import suites_of


def add_arguments(parser):
    parser.add_argument("model", help="model folder")
    parser.add_argument("--suites", help="folder of suite manifests (default: those in the model's own units)")
    parser.add_argument("--units", required=True, help="unit shards whose test split gives the perplexity")
    parser.add_argument(
        "--scored-streams",
        nargs="+",
        choices=tuple(STREAM_FIELDS),
        help="streams whose tokens are scored (default: all that the model has)",
    )
    parser.add_argument("--output-dir", required=True, help="folder of evaluation.json and the rows of every pair")


def run(arguments) -> int:
    model = TinyWaveForCausalLM.from_pretrained(arguments.model, dtype="float32").eval()
    folder = Path(arguments.suites or suites_of(model.config.stream_ranges()))
    suites = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    if not suites:
        raise FileNotFoundError(f"No suite (*.parquet) in {folder}; build them with tinywave build-suites.")
    prosody = [name for name in ("pitch", "style") if name in model.config.stream_ranges()]
    held_out = read_documents(arguments.units, "test", prosody=prosody)
    output = Path(arguments.output_dir)
    name = Path(arguments.model).name
    evaluation = evaluate_models(
        {name: model},
        suites,
        held_out,
        scored_streams=arguments.scored_streams,
        batch_size=16,
        rows_folder=output / "pairs",
    )
    write_json(evaluation, output / "evaluation.json")
    for suite, result in evaluation["suites"].items():
        low, high = result[name]["ci95"]
        print(f"{suite:>10}  {result[name]['accuracy']:.3f}  [{low:.3f}, {high:.3f}]  n = {result[name]['n']}")
    perplexity = evaluation["perplexity"][name]
    scored = ", ".join(perplexity["sequence"]["scored_streams"])
    print(f"perplexity  {perplexity['token_weighted']:.3f} a token of {scored}", end="")
    print(f"  {perplexity['bits_per_second']:.1f} bits a second")
    return 0
