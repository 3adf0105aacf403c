"""The `tinywave` command: picks a verb, imports only that verb's module, and turns failures into one clear line.

Each verb is a module of this folder (`fit-units` is `fit_units.py`) with two functions: `add_arguments(parser)`, which
declares the verb's arguments, and `run(arguments) -> int`, which does the work and returns the exit code.
"""

import argparse
import contextlib
import errno
import functools
import importlib
import io
import itertools
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

from .. import __version__
from .paths import check_paths, sole_writer

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
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
_CONFIG = "--config"
_DEFECT = "; this is a defect of tinywave: run the command with --debug and report what it prints"


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a command as Ctrl-C does; `exit_code` is 128 and the number of the signal."""

    def __init__(self, number: int):
        super().__init__()
        self.exit_code = 128 + number


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code.

    Returns:
        0 on success, 2 for input that cannot be used, 130 after Ctrl-C, 143 after SIGTERM, 141 where the reader of the
        output went away, and 70 for a defect of this package. One line on standard error describes what went wrong;
        `--debug` shows the traceback as well.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    delivered: list[KeyboardInterrupt] = []
    try:
        open_standard_streams()
        with warnings.catch_warnings(), _signals_as_interrupts(delivered):
            warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
            return _run([argument for argument in argv if argument != "--debug"])
    except BrokenPipeError:
        # The reader of our output (`tinywave encode x.wav | head`) went away; nothing is wrong on this side.
        discard_output(sys.stdout)
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        _report(interrupt, debug)
        return getattr(interrupt, "exit_code", EXIT_INTERRUPTED)
    except Exception as raised:
        if delivered:  # An import or a library has turned the interrupt into an error of its own.
            _report(delivered[0], debug)
            return getattr(delivered[0], "exit_code", EXIT_INTERRUPTED)
        error = as_full_disk(raised)
        is_expected = isinstance(error, expected_errors())
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            discard_output(sys.stdout)
        _report(error, debug, "" if is_expected else _DEFECT)
        return EXIT_FAILED if is_expected else EXIT_DEFECT


def _run(argv: list[str]) -> int:
    parser = build_parser(argv)
    arguments = parser.parse_args(argv)
    if arguments.verb is None:
        parser.print_help()
        return EXIT_FAILED
    verb = import_verb(arguments.verb)
    if getattr(arguments, "print_config", False):
        print(arguments.recipe_argument.to_yaml(arguments), end="")
        return 0
    check_paths(arguments)
    with sole_writer(arguments):
        exit_code = verb.run(arguments)
    leave_process_group()
    sys.stdout.flush()  # a full disk or a closed pipe shows here, not at the interpreter's exit
    return exit_code


def _report(error: BaseException, debug: bool, addition: str = "") -> None:
    message = f"{type(error).__name__}: {describe_error(error)}" if addition else describe_error(error)
    try:
        if debug:
            traceback.print_exc()
        print(f"tinywave: {message}{addition}", file=sys.stderr, flush=True)
    except OSError:  # a full disk or a closed pipe; the exit code still says that the command failed
        discard_output(sys.stderr)


@contextlib.contextmanager
def _signals_as_interrupts(delivered: list[KeyboardInterrupt]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does, so that it cleans up after itself.

    The interrupts that were raised are added to `delivered`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        delivered.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))
        raise delivered[-1]

    numbers = [signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # It may be ignored, as in the background.
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_warning(show: Callable, message: Warning | str, category: type[Warning], *where, **options) -> None:
    """Print the warnings of this package about its input as one line, without the place in the code."""
    if category.__module__.partition(".")[0] == __package__.partition(".")[0]:
        print(f"tinywave: warning: {message}", file=sys.stderr)
    else:
        show(message, category, *where, **options)


def as_full_disk(error: Exception) -> Exception:
    """Return the `OSError` of a full disk for what safetensors and torch raise in its place, else the error itself."""
    text = " ".join(str(error).split())
    # What torch.save says where fewer bytes were written than it gave.
    is_short = "PytorchStreamWriter failed writing" in text or "unexpected pos" in text
    if isinstance(error, OSError) or not (is_short or os.strerror(errno.ENOSPC) in text):
        return error
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), text)


def expected_errors() -> tuple[type[BaseException], ...]:
    """What bad input or a full machine raise; asked for only when something was raised."""
    from huggingface_hub.errors import StrictDataclassError  # an impossible configuration

    # FloatingPointError: training that diverges.
    return ValueError, OSError, ImportError, MemoryError, FloatingPointError, StrictDataclassError


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are `ValueError`s, one line as all others, and whose help fails as all other output."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        print(message, end="", file=file, flush=True)


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """Return the parser of all verbs; only the verb named in `argv` is imported and has its arguments declared."""
    parser = _OneLineParser(
        prog="tinywave", description="Small speech language models distilled from large ones.", allow_abbrev=False
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
            allow_abbrev=False,
        )
        if verb == chosen:
            module = import_verb(verb)
            subparser.epilog = f"example: {module.__doc__.split('`')[1]}"
            subparser.add_argument(_CONFIG, help="YAML file of arguments; those of the command line win")
            module.add_arguments(subparser)
            for path in _config_files(argv):
                read_config(subparser, path)
            if "--print-config" in argv:
                for action in subparser._actions:
                    action.required = action.required and action.dest == "recipe"
    return parser


def _config_files(argv: list[str]) -> list[str]:
    """The values of --config, written `--config FILE` or `--config=FILE`."""
    after = [value for name, value in itertools.pairwise(argv) if name == _CONFIG]
    return after + [argument.removeprefix(f"{_CONFIG}=") for argument in argv if argument.startswith(f"{_CONFIG}=")]


def read_config(parser: argparse.ArgumentParser, path: str) -> None:
    """Make the arguments of a YAML file, such as `output_dir: outputs/scores`, the defaults of a verb.

    Raises:
        ValueError: for a file that is not a mapping, and for arguments that the verb does not have or not with these
            values.
    """
    from .recipe import read_yaml  # no verb is needed to show the help of all

    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    for name, value in read_yaml(path).items():
        action = actions.get(str(name).replace("-", "_"))
        if action is None:
            raise ValueError(f"{path} sets {name}, which this verb does not have; it has {', '.join(actions)}")
        action.default = _config_value(parser, action, value, f"{path} sets {name} to {value!r}")
        action.required = False
        if not action.option_strings and action.nargs is None:
            action.nargs = "?"


def _config_value(parser: argparse.ArgumentParser, action: argparse.Action, value: object, found: str) -> object:
    """A value of a configuration file, converted and checked as on the command line."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{found}; expected true or false")
        return value
    takes_several = action.nargs not in (None, "?")
    if isinstance(value, list) and not (takes_several and value):
        raise ValueError(f"{found}; expected {'at least one value' if takes_several else 'one value'}")
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, (list, dict, bool)) or item is None for item in items):
        raise ValueError(f"{found}; expected text or numbers")
    try:
        converted = [parser._get_value(action, str(item)) for item in items]
        for item in converted:
            parser._check_value(action, item)
    except argparse.ArgumentError as error:
        raise ValueError(f"{found}; {error.message}") from error
    return converted if takes_several else converted[0]


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


def open_standard_streams() -> None:
    """Open the null device in place of closed standard streams, and let printing never fail on a character.

    A file that is opened while a standard stream is closed gets its number, and with it what libraries print there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_output(stream: TextIO) -> None:
    """Send what is still to be printed nowhere, so that the interpreter's last flush does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
