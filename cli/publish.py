"""`tinywave publish outputs/quickstart/student OWNER/NAME --dry-run`"""

from pathlib import Path

from ..codec_tinywave import SpeechCodec
from ..configuration_tinywave import PROSODY_STREAMS
from ..data.audio_io import load_audio
from ..data.codec_loading import load_codec
from ..pipeline_tinywave import TinyWavePipeline
from ..publishing.model_repository import Assembly, Source, build_repository, repository_files
from ..publishing.run_facts import RunFacts, read_run_facts
from ..publishing.space_repository import demo_folder, metric_folders
from ..publishing.upload import check_repo_id, check_token, upload_repository
from ..speech_encoder_tinywave import QUANTIZER_FILE
from ..training.model_card import CARD, read_licence
from .loading import add_codec_arguments, load_language_model, open_codec
from .shipped import AUDIO

RECORDING = AUDIO / "librivox" / "sense_and_sensibility_01_0880.flac"
RECORDING_CAPTION = (
    "A sentence of Jane Austen's *Sense and Sensibility*, read by a volunteer for LibriVox (public domain)"
)
SUITES_ON_HUB = "tinywave-nano-suites"
LICENCE_TEXT = "LICENSE"


def add_arguments(parser):
    parser.add_argument("folder", metavar="DIR", help="folder of a model that train, correct or distill wrote")
    parser.add_argument("repo_id", metavar="REPO", help="repository on the Hub, OWNER/NAME")
    parser.add_argument("--dry-run", action="store_true", help="make and check everything, upload nothing")
    parser.add_argument("--space", action="store_true", help="upload the demo too, as the Space REPO")
    parser.add_argument("--metrics", action="store_true", help="upload each metric too, as the Space OWNER/METRIC")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument(
        "--dataset-id",
        help="data set on the Hub that the results are entered under (default for a model of a quickstart, which is "
        f"scored on the shipped suites: OWNER/{SUITES_ON_HUB})",
    )
    add_codec_arguments(parser)
    parser.add_argument(
        "--output-dir", help="folder of the repository, kept for the next time (default: outputs/publish/NAME)"
    )


def run(arguments) -> int:
    """Make a model repository, check it where this package is not installed, and upload it."""
    check_repo_id(arguments.repo_id)
    if not arguments.dry_run:
        check_token()
    owner, name = arguments.repo_id.split("/")
    spaces = [(demo_folder(), arguments.repo_id)] if arguments.space else []
    spaces += [(folder, f"{owner}/{folder.name}") for folder in metric_folders()] if arguments.metrics else []
    source = read_source(arguments)
    assembly = build_repository(source, arguments.repo_id, arguments.output_dir or Path("outputs", "publish", name))
    print_assembly(assembly)
    for folder, space_id in spaces:
        print(f"\nSpace {space_id}, from {folder}")
        print_files(repository_files(folder))
    if arguments.dry_run:
        print("\nDry run: nothing was uploaded.")
        return 0
    message = f"Upload {source.facts.name} with tinywave"
    print(upload_repository(assembly.folder, arguments.repo_id, private=arguments.private, message=message))
    for folder, space_id in spaces:
        options = {"repo_type": "space", "private": arguments.private, "message": f"Upload {folder.name}"}
        print(upload_repository(folder, space_id, **options))
    return 0


def read_source(arguments) -> Source:
    """Load the model and its codec, and read what is known of them.

    Raises `FileNotFoundError` for a folder without weights, `ValueError` for a codec that is not the model's, and for
    parts of another codec beside that in the folder.
    """
    folder, owner = Path(arguments.folder), arguments.repo_id.split("/")[0]
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} holds no weights (no .safetensors file); name the folder of a model that tinywave train, "
            "correct or distill wrote"
        )
    model, processor = load_language_model(folder)
    facts = read_run_facts(folder)
    streams = model.config.stream_ranges()
    has_codec = (folder / "speech_encoder" / "config.json").is_file()
    if has_codec:
        if arguments.speech_encoder or arguments.vocoder:
            raise ValueError(
                f"{folder} holds a codec of its own, which goes with it; leave out --speech-encoder and --vocoder, or "
                "remove its folder speech_encoder"
            )
        codec = load_codec(folder, streams, griffin_lim=arguments.griffin_lim)
        encoder_folder = folder / "speech_encoder"
    else:
        codec = open_codec(arguments, streams)
        encoder_folder = speech_encoder_folder(arguments)
    licence_text = encoder_folder / LICENCE_TEXT
    check_encoder(facts, codec)
    return Source(
        pipeline=TinyWavePipeline(model, processor, codec),
        facts=facts,
        codec_licences=[] if has_codec else codec_licences(arguments, streams),
        licence_texts={f"speech_encoder/{LICENCE_TEXT}": licence_text} if licence_text.is_file() else {},
        recording=load_audio(RECORDING, codec.input_sampling_rate),
        recording_caption=RECORDING_CAPTION,
        dataset_id=arguments.dataset_id or (f"{owner}/{SUITES_ON_HUB}" if facts.report else None),
    )


def check_encoder(facts: RunFacts, codec: SpeechCodec) -> None:
    """Raise `ValueError` where the model's scores are of units of another encoder than the codec's."""
    conventions = (
        by_model[facts.role]["convention"]
        for by_model in facts.evaluation.get("suites", {}).values()
        if facts.role in by_model
    )
    encoders = {convention.get("encoder") for convention in conventions} - {None}
    if encoders and encoders != {codec.fingerprint()}:
        raise ValueError(
            f"the model was scored on units of the encoder {', '.join(sorted(encoders))}, and the codec's is "
            f"{codec.fingerprint()}; name the codec that it was trained on with --codec and --speech-encoder"
        )


def codec_licences(arguments, streams) -> list[tuple[str, str]]:
    """Part and licence of the codec that `open_codec` opens, as far as the cards in its folders state them."""
    encoder = speech_encoder_folder(arguments)
    folders = {"speech encoder": encoder if (encoder / CARD).is_file() else encoder.parent}
    folders["vocoder"] = Path(arguments.vocoder or arguments.codec)
    if set(PROSODY_STREAMS) & set(streams):
        folders["pitch and style encoders"] = Path(arguments.codec)
    stated = {part: read_licence(folder).get("license") for part, folder in folders.items()}
    licences = [(part, licence) for part, licence in stated.items() if licence]
    if (encoder / QUANTIZER_FILE).is_file():
        # Only the centroids are in that folder; the layers below them come from OpenAI's Whisper base.
        licences.append(("layers of Whisper base in the speech encoder", "mit"))
    return licences


def speech_encoder_folder(arguments) -> Path:
    """Where `open_codec` finds the speech encoder."""
    return Path(arguments.speech_encoder or Path(arguments.codec) / "speech_encoder")


def print_assembly(assembly: Assembly) -> None:
    """Print the folder, each file with its size, and each check."""
    print(f"{assembly.folder}{' (unchanged)' if assembly.is_reused else ''}")
    if assembly.is_card_edited:
        print(f"{CARD} was edited by hand and is kept.")
    print_files(assembly.files)
    print("\nIn a process without tinywave:" if assembly.checks else "\nThe same files passed every check before.")
    for result in assembly.checks:
        difference = "" if result.difference is None else f", largest difference {result.difference:.3g}"
        print(f"  {result.check}: as the original{difference}")


def print_files(files: dict[str, int]) -> None:
    """Print sizes and paths, and their sum."""
    for path, size in files.items():
        print(f"{size:>12,}  {path}")
    print(f"{sum(files.values()):>12,}  bytes in {len(files)} files")
