"""`tinywave bench --model speech-base-2b --engine torch-int8`"""

import json
from dataclasses import asdict

import torch

from ..benchmarks.decode import ENGINES, NUM_NEW_TOKENS, NUM_PROMPT_TOKENS, measure_decoding


def add_arguments(parser):
    parser.add_argument(
        "--model", "--preset", default="speech-base-2b", help="model folder, or a preset, which gets random weights"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="torch-bfloat16", help="how the weights are computed with"
    )
    parser.add_argument("--prompt-tokens", type=int, default=NUM_PROMPT_TOKENS, help="length of the prompt")
    parser.add_argument("--new-tokens", type=int, default=NUM_NEW_TOKENS, help="tokens that are timed, one by one")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(arguments) -> int:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    row = asdict(measure_decoding(arguments.model, arguments.engine, arguments.prompt_tokens, arguments.new_tokens))
    if arguments.json:
        print(json.dumps(row))
        return 0
    for name, value in row.items():
        print(f"{name.replace('_', ' '):>22}  {f'{value:,.4g}' if isinstance(value, float) else value}")
    return 0
