"""`tinywave train-vocoder nano/vocoder --output-dir outputs/vocoder`

`tinywave train-vocoder nano/expressive_vocoder --pitch-encoder outputs/pitch_encoder --output-dir outputs/vocoder`
"""

from pathlib import Path

from ..configuration_tinywave import VocoderConfig
from ..data.kokoro_voice import TRAIN_VOICES, KokoroVoice
from ..data.codec_loading import load_speech_encoder
from ..data.vocoder_features import (
    ProsodyReader,
    VocoderSpeaker,
    prepare_vocoder_features,
    sample_vocoder_items,
    sample_vocoder_texts,
)
from ..training.checkpoints import last_checkpoint, save_in_bfloat16
from ..training.vocoder_training import VocoderTrainingArguments, train_vocoder
from .recipe import read_recipe
from .shipped import SPEECH_ENCODER


def add_arguments(parser):
    parser.add_argument("recipe", help="vocoder recipe: a YAML file or the name of a packaged one")
    parser.add_argument("--speech-encoder", default=str(SPEECH_ENCODER), help="folder of the speech encoder")
    parser.add_argument(
        "--pitch-encoder", help="folder of a pitch encoder: the vocoder then hears pitch, and the styles of the recipe"
    )
    parser.add_argument("--output-dir", required=True, help="folder of the vocoder, its features and checkpoints")


def run(arguments) -> int:
    recipe = read_recipe(arguments.recipe)
    output = Path(arguments.output_dir)
    texts = sample_vocoder_texts(recipe["num_story_sentences"], recipe["seed"])
    share = recipe["kokoro_share"]
    items = sample_vocoder_items(texts, TRAIN_VOICES, share, recipe["seed"])
    speaker = VocoderSpeaker(KokoroVoice() if share else None)
    style_names = recipe.get("style_names", [])
    prosody = read_prosody(arguments.pitch_encoder, style_names)
    encoder = load_speech_encoder(arguments.speech_encoder)
    prepare_vocoder_features(items, encoder, speaker, output / "features", prosody=prosody)
    vocoder = train_vocoder(
        output / "features",
        VocoderTrainingArguments(output_dir=str(output), seed=recipe["seed"], **recipe["training"]),
        VocoderConfig(num_pitch_tokens=prosody.num_codes if prosody else 0, num_style_tokens=len(style_names)),
        resume_from_checkpoint=last_checkpoint(output),
        style_names=style_names,
    )
    save_in_bfloat16(vocoder, output)
    print(output)
    return 0


def read_prosody(pitch_encoder: str | None, style_names: list[str]) -> ProsodyReader | None:
    """What a vocoder of these arguments hears of prosody; `ValueError` for styles without a pitch encoder."""
    if pitch_encoder is not None:
        return ProsodyReader.from_pretrained(pitch_encoder, follows_style=bool(style_names))
    if style_names:
        raise ValueError(f"the recipe names the styles {', '.join(style_names)}; give --pitch-encoder with it")
    return None
