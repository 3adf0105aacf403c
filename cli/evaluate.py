"""`tinywave evaluate --model outputs/student --suite outputs/suites --output-dir outputs/scores`"""

import sys
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..configuration_tinywave import STREAM_FIELDS
from ..data.interleaving import read_documents, read_encoder
from ..data.storage import write_json
from ..engines.onnx_model import OnnxForCausalLM
from ..eval.contrast import CONTRASTS
from ..eval.evaluation_page import write_evaluation_page
from ..eval.readers import LAYOUTS, read_audio_suite
from ..eval.result_records import results_to_model_index, suite_to_results, write_hub_results, write_pairs
from ..eval.results import STUDENT, TEACHER
from ..eval.runner import Evaluation, evaluate_models
from ..eval.scoring import NORMALISATIONS, VOCABULARIES
from ..eval.story_suites import DIRECTIONS, SPEECH_TO_SPEECH, StorySuite
from ..eval.suite_encoding import encode_audio_suite
from ..eval.suites import is_manifest, read_suite
from ..loading_tinywave import commit_of, load_pretrained
from ..modeling_tinywave import TinyWaveForCausalLM
from .argument_types import BATCH_SIZE
from .loading import add_codec_arguments, load_for_scoring, open_codec
from .shipped import SUITES


def add_arguments(parser):
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--teacher", help="folder of its teacher: how much of it the model keeps is reported too")
    parser.add_argument(
        "--suite",
        nargs="+",
        help="manifests, folders of manifests, or folders of recordings as they are released, which are turned into "
        "units first (default: the shipped suites in the model's own units)",
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="layout of the folders of recordings (default: found out)")
    parser.add_argument("--strict", action="store_true", help="stop at a recording that is missing or unreadable")
    parser.add_argument(
        "--allow-outside", action="store_true", help="accept a manifest that names recordings outside its own folder"
    )
    parser.add_argument(
        "--revision", help="branch, tag or commit of the models, where they are names of repositories of the Hub"
    )
    parser.add_argument("--units", help="unit shards whose test split gives the perplexity (default: none)")
    parser.add_argument(
        "--normalisation",
        choices=(*NORMALISATIONS, *CONTRASTS),
        default="mean",
        help="how the halves of a pair are compared",
    )
    parser.add_argument(
        "--vocabulary", choices=VOCABULARIES, default="full", help="ids that the probabilities are normalised over"
    )
    parser.add_argument(
        "--scored-streams",
        nargs="+",
        choices=tuple(STREAM_FIELDS),
        help="streams whose tokens are scored (default: all that the model has)",
    )
    parser.add_argument(
        "--directions",
        nargs="+",
        choices=DIRECTIONS,
        default=[SPEECH_TO_SPEECH],
        help="modality of the context and of the endings of stories; each is a suite of its own in the results, and "
        "those with text need the transcripts of the release",
    )
    parser.add_argument("--batch-size", type=BATCH_SIZE, default=16, help="sequences of a forward pass")
    parser.add_argument("--dataset-id", help="of the suites on the Hub: writes .eval_results for the model's page")
    parser.add_argument("--speak", action="store_true", help="let the page play the worst pairs, through the vocoder")
    add_codec_arguments(parser)
    parser.add_argument("--output-dir", required=True, help="folder of results.json, pairs.parquet, evaluation.html")


def run(arguments) -> int:
    output = Path(arguments.output_dir)
    named = {STUDENT: arguments.model} | ({TEACHER: arguments.teacher} if arguments.teacher else {})
    models = {role: _load(name, arguments.revision) for role, name in named.items()}
    streams = models[STUDENT].config.stream_ranges()
    manifests = find_suites(arguments, list(streams), output)
    suites = in_directions(manifests, arguments.directions, arguments.model, arguments.revision)
    prosody = models[STUDENT].config.prosody_streams
    evaluation = evaluate_models(
        models,
        suites,
        read_documents(arguments.units, "test", prosody=prosody) if arguments.units else (),
        scored_streams=arguments.scored_streams,
        batch_size=arguments.batch_size,
        encoder=codec_of(models[STUDENT], arguments.units),
        normalisation=arguments.normalisation,
        vocabulary=arguments.vocabulary,
    )
    name = Path(arguments.model).resolve().name + (f"@{arguments.revision}" if arguments.revision else "")
    scored = describe_models(named, arguments.revision)
    write_evaluation(evaluation, name, output, arguments.dataset_id, scored)
    write_evaluation_page(
        evaluation,
        name,
        output / "evaluation.html",
        pairs={
            key: suite.pairs if isinstance(suite, StorySuite) else read_suite(suite) for key, suite in suites.items()
        },
        speak=_voice(arguments, streams) if arguments.speak else None,
    )
    print_evaluation(evaluation)
    print(output)
    return 0


