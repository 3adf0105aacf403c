"""The `tinywave` command: picks a verb, imports only that verb's module, and turns failures into one clear line.

Each verb is a module of this folder (`fit-units` is `fit_units.py`) with two functions: `add_arguments(parser)`, which
declares the verb's arguments, and `run(arguments) -> int`, which does the work and returns the exit code.
"""

import argparse
import errno
import importlib
import os
import sys
import traceback

from .. import __version__

# verb -> one line of help. Kept here, so that `tinywave --help` imports no verb and answers at once.
VERBS = {
    "quickstart": "distil a student from the shipped teacher, score it and write a report you can hear",
    "prepare": "build a speech corpus: texts spoken with word and phone times, or recordings of your own",
    "fit-units": "fit the speech encoder's k-means units on a corpus",
    "extract-units": "encode a speech corpus into units",
    "train-speech-encoder": "distil a small speech encoder from the units of a large one",
    "train": "train a teacher from nothing",
    "correct": "correct a teacher on the distillation domain with LoRA",
    "plan": "work out memory, FLOPs and GPU-hours of a distillation, loading nothing",
    "cache-teacher": "write a teacher's predictions to disk, to distil without running it",
    "distill": "prune a teacher into a student and distil it",
    "train-heads": "teach a student to draft several tokens for each of its steps",
    "ablate": "compare the choices of the distillation, each over several seeds",
    "train-pitch": "train the pitch encoder that turns F0 into pitch tokens",
    "train-style": "train the style encoder that names the speaking style of every second",
    "train-vocoder": "train the vocoder that makes units audible",
    "train-hifigan": "train a HiFi-GAN on units, pitch and style; needs a GPU",
    "build-suites": "build the minimal-pair test suites",
    "build-suite": "synthesise an audio suite in the layout of its official release",
    "bench": "measure how fast a model generates, and how near that is to the limit of the machine",
    "evaluate": "score a model on the test suites and its perplexity",
    "evaluate-generation": "continue prompts and measure what is heard: words, voice, naturalness",
    "evaluate-codec": "measure a codec: units, words, melody, style, speed and size",
    "report-tokenizer": "measure what tokenizers of speech cost and what their units know of phones",
    "encode": "turn a recording into speech units",
    "decode": "turn speech units into a recording",
    "generate": "continue a recording, a text, or both",
    "export": "write a model for fast generation on a CPU: 8-bit weights, ONNX in 4 or 8 bits, or GGUF for llama.cpp",
    "demo": "serve a page to speak to the models, on this computer",
    "convert": "convert a published checkpoint into TinyWave folders",
    "publish": "make a complete model repository, check it, and upload it to the Hub",
    "rebuild": "rebuild every shipped artefact from nothing",
}
EXIT_FAILED = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code.

    Returns 0 on success, 2 for input that cannot be used (one line on standard error says what and what to do),
    130 after Ctrl-C. `--debug` shows the full traceback. Exceptions that stand for a defect in the code itself
    are not caught.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        parser = build_parser(argv)
        arguments = parser.parse_args([argument for argument in argv if argument != "--debug"])
        if arguments.verb is None:
            parser.print_help()
            return EXIT_FAILED
        exit_code = import_verb(arguments.verb).run(arguments)
        leave_process_group()
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not at the interpreter's exit
        return exit_code
    except BrokenPipeError:
        # The reader of our output (`tinywave encode x.wav | head`) went away; nothing is wrong on this side.
        discard_output()
        return EXIT_BROKEN_PIPE
    except expected_errors() as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            discard_output()
        if debug:
            traceback.print_exc()
        print(f"tinywave: {describe_error(error)}", file=sys.stderr)
        return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_FAILED


def expected_errors() -> tuple[type[BaseException], ...]:
    """What bad input, a full machine or Ctrl-C raise; asked for only when something was raised."""
    from huggingface_hub.errors import StrictDataclassError  # an impossible configuration

    return ValueError, OSError, ModuleNotFoundError, MemoryError, KeyboardInterrupt, StrictDataclassError


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """Return the parser of all verbs; only the verb named in `argv` is imported and has its arguments declared."""
    parser = argparse.ArgumentParser(
        prog="tinywave", description="Small speech language models distilled from large ones."
    )
    parser.add_argument("--version", action="version", version=f"tinywave {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    chosen = next((argument for argument in argv if not argument.startswith("-")), None)
    for verb, summary in VERBS.items():
        subparser = subparsers.add_parser(
            verb,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if verb == chosen:
            module = import_verb(verb)
            subparser.epilog = f"example: {module.__doc__.split('`')[1]}"
            subparser.add_argument("--config", help="YAML file of arguments; those of the command line win")
            module.add_arguments(subparser)
            if "--config" in argv[:-1]:
                read_config(subparser, argv[argv.index("--config") + 1])
    return parser


def read_config(parser: argparse.ArgumentParser, path: str) -> None:
    """Make the arguments of a YAML file, such as `output_dir: outputs/scores`, the defaults of a verb.

    Raises `ValueError` for a file that is not a mapping, and for arguments that the verb does not have or not with
    these values.
    """
    import yaml  # no verb is needed to show the help of all

    with open(path, encoding="utf-8") as file:
        values = yaml.safe_load(file)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no arguments; expected lines such as `output_dir: outputs/scores`")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    for name, value in values.items():
        action = actions.get(str(name).replace("-", "_"))
        if action is None:
            raise ValueError(f"{path} sets {name}, which this verb does not have; it has {', '.join(actions)}")
        chosen = value if isinstance(value, list) else [value]
        if action.choices is not None and not set(chosen) <= set(action.choices):
            raise ValueError(f"{path} sets {name} to {value}; expected one of {', '.join(map(str, action.choices))}")
        action.required = False
        if not action.option_strings and action.nargs is None:
            action.nargs = "?"
        action.default = value


def import_verb(verb: str):
    """Return the module of a verb."""
    return importlib.import_module(f".{verb.replace('-', '_')}", __package__)


def leave_process_group() -> None:
    """Wait for the other processes of a distributed run and end their group, where the verb has opened one.

    A process that exits with its group open may be aborted by a thread that still belongs to it.
    """
    distributed = sys.modules.get("torch.distributed")  # not imported for verbs that need no torch
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def discard_output() -> None:
    """Send what is still to be printed nowhere, so that the interpreter's last flush does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe_error(error: BaseException) -> str:
    """Return one line that says what went wrong and, where it is known, what to do."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; finished parts are kept, and the same command continues from there"
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return f"{message}; install the optional packages with: pip install 'tinywave[all]'"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{message}; free some space and run the same command again, finished parts are kept"
    return message


if __name__ == "__main__":
    sys.exit(main())
