"""`tinywave generate prompt.wav continuation.wav --model outputs/quickstart/student`"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers.trainer_utils import set_seed

from ..batching_tinywave import prompt_seed
from ..codec_tinywave import SpeechCodec
from ..data.audio_io import (
    check_writable_format,
    find_audio_files,
    is_named_like_audio,
    load_audio,
    refuse_same_targets,
    report_left_out,
    write_audio,
)
from ..generation_tinywave import OUTPUT_MODALITIES, check_prompt
from ..pipeline_tinywave import GeneratedSegment, TinyWavePipeline
from ..tokenization_tinywave import Segment
from .argument_types import BATCH_SIZE, MIN_TOKENS, NUM_TOKENS, SEED, TEMPERATURE
from .loading import add_codec_arguments, load_language_model, open_codec
from .paths import check_output_file
from .shipped import TEACHER


def add_arguments(parser):
    parser.add_argument("prompt", nargs="?", help="audio file to continue")
    parser.add_argument("output", nargs="?", help="audio file to write, .wav or .flac; not needed for text")
    parser.add_argument(
        "--text", help="text to continue, alone or after the prompt; with it the prompt may be left out"
    )
    parser.add_argument(
        "--output-modality", choices=OUTPUT_MODALITIES, default="speech", help="what comes out; text is printed"
    )
    parser.add_argument("--input-dir", help="continue every recording of this folder, several at once")
    parser.add_argument("--output-dir", help="folder of the continuations of --input-dir, as .wav of the same names")
    parser.add_argument(
        "--batch-size", type=BATCH_SIZE, default=8, help="recordings of --input-dir that are continued at once"
    )
    parser.add_argument("--model", default=str(TEACHER), help="folder of the language model")
    add_codec_arguments(parser)
    parser.add_argument(
        "--max-new-tokens", type=NUM_TOKENS, default=100, help="most tokens to add; 18 to 28 make a second"
    )
    parser.add_argument(
        "--min-new-tokens",
        type=MIN_TOKENS,
        default=20,
        help="least tokens to add before the model may end",
    )
    parser.add_argument("--temperature", type=TEMPERATURE, default=0.8, help="of sampling; 0 takes the likeliest unit")
    parser.add_argument("--top-k", type=NUM_TOKENS, default=25, help="sample from this many likeliest units")
    parser.add_argument(
        "--parallel-heads",
        action="store_true",
        help="let the model's parallel heads draft several tokens for each forward pass, and verify them; for models "
        "that `tinywave train-heads` wrote, one recording at a time whatever the --batch-size",
    )
    parser.add_argument("--seed", type=SEED, default=0, help="the same seed gives the same continuation")
    parser.add_argument(
        "--with-prompt",
        action="store_true",
        help="write the prompt before the continuation, and make both equally loud",
    )


def run(arguments) -> int:
    """Continue a recording, a text or both; print new text, write new speech and print its path."""
    sampling = sampling_options(arguments)
    if arguments.input_dir is not None:
        return continue_folder(arguments, sampling)
    prompt, output = choose_files(arguments)
    conversation = [] if prompt is None else [("speech", load_audio(prompt))]
    if arguments.text is not None:
        conversation.append(("text", arguments.text))
    pipeline = open_pipeline(arguments)
    codec = pipeline.codec
    set_seed(arguments.seed)
    options = {"output_modality": arguments.output_modality, "match_loudness": arguments.with_prompt}
    segments = pipeline(conversation, **options, **sampling)
    if not segments:
        raise ValueError(f"the model ends right after {prompt or 'the text'}; try another --seed or a shorter prompt")
    print_text(segments)
    if any(segment.modality == "speech" for segment in segments):
        write_speech(segments, codec, output, prompt if arguments.with_prompt else None)
        print(output)
    return 0


def open_pipeline(arguments) -> TinyWavePipeline:
    """The language model that the arguments name, with a codec of its streams."""
    model, processor = load_language_model(arguments.model)
    return TinyWavePipeline(model, processor, open_codec(arguments, model.config.stream_ranges()))


def continue_folder(arguments, sampling: dict) -> int:
    """Continue every recording of a folder that has no continuation yet, and write each as soon as it has ended.

    What is drawn depends on --seed and the name of the file, not on the other files, so that a run that goes on after
    an interruption writes what the first would have. What cannot be continued is named at the end, and makes the exit
    code that of a failure.
    """
    paths, output = choose_folders(arguments)
    pending = {path.name: path for path in paths if not _target(path, output).is_file()}
    problems: dict[Path, str] = {}
    if pending:
        pipeline = open_pipeline(arguments)
        with tqdm(total=len(pending), unit="recording", desc="Continuing") as progress:

            def give_up(path: Path, problem: str) -> None:
                problems[path] = problem
                progress.update()

            conversations = listen(
                pipeline, pending.values(), arguments.max_new_tokens, arguments.with_prompt, give_up
            )
            for name, segments in continue_all(pipeline, conversations, arguments, sampling):
                path = pending[name]
                if not segments:
                    give_up(path, "the model ends right after it; try another --seed")
                    continue
                prompt = str(path) if arguments.with_prompt else None
                write_speech(segments, pipeline.codec, str(_target(path, output)), prompt)
                progress.update()
    for path, problem in problems.items():
        print(f"{path}: {problem.removeprefix(str(path)).strip()}", file=sys.stderr)
    print(output)
    if problems:
        raise ValueError(f"{len(problems)} of {len(paths)} recordings of {arguments.input_dir} were not continued")
    return 0


def listen(
    pipeline: TinyWavePipeline,
    paths: Iterable[Path],
    max_new_tokens: int,
    match_loudness: bool,
    give_up: Callable[[Path, str], None],
) -> Iterator[tuple[str, list[Segment]]]:
    """Yield the file name and the conversation of every recording; `give_up` is called for those that fail."""
    for path in paths:
        try:
            waveform = load_audio(path)
            streams = pipeline.codec.encode([waveform])[0]
            inputs = pipeline.processor([("speech", streams)], output_modality="speech")
            check_prompt(**inputs, config=pipeline.model.config, max_new_tokens=max_new_tokens)
        except ValueError as error:
            give_up(path, str(error))
            continue
        # The loudness of a prompt is that of its waveform.
        yield path.name, [("speech", waveform if match_loudness else streams)]


def continue_all(
    pipeline: TinyWavePipeline, conversations: Iterable[tuple[str, list[Segment]]], arguments, sampling: dict
) -> Iterator[tuple[str, list[GeneratedSegment]]]:
    """Conversations and their names -> the names and what follows, as each ends; with parallel heads one by one."""
    if not arguments.parallel_heads:
        yield from pipeline.continue_many(
            conversations,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            match_loudness=arguments.with_prompt,
            **sampling,
        )
        return
    for name, conversation in conversations:
        set_seed(prompt_seed(arguments.seed, name))
        yield name, pipeline(conversation, match_loudness=arguments.with_prompt, **sampling)


def choose_folders(arguments) -> tuple[list[Path], Path]:
    """The recordings of --input-dir and the folder of their continuations.

    Raises `ValueError` without recordings, without --output-dir, and beside what continues a single recording.
    """
    single = {"a prompt": arguments.prompt, "--text": arguments.text}
    if found := [name for name, value in single.items() if value is not None]:
        raise ValueError(f"found {found[0]} beside --input-dir, which continues the recordings of a folder")
    if arguments.output_dir is None or arguments.output_modality != "speech" or arguments.batch_size < 1:
        raise ValueError("--input-dir needs --output-dir, speech as output and a --batch-size of 1 or more")
    folder, output = Path(arguments.input_dir), Path(arguments.output_dir)
    if not folder.is_dir():
        raise ValueError(f"--input-dir {folder} is not a folder")
    paths, passed_over = find_audio_files(folder.iterdir())
    damaged = [path for path in passed_over if is_named_like_audio(path)]
    report_left_out({path: reason for path, reason in passed_over.items() if path not in damaged})
    paths = sorted([*paths, *damaged])  # Damaged ones are named at the end, and make the command fail.
    if not paths:
        raise ValueError(f"{folder} contains no recording; expected audio files")
    refuse_same_targets(paths, lambda path: _target(path, output), "the continuation")
    output.mkdir(parents=True, exist_ok=True)
    return paths, output


def _target(path: Path, output: Path) -> Path:
    return output / f"{path.stem}.wav"


def choose_files(arguments) -> tuple[str | None, str | None]:
    """Return the recording to continue and the file to write; a single file is the latter where speech comes out.

    Raises `ValueError` where there is nothing to continue, nowhere to write to, or no prompt to write first.
    """
    prompt, output = arguments.prompt, arguments.output
    if output is None and arguments.output_modality != "text":
        prompt, output = None, prompt
        if output is None:
            raise ValueError(
                "found no file for the speech; name one, .wav or .flac, or ask for --output-modality text"
            )
    if prompt is None and arguments.text is None:
        raise ValueError("found nothing to continue; give a recording before the output file, or --text")
    if prompt is None and arguments.with_prompt:
        raise ValueError("found --with-prompt without a recording; leave it out")
    if output is not None:
        check_output_file(output)
        check_writable_format(output)
    return prompt, output


def print_text(segments: Sequence[GeneratedSegment]) -> None:
    """Print each text segment on a line of its own."""
    for segment in segments:
        if segment.modality == "text":
            print(segment.text)


def write_speech(segments: Sequence[GeneratedSegment], codec: SpeechCodec, output: str, prompt: str | None) -> None:
    """Write all speech in a row, after the recording `prompt` if there is one."""
    spoken = [segment.waveform.numpy() for segment in segments if segment.modality == "speech"]
    if prompt is not None:
        spoken.insert(0, load_audio(prompt, codec.output_sampling_rate))
    write_audio(output, np.concatenate(spoken), codec.output_sampling_rate)


def sampling_options(arguments) -> dict:
    """Return the options of `generate`."""
    temperature, most = arguments.temperature, arguments.max_new_tokens
    sampling = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": arguments.top_k}
    heads = {"parallel_heads": True} if arguments.parallel_heads else {}
    return sampling | heads | {"min_new_tokens": min(arguments.min_new_tokens, most), "max_new_tokens": most}
