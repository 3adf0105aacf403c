"""The whole SPIRIT-LM release (Nguyen et al. 2024, arXiv 2402.05755) -> one folder for each of its models.

The release is a folder with `speech_tokenizer/` (hubert_25hz, vqvae_f0_quantizer, style_encoder_w2v2, two vocoders)
and `spiritlm_model/` (two language models). Either of the two, or a release with parts left out, is converted as well.
"""

from dataclasses import replace
from pathlib import Path

from . import code_hifigan, f0_vqvae, hubert_checkpoint, spirit_lm_model, style_classifier
from .conversion import Conversion, ConvertOptions

# published folder -> its converter, and the folder that comes out
PARTS = {
    "speech_tokenizer/hubert_25hz": (hubert_checkpoint.plan, "speech_encoder"),
    "speech_tokenizer/vqvae_f0_quantizer": (f0_vqvae.plan, "pitch_encoder"),
    "speech_tokenizer/style_encoder_w2v2": (style_classifier.plan, "style_encoder"),
    "speech_tokenizer/hifigan_spiritlm_base": (code_hifigan.plan_spirit_lm, "vocoder_base"),
    "speech_tokenizer/hifigan_spiritlm_expressive_w2v2": (code_hifigan.plan_spirit_lm, "vocoder_expressive"),
    "spiritlm_model/spirit-lm-base-7b": (spirit_lm_model.plan_spirit_lm, "spirit-lm-base-7b"),
    "spiritlm_model/spirit-lm-expressive-7b": (spirit_lm_model.plan_spirit_lm, "spirit-lm-expressive-7b"),
}


def recognises(source: Path) -> bool:
    """Whether a folder is the release, or its `speech_tokenizer` or `spiritlm_model`."""
    return source.is_dir() and bool(_present_parts(source))


def plan(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion of every part that is there.

    Raises `FileNotFoundError` where there is none, and what the converters of the parts raise.
    """
    parts = _present_parts(source)
    if not parts:
        raise FileNotFoundError(f"{source} holds no part of SPIRIT-LM; expected folders such as {next(iter(PARTS))}")
    conversions = []
    for published, folder in parts.items():
        convert_part, output = PARTS[published]
        conversions += [replace(conversion, folder=output) for conversion in convert_part(folder, options)]
    return conversions


def _present_parts(source: Path) -> dict[str, Path]:
    """Return the published name and the folder of every part; the upper folder may be the source itself."""
    found = {}
    for published in PARTS:
        upper, name = published.split("/")
        folder = next((path for path in (source / published, source / name) if path.is_dir()), None)
        if folder is not None:
            found[published] = folder
    return found
