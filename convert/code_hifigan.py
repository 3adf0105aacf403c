"""Code HiFi-GAN vocoders -> `HifiGanVocoder`: SPIRIT-LM's two, and those of textlesslib and fairseq.

A config.json of the speech-resynthesis work (Polyak et al. 2021, arXiv 2104.00355) and a PyTorch file with the tensors
under `generator`; optionally speakers.txt and styles.txt, a name a line. SPIRIT-LM's folders
(`speech_tokenizer/hifigan_spiritlm_*`) call the file generator.pt; textlesslib keeps many vocoders in one folder,
`NAME.pt` beside `NAME_config.json` or `NAME_generator.pt` beside `NAME_config.json`, `NAME_speakers.txt` and
`NAME_styles.txt`; fairseq trains into `g_NUMBER` or publishes `model.pt`, beside config.json.

What the settings mean: `num_embeddings` units, `num_f0_tokens` pitch codes and `num_style_tokens` styles that change
in time (each at its own `..._hop_size` in samples), `multispkr` and `multistyle` embed the speaker and one style of
the utterance, `dur_predictor_params` a duration predictor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..configuration_tinywave import HifiGanConfig
from ..data.storage import read_json
from ..hifigan_tinywave import HifiGanVocoder
from .checkpoint_files import Checkpoint, load_torch_file
from .conversion import Conversion, ConvertOptions
from .key_report import KeyMap
from .licences import SPIRIT_LM, UNKNOWN

SPIRIT_LM_NAMES = ("hifigan_spiritlm_base", "hifigan_spiritlm_expressive_w2v2")
_SPIRIT_LM_VOICE = "Where none is chosen, SPIRIT-LM takes speaker 2 and, without style tokens, style 8; here it is 0."
# In fairseq's words, where a setting is left out.
_DEFAULT_SPEAKERS = 200
_DEFAULT_STYLES = 100
_KEYS = KeyMap(
    renames=(
        (r"\.weight_g$", ".parametrizations.weight.original0"),
        (r"\.weight_v$", ".parametrizations.weight.original1"),
    )
)
_USAGE = """
from transformers import AutoModel

vocoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
vocoder.remove_weight_norm()
waveform = vocoder.units_to_waveform(units)  # de-duplicated units; see its docstring for pitch, style and speaker
"""


def recognises_spirit_lm(source: Path) -> bool:
    """Whether a folder is one of SPIRIT-LM's two vocoders, by its own name and its settings."""
    return source.resolve().name in SPIRIT_LM_NAMES and _is_vocoder(source)


def recognises_other(source: Path) -> bool:
    """Whether a folder, or a .pt file with its settings beside it, is another code HiFi-GAN."""
    return not recognises_spirit_lm(source) and _is_vocoder(source)


