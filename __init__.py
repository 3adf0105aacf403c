"""TinyWave: small speech language models distilled from large ones.

The public names are imported on first use, so that `import tinywave` and `tinywave --help` do not wait for torch.
"""

import importlib

__version__ = "0.1.0"

_MODULE_OF_NAME = {
    "TinyWaveConfig": "configuration_tinywave",
    "SpeechEncoderConfig": "configuration_tinywave",
    "PitchEncoderConfig": "configuration_tinywave",
    "StyleEncoderConfig": "configuration_tinywave",
    "VocoderConfig": "configuration_tinywave",
    "HifiGanConfig": "configuration_tinywave",
    "TinyWaveModel": "modeling_tinywave",
    "TinyWaveForCausalLM": "modeling_tinywave",
    "SpeechStreams": "tokenization_tinywave",
    "TinyWaveProcessor": "processing_tinywave",
    "SpeechEncoder": "speech_encoder_tinywave",
    "PitchEncoder": "pitch_encoder_tinywave",
    "StyleEncoder": "style_encoder_tinywave",
    "Vocoder": "vocoder_tinywave",
    "HifiGanVocoder": "hifigan_tinywave",
    "load_audio": "data.audio_io",
    "write_audio": "data.audio_io",
    "load_f0_extractor": "data.f0_extraction",
    "load_codec": "data.codec_loading",
    "load_speech_encoder": "data.codec_loading",
    "SpeechCodec": "codec_tinywave",
    "TinyWavePipeline": "pipeline_tinywave",
    "PromptCache": "prompt_cache_tinywave",
    "OnnxForCausalLM": "engines.onnx_model",
    "LayerMap": "training.layer_map",
    "student_from_teacher": "training.student_init",
    "DistillationArguments": "training.arguments",
    "correct_teacher": "training.teacher_correction",
    "TeacherCacheWriter": "training.teacher_cache",
    "CacheSettings": "training.teacher_cache",
    "CachedTeacher": "training.cached_teacher",
    "DistillationTrainer": "distill_trainer",
}

__all__ = ["__version__", *_MODULE_OF_NAME]


def __getattr__(name):
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'tinywave' has no attribute {name!r}; the public names are {__all__}")
    value = getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_MODULE_OF_NAME})
