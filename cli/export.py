"""`tinywave export outputs/quickstart/student outputs/student.gguf --engine gguf --weights q8_0`"""

import json
from pathlib import Path

from ..quantization_tinywave import INT8
from .loading import load_language_model

ENGINES = ("torch-int8", "gguf")


def add_arguments(parser):
    parser.add_argument("model", help="model folder, in floating point")
    parser.add_argument("output", help="folder (torch-int8) or file (gguf) to write")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="torch-int8",
        help="torch-int8: a folder that loads as any other, for CPUs; gguf: a file for llama.cpp",
    )
    parser.add_argument(
        "--weights",
        choices=("f32", "f16", "q8_0", "q4_0"),
        default="q8_0",
        help="of the gguf file: how weights are stored",
    )


def run(arguments) -> int:
    model, processor = load_language_model(arguments.model)
    output = Path(arguments.output)
    if arguments.engine == "gguf":
        from ..convert.gguf_export import export_gguf  # the package gguf is optional

        export_gguf(model.float(), Path(arguments.model) / "tokenizer.json", output, arguments.weights)
    else:
        if (output / "config.json").is_file() and _weight_format(output) != INT8:
            raise ValueError(f"{output} holds another model; choose a folder of its own for the one in 8 bits")
        model.quantize().save_pretrained(output)
        processor.save_pretrained(output)
    print(output)
    return 0


def _weight_format(folder: Path) -> str | None:
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("weight_format")