def plan_spirit_lm(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion of SPIRIT-LM's vocoder. Raises `FileNotFoundError` and `ValueError` for what is missing."""
    return [_plan(source, "spirit-lm-hifigan", SPIRIT_LM, [_SPIRIT_LM_VOICE])]


def plan_other(source: Path, options: ConvertOptions) -> list[Conversion]:
    """Plan the conversion of another vocoder. Raises as [`plan_spirit_lm`] does."""
    return [_plan(source, "code-hifigan", UNKNOWN)]


def _plan(source, source_format, licence, notes=()) -> Conversion:
    settings_path, weights, speakers, styles = _files(source)
    content = load_torch_file(weights)
    if not isinstance(content, Mapping) or not isinstance(content.get("generator"), Mapping):
        raise ValueError(f"{weights} has no 'generator'; expected a dict with the tensors under it")
    checkpoint = Checkpoint.from_state_dict(content["generator"], weights)
    config = settings_to_hifigan_config(read_json(settings_path), settings_path)
    config.weight_norm = any(name.endswith(".weight_g") for name in checkpoint.specs)
    config.speaker_names = _names(speakers, config.num_speakers)
    config.style_names = _names(styles, config.num_styles)
    with torch.device("meta"):
        model = HifiGanVocoder(config)
    return Conversion(
        format=source_format,
        source=settings_path.parent,
        title=f"{source.stem}: code HiFi-GAN, {config.num_units} units at {config.unit_rate:g} Hz",
        model=model,
        checkpoint=checkpoint,
        key_map=_KEYS,
        licence=licence,
        usage=_USAGE,
        notes=list(notes),
    )


def settings_to_hifigan_config(settings: Mapping[str, Any], path: Path) -> HifiGanConfig:
    """Return our configuration for the published settings.

    Raises `ValueError` where one is missing, or describes an input that `HifiGanVocoder` does not have.
    """
    for name, what in (("f0", "F0 itself"), ("embedder_params", "speaker vectors")):
        if settings.get(name):
            raise ValueError(f"{path} has {name}: this vocoder takes {what}, which HifiGanVocoder has no input for")
    try:
        sampling_rate = settings.get("sampling_rate", 16000)
        dilations = settings["resblock_dilation_sizes"]
        if any(item != dilations[0] for item in dilations):
            raise ValueError(f"{path} has resblock_dilation_sizes {dilations}; expected the same for every kernel")
        durations = settings.get("dur_predictor_params") or {}
        fields = {
            "num_units": settings["num_embeddings"],
            "num_pitch_tokens": settings.get("num_f0_tokens") or 0,
            "num_style_tokens": settings.get("num_style_tokens") or 0,
            "num_speakers": settings.get("num_speakers", _DEFAULT_SPEAKERS) if settings.get("multispkr") else 0,
            "num_styles": settings.get("num_styles", _DEFAULT_STYLES) if settings.get("multistyle") else 0,
            "embedding_size": settings["embedding_dim"],
            "initial_channels": settings["upsample_initial_channel"],
            "upsample_rates": settings["upsample_rates"],
            "upsample_kernel_sizes": settings["upsample_kernel_sizes"],
            "resblock_kernel_sizes": settings["resblock_kernel_sizes"],
            "resblock_dilations": dilations[0],
            "duration_hidden_size": durations.get("var_pred_hidden_dim", 0),
            "duration_kernel_size": durations.get("var_pred_kernel_size", 3),
            "duration_dropout": durations.get("var_pred_dropout", 0.5),
            "sampling_rate": sampling_rate,
        }
        for stream in ("f0", "style"):
            if settings.get(f"num_{stream}_tokens"):
                rate = "pitch_rate" if stream == "f0" else "style_rate"
                fields[rate] = sampling_rate / settings[f"{stream}_hop_size"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a code HiFi-GAN ({error!r})") from error
    return HifiGanConfig(**fields)


def _is_vocoder(source: Path) -> bool:
    try:
        path = _settings_file(source)
    except FileNotFoundError:
        return False
    return {"upsample_rates", "num_embeddings"} <= read_json(path).keys()


def _stem(source: Path) -> str:
    """Return what textlesslib puts in front of the companions of a .pt file."""
    return source.stem.removesuffix("generator").removesuffix("_")


def _settings_file(source: Path) -> Path:
    """Return the settings of a folder or a .pt file. Raises `FileNotFoundError` where there are none."""
    folder = source if source.is_dir() else source.parent
    candidates = [folder / "config.json"]
    if not source.is_dir():
        candidates.insert(0, folder / f"{_stem(source)}_config.json")
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{source} has no settings; expected {' or '.join(path.name for path in candidates)}")
    return found


def _files(source: Path) -> tuple[Path, Path, Path, Path]:
    """Return the paths of settings, weights, speakers and styles, of which the last two need not exist."""
    settings = _settings_file(source)
    prefix = settings.name.removesuffix("config.json")
    if source.is_dir():
        weights = sorted({*source.glob("*.pt"), *(path for path in source.glob("g_*") if path.is_file())})
        if len(weights) != 1:
            held = ", ".join(path.name for path in weights) or "none"
            raise ValueError(f"{source} must hold one file of weights (generator.pt), found {held}; name the file")
        source = weights[0]
    folder = settings.parent
    return settings, source, folder / f"{prefix}speakers.txt", folder / f"{prefix}styles.txt"


def _names(path: Path, count: int) -> list[str] | None:
    """Return one name for each of `count` embeddings, or None without a file; those beyond it are numbered.

    Raises `ValueError` where the file has more names than there are embeddings.
    """
    if not path.is_file() or not count:
        return None
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) > count:
        raise ValueError(f"{path} has {len(names)} names for {count} embeddings; expected at most {count}")
    return names + [str(number) for number in range(len(names), count)]