def _load(name: str, revision: str | None) -> TinyWaveForCausalLM | OnnxForCausalLM:
    """A model of a folder, or of a repository of the Hub."""
    if Path(name).is_dir():
        return load_for_scoring(name)
    return load_pretrained(TinyWaveForCausalLM, name, dtype="float32", revision=revision)


def codec_of(model: PreTrainedModel, units: str | None) -> str | None:
    """Return the fingerprint of the codec whose streams a model was trained on: that of `units`, or the model's own.

    Where neither is known, a note on standard error says that suites of another codec would not be noticed.
    """
    found = read_encoder(units) if units else getattr(model.config, "codec_fingerprint", None)
    if found is None:
        print(
            "tinywave: warning: the model does not state the codec of its units, so suites of another codec would "
            "be scored as well; give --units to check it",
            file=sys.stderr,
        )
    return found


def find_suites(arguments, streams: list[str], output: Path) -> dict[str, Path]:
    """Manifests by name; recordings are encoded into `output/suites` first.

    Raises `FileNotFoundError` for a path that is not there, `ValueError` for two suites of one name.
    """
    suites: dict[str, Path] = {}
    for path in map(Path, arguments.suite or [SUITES]):
        if not path.exists():
            raise FileNotFoundError(f"No suite at {path}; build one with tinywave build-suite.")
        found = [path] if path.is_file() and is_manifest(path) else []
        if path.is_dir():
            found = [manifest for manifest in sorted(path.glob("*.parquet")) if is_manifest(manifest)]
        for manifest in found or [_encode(path, arguments, streams, output / "suites")]:
            if manifest.stem in suites:
                raise ValueError(f"{manifest} and {suites[manifest.stem]} have one name; rename one of them.")
            suites[manifest.stem] = manifest
    return suites


def in_directions(
    manifests: dict[str, Path], directions: list[str], model: str, revision: str | None = None
) -> dict[str, Path | StorySuite]:
    """The suites in every direction; the tokenizer of those with text is the model's."""
    suites: dict[str, Path | StorySuite] = dict(manifests) if SPEECH_TO_SPEECH in directions else {}
    for direction in dict.fromkeys(directions):
        if direction != SPEECH_TO_SPEECH:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(model, revision=revision)
            stories = [StorySuite(read_suite(path), direction, tokenizer) for path in manifests.values()]
            suites |= {suite.name: suite for suite in stories}
    return suites


def _encode(path: Path, arguments, streams: list[str], folder: Path) -> Path:
    suite = read_audio_suite(path, arguments.layout, strict=arguments.strict, allow_outside=arguments.allow_outside)
    for problem in suite.problems:
        print(f"{problem.name}: {problem.reason}")
    codec = open_codec(arguments, streams)
    return encode_audio_suite(suite, codec, folder / f"{suite.name}.parquet", strict=arguments.strict)


def _voice(arguments, streams):
    codec = open_codec(arguments, list(streams))
    return lambda speech: (codec.decode(speech).numpy(), codec.output_sampling_rate)


def describe_models(named: dict[str, str], revision: str | None) -> dict:
    """Return what was scored: the names, and of repositories of the Hub the revision and the commit it stands for."""
    records = {}
    for role, name in named.items():
        commit = commit_of(name, revision)
        records[role] = {"name": name} | ({} if commit is None else {"revision": revision, "commit": commit})
    return records


def write_evaluation(
    evaluation: Evaluation, name: str, output: Path, dataset_id: str | None, models: dict | None = None
) -> None:
    """Write results.json, pairs.parquet, evaluation.json, model_index.json and, with a data set, .eval_results."""
    results = [
        result
        for by_model in evaluation.suites.values()
        for result in suite_to_results(by_model[STUDENT], by_model.get(TEACHER))
    ]
    write_json(results, output / "results.json")
    write_pairs([by_model[STUDENT] for by_model in evaluation.suites.values()], output / "pairs.parquet")
    write_json(evaluation.to_record() | {"models": models}, output / "evaluation.json")
    write_json(results_to_model_index(results, name), output / "model_index.json")
    if dataset_id:
        write_hub_results(results, dataset_id, output)


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints one line a suite, and the perplexity."""
    for suite, by_model in evaluation.suites.items():
        result = by_model[STUDENT]
        low, high = result.ci95
        print(f"{suite:>10}  {result.accuracy:.3f}  [{low:.3f}, {high:.3f}]  n = {result.n}")
    for name, perplexity in evaluation.perplexities.items():
        scored = ", ".join(evaluation.sequences[name]["scored_streams"])
        print(f"perplexity of {name}  {perplexity.token_weighted:.3f} a token of {scored}", end="")
        print(f"  {perplexity.bits_per_second:.1f} bits a second")
