"""`tinywave export outputs/quickstart/student outputs/student.gguf --engine gguf --weights q8_0`"""

from pathlib import Path

from ..data.storage import read_json
from ..modeling_tinywave import TinyWaveForCausalLM
from ..quantization_tinywave import INT8
from .loading import load_language_model

# engine -> the weights it can have; the first is the default.
WEIGHTS = {"torch-int8": ("int8",), "gguf": ("q8_0", "q4_0", "f16", "f32"), "onnx": ("int4", "int8")}


def add_arguments(parser):
    parser.add_argument("model", help="model folder, in floating point")
    parser.add_argument("output", help="folder (torch-int8, onnx) or file (gguf) to write")
    parser.add_argument(
        "--engine",
        choices=tuple(WEIGHTS),
        default="torch-int8",
        help="torch-int8: a folder that loads as any other, for CPUs; gguf: a file for llama.cpp; onnx: a folder for "
        "ONNX Runtime on CPUs, which the other verbs take, too",
    )
    parser.add_argument(
        "--weights",
        choices=("int8", "int4", "q8_0", "q4_0", "f16", "f32"),
        help="how weights are stored: q8_0, q4_0, f16 or f32 for gguf (default q8_0), int4 or int8 for onnx (default "
        "int4)",
    )


def run(arguments) -> int:
    weights = arguments.weights or WEIGHTS[arguments.engine][0]
    if weights not in WEIGHTS[arguments.engine]:
        allowed = ", ".join(WEIGHTS[arguments.engine])
        raise ValueError(f"found --weights {weights} for {arguments.engine}; expected one of {allowed}")
    model, processor = load_language_model(arguments.model)
    if not isinstance(model, TinyWaveForCausalLM):
        raise ValueError(f"{arguments.model} holds an export already; export it from its floating-point folder")
    output = Path(arguments.output)
    if arguments.engine == "gguf":
        from ..convert.gguf_export import export_gguf  # the package gguf is optional

        export_gguf(model.float(), Path(arguments.model) / "tokenizer.json", output, weights)
    elif arguments.engine == "onnx":
        from ..engines.onnx_export import export_onnx  # the package onnx is optional

        export_onnx(model, processor, output, weights)
    else:
        if (output / "config.json").is_file() and _weight_format(output) != INT8:
            raise ValueError(f"{output} holds another model; choose a folder of its own for the one in 8 bits")
        model.quantize().save_pretrained(output)
        processor.save_pretrained(output)
    print(output)
    return 0


def _weight_format(folder: Path) -> str | None:
    return read_json(folder / "config.json").get("weight_format")
