"""A saved folder is complete: it loads where `tinywave` cannot be imported, and as plain Llama without trust."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from tinywave.codec_tinywave import SpeechCodec
from tinywave.configuration_tinywave import (
    PitchEncoderConfig,
    SpeechEncoderConfig,
    StyleEncoderConfig,
    TinyWaveConfig,
    VocoderConfig,
)
from tinywave.data.audio_io import load_audio
from tinywave.f0_tinywave import DeferredF0Extractor, SwiftF0Extractor
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.pipeline_tinywave import TinyWavePipeline
from tinywave.pitch_encoder_tinywave import PitchEncoder
from tinywave.processing_tinywave import TinyWaveProcessor
from tinywave.speech_encoder_tinywave import SpeechEncoder
from tinywave.style_encoder_tinywave import StyleEncoder
from tinywave.tokenization_tinywave import build_tokenizer, train_text_tokenizer
from tinywave.vocoder_tinywave import Vocoder

ROOT = Path(__file__).parents[1]

CONVERSATIONS = [[("text", "a dog"), ("speech", [3, 3, 9])], [("speech", [5])]]

HIDING = '''
import json, os, sys

class Hidden:
    """Make every import of the package, and of the packages of its voice and its pitch, fail."""
    names = {"tinywave", "hibari", "swift_f0"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
try:
    import tinywave
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tinywave is importable: this process proves nothing")
'''

STRANGER = (
    HIDING
    + """
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

folder, resaved = sys.argv[1:]
conversations = [[("text", "a dog"), ("speech", [3, 3, 9])], [("speech", [5])]]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
base = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
plain = AutoModelForCausalLM.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(conversations, output_modality="speech")
with torch.no_grad():
    logits = model(**inputs).logits
    hidden_states = base(**inputs).last_hidden_state
    result = {
        "plain_equal": torch.equal(plain(**inputs).logits, logits),
        "base_equal": torch.equal(model.lm_head(hidden_states), logits),
    }
