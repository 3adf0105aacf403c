"""`tinywave evaluate outputs/student --units outputs/units`"""

from pathlib import Path

from ..data.interleaving import read_documents
from ..eval.results import write_json
from ..eval.runner import evaluate_models
from ..modeling_tinywave import TinyWaveForCausalLM
from .shipped import SUITES


def add_arguments(parser):
    parser.add_argument("model", help="model folder")
    parser.add_argument("--suites", default=str(SUITES), help="folder of suite manifests (parquet)")
    parser.add_argument("--units", required=True, help="unit shards whose test split gives the perplexity")
    parser.add_argument("--output-dir", required=True, help="folder of evaluation.json and the rows of every pair")


def run(arguments) -> int:
    suites = {path.stem: path for path in sorted(Path(arguments.suites).glob("*.parquet"))}
    if not suites:
        raise FileNotFoundError(f"No suite (*.parquet) in {arguments.suites}; build them with tinywave build-suites.")
    model = TinyWaveForCausalLM.from_pretrained(arguments.model, dtype="float32").eval()
    held_out = [document.units for document in read_documents(arguments.units, "test")]
    output = Path(arguments.output_dir)
    name = Path(arguments.model).name
    evaluation = evaluate_models({name: model}, suites, held_out, batch_size=16, rows_folder=output / "pairs")
    write_json(evaluation, output / "evaluation.json")
    for suite, result in evaluation["suites"].items():
        low, high = result[name]["ci95"]
        print(f"{suite:>10}  {result[name]['accuracy']:.3f}  [{low:.3f}, {high:.3f}]  n = {result[name]['n']}")
    print(f"perplexity  {evaluation['perplexity'][name]['token_weighted']:.3f}")
    return 0
