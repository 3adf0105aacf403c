"""The pipelines of transformers, called in every way that its users call them."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from datasets import Audio, Dataset, Features
from transformers.pipelines.pt_utils import KeyDataset

from tinywave.cli.evaluate import describe_models
from tinywave.cli.loading import load_language_model
from tinywave.cli.shipped import AUDIO, CODEC, TEACHER
from tinywave.data.audio_io import load_audio
from tinywave.data.codec_loading import load_codec
from tinywave.hub_pipelines_tinywave import SpeechContinuationPipeline, TextToSpeechPipeline
from tinywave.pipeline_tinywave import TinyWavePipeline

COMMITS = ("a" * 40, "b" * 40)
OPTIONS = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped teacher and codec as one folder; the vocoder speaks through Griffin-Lim."""
    folder = tmp_path_factory.mktemp("repository")
    model, processor = load_language_model(TEACHER)
    TinyWavePipeline(model, processor, load_codec(CODEC, griffin_lim=True)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speaker(folder):
    model, processor = load_language_model(folder)
    return SpeechContinuationPipeline(model=model, processor=processor)


@pytest.fixture(scope="module")
def clips():
    return [load_audio(path)[:24_000] for path in sorted((AUDIO / "librivox").glob("*.flac"))[:3]]


def units(output):
    return output["segments"][0].streams.units.tolist()


@pytest.fixture(scope="module")
def expected(speaker, clips):
    return [units(speaker(clip, **OPTIONS)) for clip in clips]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_lists_generators_and_data_sets_are_continued_in_batches(speaker, clips, expected, batch_size):
    def found(inputs):
        return [units(output) for output in speaker(inputs, batch_size=batch_size, **OPTIONS)]

    rows = [{"audio": {"array": clip, "sampling_rate": 16_000}} for clip in clips]
    assert found(list(clips)) == expected
    assert found(clip for clip in clips) == expected
    assert found(KeyDataset(rows, "audio")) == expected
    assert found([(("speech", clip),) for clip in clips]) == expected
    assert speaker([], batch_size=batch_size) == []


def test_rows_of_a_data_set_with_undecoded_audio_are_continued(speaker, folder, clips, expected, tmp_path):
    paths = [str(path) for path in sorted((AUDIO / "librivox").glob("*.flac"))[:2]]
    dataset = Dataset.from_dict({"audio": paths}).cast(Features({"audio": Audio(decode=False)}))
    outputs = list(speaker(KeyDataset(dataset, "audio"), batch_size=2, **OPTIONS))
    whole = [load_audio(path) for path in paths]
    assert [units(output) for output in outputs] == [units(speaker(clip, **OPTIONS)) for clip in whole]


def test_one_input_in_every_form(speaker, clips, expected):
    pcm = np.round(clips[0] * 32768).clip(-32768, 32767).astype(np.int16)
    forms = {
        "gradio": (16_000, pcm), "integers": pcm, "tensor": torch.from_numpy(clips[0]),
        "segment": ("speech", clips[0]),
        "conversation": (("speech", clips[0]),), "raw": {"raw": clips[0], "sampling_rate": 16_000},
    }  # fmt: skip
    for name, form in forms.items():
        output = speaker(form, **OPTIONS)
        assert isinstance(output, dict) and units(output) == expected[0], name
    assert units(speaker(clips[0], generate_kwargs=OPTIONS)) == expected[0]


def test_several_continuations_give_a_list_for_each_input(speaker, clips):
    options = OPTIONS | {"do_sample": True, "num_return_sequences": 2}
    outputs = speaker(list(clips[:2]), batch_size=2, **options)
    assert [len(output) for output in outputs] == [2, 2]
    assert all(set(item) == {"audio", "sampling_rate", "text", "segments"} for output in outputs for item in output)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (3, "found int"),
        (None, "found NoneType"),
        ({"path": None, "bytes": None}, "found NoneType"),
        ({"text": "x"}, "found dict"),
        ("nowhere.wav", "nowhere.wav cannot be read"),
        ("https://example.org/a.wav", "is an address; download the file first"),
        (b"no audio at all", "the audio file cannot be read"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.full(16_000, 4000.0), "peak of 4,000"),
        (np.array([np.nan] * 16_000), "NaN"),
        ((0, np.zeros(16_000)), "sampling rate of 0"),
    ],
)
def test_other_inputs_are_refused_with_what_to_pass(speaker, wrong, reason):
    with pytest.raises(ValueError, match=reason):
        speaker(wrong, **OPTIONS)


def test_encoded_files_that_libsndfile_may_read_in_part_are_refused(speaker, clips, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.mp3", clips[0], 16_000)
    with pytest.raises(ValueError, match="is a MP3 file; decode it first, for instance with tinywave.load_audio"):
        speaker(tmp_path / "a.mp3", **OPTIONS)


def test_text_to_audio_takes_batches_too(folder):
    model, processor = load_language_model(folder)
    speaker = TextToSpeechPipeline(model=model, processor=processor)
    texts = ["A dog barks.", "The cow sleeps."]
    alone = [speaker(text, **OPTIONS)["audio"] for text in texts]
    together = speaker(texts, batch_size=2, **OPTIONS)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other["audio"], atol=1e-3)
    with pytest.raises(ValueError, match="found ndarray; text-to-audio takes a str"):
        speaker(np.zeros(16_000, np.float32))


@pytest.fixture
def repository(folder, tmp_path, monkeypatch):
    """A repository in the cache of the Hub: its first commit is the folder, and later ones have other centroids."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--speaker"
    for number, commit in enumerate(COMMITS):
        copy = repository / "snapshots" / commit
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6 * (1 + number)}))
        encoder = json.loads((copy / "speech_encoder" / "config.json").read_text())
        (copy / "speech_encoder" / "config.json").write_text(json.dumps(encoder | {"note": f"commit {number}"}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[1])
    return "someone/speaker"


@pytest.mark.parametrize("revision", [None, "main", *COMMITS])
def test_all_parts_come_from_the_commit_of_the_revision(repository, revision):
    number = COMMITS.index(revision) if revision in COMMITS else 1
    pipe = transformers.pipeline("speech-continuation", repository, revision=revision, trust_remote_code=True)
    loaded = TinyWavePipeline.from_pretrained(repository, revision=revision)
    for model, codec in ((pipe.model, pipe.tinywave.codec), (loaded.model, loaded.codec)):
        assert model.config.rms_norm_eps == pytest.approx(1e-6 * (1 + number))
        assert codec.speech_encoder.config.note == f"commit {number}"
    assert describe_models({"student": repository}, revision) == {
        "student": {"name": repository, "revision": revision, "commit": COMMITS[number]}
    }


@pytest.mark.parametrize("value", [0, -1, "2", 1.5, True])
def test_counts_that_are_no_counts_are_refused(speaker, clips, value):
    for name in ("batch_size", "num_return_sequences"):
        with pytest.raises(ValueError, match=f"{name} is {value!r}; expected a whole number of at least 1"):
            list(speaker(list(clips[:2]), **{name: value}, **OPTIONS))