model.save_pretrained(resaved)
result.update(
    config=type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__,
    plain_config=type(AutoConfig.from_pretrained(folder)).__name__,
    model=type(model).__name__,
    base=type(base).__name__,
    plain=type(plain).__name__,
    processor=type(processor).__name__,
    unit_offset=model.config.unit_offset,
    tokens=AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["[Text]", "[Hu499]"]),
    logits=logits.flatten()[::997].tolist(),
    ids=model.generate(**inputs, output_modality="speech", max_new_tokens=6, do_sample=False).tolist(),
    prompt=processor.ids_to_segments(inputs["input_ids"][0]),
    resaved=sorted(name for name in os.listdir(resaved) if name.endswith(".py")),
    imported=sorted(name for name in sys.modules if name.split(".")[0] == "tinywave"),
)
print(json.dumps(result))
"""
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-student", num_hidden_layers=1)
    model = TinyWaveForCausalLM(config).eval()
    licence = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    processor = TinyWaveProcessor.from_config(config, build_tokenizer(config, train_text_tokenizer([licence], config)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def stranger(saved, tmp_path_factory):
    """What a process without the package finds in the saved folder."""
    work = tmp_path_factory.mktemp("stranger")
    return run_stranger(STRANGER, work, saved[0], work / "resaved")


def run_stranger(code: str, work: Path, *arguments: object, **environment: str) -> dict:
    """Run a program in a process without the package; return the JSON that it prints last."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=work,
        env=inherited | {"HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_saved_folder_carries_the_code(saved):
    code = {path.name for path in saved[0].glob("*.py")}
    names = ("configuration", "generation", "modeling", "parallel_heads", "processing", "quantization", "tokenization")
    assert code == {f"{name}_tinywave.py" for name in names}
    root = Path(__file__).parents[1]
    assert all((saved[0] / name).read_text() == (root / name).read_text() for name in code)


def test_auto_classes_with_trust(stranger):
    assert stranger["imported"] == []
    assert (stranger["config"], stranger["model"], stranger["base"], stranger["processor"]) == (
        "TinyWaveConfig",
        "TinyWaveForCausalLM",
        "TinyWaveModel",
        "TinyWaveProcessor",
    )
    assert stranger["unit_offset"] == 512
    assert stranger["base_equal"]


def test_auto_classes_without_trust_give_llama(stranger):
    assert (stranger["plain_config"], stranger["plain"]) == ("LlamaConfig", "LlamaForCausalLM")
    assert stranger["plain_equal"]
    assert stranger["tokens"] == [510, 1011]


def test_stranger_computes_what_the_package_computes(saved, stranger):
    _, model, processor = saved
    inputs = processor(CONVERSATIONS, output_modality="speech")
    with torch.no_grad():
        assert stranger["logits"] == model(**inputs).logits.flatten()[::997].tolist()
    generated = model.generate(**inputs, output_modality="speech", max_new_tokens=6, do_sample=False)
    assert stranger["ids"] == generated.tolist()
    assert [tuple(segment) for segment in stranger["prompt"]] == [("text", "a dog"), ("speech", [3, 9])]


def test_a_stranger_can_save_it_again(stranger):
    assert stranger["resaved"] == [
        "configuration_tinywave.py",
        "generation_tinywave.py",
        "modeling_tinywave.py",
        "parallel_heads_tinywave.py",
        "quantization_tinywave.py",
        "tokenization_tinywave.py",
    ]


SAMPLING = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": True}

LISTENER = (
    HIDING
    + f"SAMPLING = {SAMPLING}"
    + """
import numpy as np
import torch
from transformers import pipeline

folder, recording, resaved = sys.argv[1:4]
speech = np.load(recording)
result = {}

def ask(pipe, inputs, **options):
    torch.manual_seed(4)
    return pipe(inputs, **SAMPLING, **options)

speaker = pipeline("text-to-audio", model=folder, trust_remote_code=True)
result["from_text"] = ask(speaker, "a dog")["audio"].tolist()
result["two"] = [len(said["audio"]) for said in speaker(["a dog", "a cat"], generate_kwargs=SAMPLING)]
result["rate"] = speaker("a", max_new_tokens=1)["sampling_rate"]
speaker.save_pretrained(resaved)

listener = pipeline("speech-continuation", model=folder, trust_remote_code=True)
try:
    ask(listener, speech)
except ModuleNotFoundError as error:
    result["without_f0"] = str(error)
Hidden.names.remove("swift_f0")
inputs = {
    "waveform": speech,
    "tensor": torch.from_numpy(speech),
    "dictionary": {"array": speech, "sampling_rate": 16000},
    "segments": (("text", "a dog"), ("speech", speech)),
}
for kind, prompt in inputs.items():
    said = ask(listener, prompt)
    result[kind] = said["audio"].tolist()
free = ask(listener, speech, output_modality="text")
result["text"] = [free["text"], len(free["audio"]), [segment.modality for segment in free["segments"]]]
torch.manual_seed(4)
pieces = list(listener.stream(speech, **SAMPLING))
result["streamed"] = [sum(len(piece.waveform) for piece in pieces), pieces[-1].end]
for name, prompt in (("rate_error", {"array": speech, "sampling_rate": 8}), ("kind_error", "a.wav")):
    try:
        listener(prompt)
    except ValueError as error:
        result[name] = str(error)

from_hub = pipeline("speech-continuation", model="someone/tinywave", trust_remote_code=True)
result["from_hub"] = ask(from_hub, speech)["audio"].tolist()
extract_f0 = listener.tinywave.codec.f0_extractor
own = pipeline("speech-continuation", model=resaved, trust_remote_code=True, f0_extractor=extract_f0)
result["from_resaved"] = ask(own, speech)["audio"].tolist()
result["modules"] = sorted(name for name in sys.modules if name.split(".")[0] == "tinywave")
print(json.dumps(result))
"""
)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return load_audio(ROOT / "assets" / "audio" / "librivox" / "sense_and_sensibility_01_0880.flac")[:40_000]


@pytest.fixture(scope="module")
def talker(speech) -> TinyWavePipeline:
    """An expressive model and the four models of its codec, all tiny."""
    torch.manual_seed(0)
    config = TinyWaveConfig.from_preset("nano-expressive-student", num_hidden_layers=1)
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    processor = TinyWaveProcessor.from_config(config, build_tokenizer(config, train_text_tokenizer([licence], config)))
    backbone = {"model_type": "whisper", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    backbone |= {"encoder_ffn_dim": 16, "num_mel_bins": 80}
    encoder = SpeechEncoder(SpeechEncoderConfig(backbone_config=backbone, layer=1, num_units=500)).eval()
    features = encoder.extract_features([speech])[0].detach()
    encoder.quantizer.centroids.copy_(features[torch.randint(len(features), (500,))] + 0.01 * torch.randn(500, 16))
    pitch_encoder = PitchEncoder(PitchEncoderConfig(hidden_size=8, code_size=8, f0_extractor="swift-f0")).eval()
    pitch_encoder.quantizer.codebook.normal_()
    backbone = {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4}
    backbone |= {"num_conv_pos_embedding_groups": 2}
    style_encoder = StyleEncoder(StyleEncoderConfig(backbone_config=backbone, num_styles=5, projector_size=8)).eval()
    sizes = {"num_units": 500, "hidden_size": 16, "duration_hidden_size": 16, "optional_prosody": True}
    vocoder = Vocoder(VocoderConfig(**sizes, num_pitch_tokens=64, num_style_tokens=5)).eval()
    prosody = {"pitch_encoder": pitch_encoder, "style_encoder": style_encoder, "f0_extractor": SwiftF0Extractor()}
    return TinyWavePipeline(TinyWaveForCausalLM(config).eval(), processor, SpeechCodec(encoder, vocoder, **prosody))


@pytest.fixture(scope="module")
def talker_folder(talker, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("talker")
    talker.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def heard(talker_folder, speech, tmp_path_factory) -> dict:
    """What a process without the package hears from the folder, and from the same folder as a repository."""
    work = tmp_path_factory.mktemp("listener")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = work / "hub" / "models--someone--tinywave"
    shutil.copytree(talker_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    np.save(work / "speech.npy", speech)
    arguments = (talker_folder, work / "speech.npy", work / "resaved")
    return run_stranger(LISTENER, work, *arguments, HF_HUB_CACHE=str(work / "hub"))


def said_by(talker: TinyWavePipeline, conversation: list, **options) -> list[float]:
    torch.manual_seed(4)
    segments = talker(conversation, **SAMPLING, **options)
    return torch.cat([segment.waveform for segment in segments]).tolist()


def test_a_pipeline_folder_has_a_room_for_each_model(talker_folder):
    assert {path.name for path in talker_folder.iterdir() if path.is_dir()} == {
        "speech_encoder",
        "pitch_encoder",
        "style_encoder",
        "vocoder",
    }
    names = {path.name for path in talker_folder.glob("*.py")}
    assert {"hub_pipelines_tinywave.py", "codec_tinywave.py", "modeling_tinywave.py"} <= names
    assert all((talker_folder / name).read_text() == (ROOT / name).read_text() for name in names)
    config = json.loads((talker_folder / "config.json").read_text())
    assert set(config["custom_pipelines"]) == {"text-to-audio", "speech-continuation"}
    assert config["architectures"] == ["LlamaForCausalLM"] and "AutoModel" in config["auto_map"]


def test_a_stranger_hears_what_the_package_says(talker, heard, speech):
    assert heard["modules"] == []
    from_text = said_by(talker, [("text", "a dog")])
    assert heard["from_text"] == pytest.approx(from_text, abs=1e-5) and len(from_text) > 0
    assert (heard["rate"], len(heard["two"])) == (24_000, 2)
    continued = said_by(talker, [("speech", speech)])
    for kind in ("waveform", "tensor", "dictionary", "from_hub", "from_resaved"):
        assert heard[kind] == pytest.approx(continued, abs=1e-5), kind
    assert heard["segments"] == pytest.approx(said_by(talker, [("text", "a dog"), ("speech", speech)]), abs=1e-5)
    assert heard["streamed"] == [len(continued), len(continued) / 24_000]
    torch.manual_seed(4)
    (answer,) = talker([("speech", speech)], output_modality="text", **SAMPLING)
    assert heard["text"] == [answer.text, 0, ["text"]]


def test_a_stranger_is_told_what_is_missing(heard):
    assert "pip install swift-f0" in heard["without_f0"]
    assert "sampling rate of 8 Hz" in heard["rate_error"]
    assert "a.wav cannot be read" in heard["kind_error"]


def test_pitch_of_another_extractor_is_asked_for():
    with pytest.raises(ValueError, match="learnt from the F0 extractor 'fcpe'.*f0_extractor=tinywave.load_f0"):
        DeferredF0Extractor("fcpe")(np.zeros(16_000, np.float32))


def test_a_saved_pipeline_is_the_loaded_one(talker, talker_folder, speech):
    loaded = TinyWavePipeline.from_pretrained(talker_folder)
    assert loaded.codec.fingerprint() == talker.codec.fingerprint()
    assert said_by(loaded, [("speech", speech)]) == said_by(talker, [("speech", speech)])


def test_a_folder_without_a_codec_offers_no_pipelines(talker, talker_folder, saved, tmp_path):
    model = TinyWaveForCausalLM.from_pretrained(talker_folder)
    assert set(model.config.custom_pipelines) == {"text-to-audio", "speech-continuation"}
    model.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match="holds no codec: found no speech_encoder/config.json"):
        TinyWavePipeline.from_pretrained(saved[0])


def test_a_pipeline_folder_is_still_a_plain_llama(talker_folder):
    plain = pipeline("text-generation", model=str(talker_folder))
    assert type(plain.model).__name__ == "LlamaForCausalLM"
    assert plain("a dog", max_new_tokens=2)[0]["generated_text"].startswith("a dog")
