"""The source formats that can be converted, and which of them a folder is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import (
    code_hifigan,
    f0_vqvae,
    hubert_checkpoint,
    hubert_folder,
    licences,
    slamkit_unit_lm,
    spirit_lm,
    spirit_lm_model,
    style_classifier,
)
from .conversion import Conversion, ConvertOptions
from .licences import Licence


@dataclass(frozen=True)
class SourceFormat:
    """A published layout of files.

    Args:
        summary (`str`): one line for the user.
        licence ([`Licence`]): of the published weights.
        recognises: whether a path looks like this format; looks at names and configurations, reads no weights.
        plan: the conversions of a source, one for each model folder that comes out.
    """

    summary: str
    licence: Licence
    recognises: Callable[[Path], bool]
    plan: Callable[[Path, ConvertOptions], list[Conversion]]


FORMATS = {
    "spirit-lm": SourceFormat(
        "the SPIRIT-LM release",
        licences.SPIRIT_LM,
        spirit_lm.recognises,
        spirit_lm.plan,
    ),
    "spirit-lm-hubert": SourceFormat(
        "SPIRIT-LM's phonetic encoder",
        licences.SPIRIT_LM,
        hubert_checkpoint.recognises,
        hubert_checkpoint.plan,
    ),
    "spirit-lm-pitch": SourceFormat(
        "SPIRIT-LM's pitch quantizer",
        licences.SPIRIT_LM,
        f0_vqvae.recognises,
        f0_vqvae.plan,
    ),
    "spirit-lm-style": SourceFormat(
        "SPIRIT-LM's style classifier",
        licences.SPIRIT_LM,
        style_classifier.recognises,
        style_classifier.plan,
    ),
    "spirit-lm-hifigan": SourceFormat(
        "a vocoder of SPIRIT-LM",
        licences.SPIRIT_LM,
        code_hifigan.recognises_spirit_lm,
        code_hifigan.plan_spirit_lm,
    ),
    "spirit-lm-model": SourceFormat(
        "a 7B language model of SPIRIT-LM",
        licences.SPIRIT_LM,
        spirit_lm_model.recognises_spirit_lm,
        spirit_lm_model.plan_spirit_lm,
    ),
    "tinywave": SourceFormat(
        "a TinyWave repository of the Hub, or another Llama folder with SPIRIT-LM's tokens",
        licences.TINYWAVE_REPOSITORY,
        spirit_lm_model.recognises_tinywave,
        spirit_lm_model.plan_tinywave,
    ),
    "hubert": SourceFormat(
        "a HuBERT folder such as slprl/mhubert-base-25hz, with k-means centroids",
        licences.MHUBERT,
        hubert_folder.recognises,
        hubert_folder.plan,
    ),
    "slamkit": SourceFormat(
        "a unit language model of slamkit",
        licences.SLAMKIT,
        slamkit_unit_lm.recognises,
        slamkit_unit_lm.plan,
    ),
    "code-hifigan": SourceFormat(
        "a code HiFi-GAN vocoder of textlesslib or fairseq",
        licences.UNKNOWN,
        code_hifigan.recognises_other,
        code_hifigan.plan_other,
    ),
}


def detect_format(source: Path) -> str:
    """Return the name of the format that a source is.

    Raises `FileNotFoundError` where there is no such source, `ValueError` where no format or several recognise it.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; name the downloaded folder")
    found = [name for name, source_format in FORMATS.items() if source_format.recognises(source)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{source} could be {' or '.join(found)}; say which with --format")
    held = sorted(path.name for path in source.iterdir())[:10] if source.is_dir() else [source.name]
    known = "; ".join(f"{name}: {source_format.summary}" for name, source_format in FORMATS.items())
    raise ValueError(f"{source} is of no known format (it holds {', '.join(held) or 'nothing'}). Known are {known}")
