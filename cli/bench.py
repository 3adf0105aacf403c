"""`tinywave bench --model speech-base-2b --engine torch-int8`"""

import json
from dataclasses import asdict

import torch

from ..benchmarks.decode import ENGINES, NUM_NEW_TOKENS, NUM_PROMPT_TOKENS, compare_engines, measure_decoding
from .argument_types import NUM_PROCESSES, NUM_TOKENS


def add_arguments(parser):
    parser.add_argument(
        "--model", "--preset", default="speech-base-2b", help="model folder, or a preset, which gets random weights"
    )
    parser.add_argument(
        "--engine",
        nargs="+",
        choices=ENGINES,
        default=["torch-bfloat16"],
        help="how the weights are computed with; several are compared, each in a process of its own",
    )
    parser.add_argument("--prompt-tokens", type=NUM_TOKENS, default=NUM_PROMPT_TOKENS, help="length of the prompt")
    parser.add_argument(
        "--new-tokens", type=NUM_TOKENS, default=NUM_NEW_TOKENS, help="tokens that are timed one by one"
    )
    parser.add_argument("--threads", type=NUM_PROCESSES, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--plot", help="SVG file to which the tokens per second are also drawn")
    parser.add_argument("--json", action="store_true", help="print JSON: an object, or of several engines a list")


def run(arguments) -> int:
    lengths = arguments.prompt_tokens, arguments.new_tokens
    if len(arguments.engine) > 1:
        rows = compare_engines(arguments.model, tuple(arguments.engine), *lengths, num_threads=arguments.threads)
    else:
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        rows = [asdict(measure_decoding(arguments.model, arguments.engine[0], *lengths))]
    if arguments.plot:
        from ..benchmarks.decode_picture import write_picture  # matplotlib is optional

        write_picture(rows, arguments.plot)
    if arguments.json:
        print(json.dumps(rows if len(rows) > 1 else rows[0]))
    elif len(rows) > 1:
        from ..benchmarks.tables import decode_table

        print(decode_table(rows))
    else:
        for name, value in rows[0].items():
            print(f"{name.replace('_', ' '):>22}  {f'{value:,.4g}' if isinstance(value, float) else value}")
    return 0
