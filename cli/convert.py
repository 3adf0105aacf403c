"""`tinywave convert SOURCE DEST`"""

from pathlib import Path

import torch
from tqdm import tqdm

from ..convert.conversion import ConversionRun, ConvertOptions
from ..convert.formats import FORMATS, detect_format
from ..convert.licences import stated_licence

DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser):
    parser.add_argument("source", type=Path, help="downloaded checkpoint: a folder, or the .pt file of a vocoder")
    parser.add_argument("destination", type=Path, help="folder to write; an interrupted conversion continues there")
    parser.add_argument("--format", choices=FORMATS, help="what the source is, where its files do not tell")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; as in the source where it is left out")
    parser.add_argument("--kmeans", type=Path, metavar="FILE", help="k-means centroids, .npy or .safetensors")


def run(arguments) -> int:
    """Print the licence, then convert, and print what became of the tensors."""
    name = arguments.format or detect_format(arguments.source)
    source_format = FORMATS[name]
    print(f"{arguments.source}: {source_format.summary} ({name})")
    print(f"Licence of the weights: {source_format.licence.as_text()}")
    if stated := stated_licence(arguments.source):
        print(f"The card of the source states: {stated}.")
    print("Reading the names of the tensors and the checksums of the files ...", flush=True)
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    options = ConvertOptions(dtype=dtype, kmeans=arguments.kmeans)
    conversions = source_format.plan(arguments.source, options)
    work = ConversionRun(conversions, arguments.destination, options)
    print(f"{work.num_bytes:,} bytes of weights to write into {arguments.destination}")
    with tqdm(total=work.num_bytes, unit="B", unit_scale=True, desc="writing") as bar:
        work.run(bar.update)
    for conversion, report in zip(work.conversions, work.reports, strict=True):
        print(f"{arguments.destination / conversion.folder}: {report.summary()}")
        for note in conversion.notes:
            print(f"  {note}")
    return 0
