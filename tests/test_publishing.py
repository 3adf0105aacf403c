"""A published repository is complete, says only what is known, and works where the package is not installed."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from tinywave.cli import main as command_line
from tinywave.cli.loading import load_language_model
from tinywave.cli.publish import RECORDING, check_encoder, read_source
from tinywave.cli.shipped import WHISPER_UNITS
from tinywave.data.audio_io import load_audio
from tinywave.data.codec_loading import load_codec
from tinywave.pipeline_tinywave import TinyWavePipeline
from tinywave.publishing import upload
from tinywave.publishing.clean_check import RepositoryCheckError, check_repository
from tinywave.publishing.model_repository import STAMP, repository_files
from tinywave.publishing.repository_card import CodecFacts, Example, repository_card
from tinywave.publishing.run_facts import read_run_facts
from tinywave.publishing.space_repository import check_space

ROOT = Path(__file__).resolve().parent.parent
TEACHER, CODEC = ROOT / "assets" / "teacher", ROOT / "assets" / "codec"
REPO = "someone/nano-teacher"
CHECKS = (
    "AutoConfig",
    "AutoProcessor",
    "AutoModelForCausalLM",
    "AutoModel",
    "LlamaForCausalLM without trust_remote_code",
    'pipeline("text-to-audio")',
    'pipeline("speech-continuation")',
)


# Tests are imported one by one, so that a file beside them is no package of theirs.
_SPEC = importlib.util.spec_from_file_location("hub_stub", Path(__file__).with_name("hub_stub.py"))
hub_stub = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hub_stub)


def publish(*arguments) -> tuple[int, str]:
    """Run the verb in this process; return its exit code and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = command_line.main(["publish", *map(str, arguments), "--griffin-lim"])
    return code, printed.getvalue()


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory) -> tuple[Path, str]:
    """The repository of the shipped teacher, checked but not uploaded, and what was printed."""
    folder = tmp_path_factory.mktemp("publish") / "repository"
    code, printed = publish(TEACHER, REPO, "--dry-run", "--output-dir", folder)
    assert code == 0
    return folder, printed


def contents(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in repository_files(folder)}


def test_the_repository_is_complete_and_holds_nothing_of_the_training(dry_run):
    folder, printed = dry_run
    names = set(repository_files(folder))
    assert names >= {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "processor_config.json", "modeling_tinywave.py", "processing_tinywave.py",
        "hub_pipelines_tinywave.py", "speech_encoder/model.safetensors", "pitch_encoder/model.safetensors",
        "style_encoder/model.safetensors", "vocoder/model.safetensors", "examples/1_prompt.wav",
        "examples/1_continuation.wav",
    }  # fmt: skip
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl")) or "checkpoint" in name]
    assert "local_files_only" not in json.loads((folder / "tokenizer_config.json").read_text())
    for path, size in repository_files(folder).items():
        assert f"{size:>12,}  {path}" in printed
    weights, original = load_file(folder / "model.safetensors"), load_file(TEACHER / "model.safetensors")
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[name], original[name]) for name in weights)
    assert len(load_audio(folder / "examples" / "1_continuation.wav")) > 16_000


def test_every_check_passed_without_the_package(dry_run):
    for check in CHECKS:
        assert f"  {check}: as the original" in dry_run[1]
    assert dry_run[1].endswith("Dry run: nothing was uploaded.\n")


def test_the_card_of_a_bare_model_claims_no_scores_and_no_data(dry_run):
    card = ModelCard.load(dry_run[0] / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.eval_results is None
    assert "5,288,256 parameters" in card.text and f'model="{REPO}"' in card.text
    assert not {"## Results", "## Data", "## Training"} & set(card.text.splitlines())
    assert "resolve/main/examples/1_continuation.wav" in card.text
    assert "swift-f0" in card.text, "the teacher reads pitch"
    assert not (dry_run[0] / ".eval_results").exists()


def test_the_licence_of_the_speech_encoder_goes_with_it(dry_run):
    text = ModelCard.load(dry_run[0] / "README.md").text
    assert "| speech encoder | mit |" in text and "| vocoder | apache-2.0 |" in text
    assert "(c) 2022 OpenAI" in (dry_run[0] / "speech_encoder" / "LICENSE").read_text()


def test_the_licence_of_another_speech_encoder_goes_with_that():
    line = ["publish", str(TEACHER), REPO, "--griffin-lim", "--speech-encoder", str(WHISPER_UNITS)]
    arguments = command_line.build_parser(line).parse_args(line)
    assert read_source(arguments).licence_texts == {"speech_encoder/LICENSE": WHISPER_UNITS / "LICENSE"}


@pytest.fixture(scope="module")
def uploaded(dry_run, tmp_path_factory):
    """The stub after an upload of the same model, its folder with a card edited by hand, and what was printed."""
    folder = tmp_path_factory.mktemp("edited") / "repository"
    shutil.copytree(dry_run[0], folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Mine\n")
    with hub_stub.serve_hub() as hub:
        arguments = [str(TEACHER), REPO, "--private", "--griffin-lim", "--output-dir", str(folder)]
        finished = run_process("-m", "tinywave.cli.main", "publish", *arguments, environment=hub.environment)
        assert finished.returncode == 0, finished.stderr
        yield hub, folder, finished.stdout


def run_process(*arguments, environment):
    return subprocess.run([sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True)


def test_the_uploaded_bytes_are_the_folders(uploaded):
    hub, folder, printed = uploaded
    assert hub.repositories == {("model", REPO): contents(folder)}
    assert hub.commits == [("model", REPO, "Upload teacher with tinywave")]
    assert hub.created[0]["visibility"] == "private"
    assert printed.splitlines()[-1] == f"{hub.url}/{REPO}"


def test_what_was_assembled_checked_and_edited_is_used_again(uploaded):
    hub, folder, printed = uploaded
    assert printed.splitlines()[0] == f"{folder} (unchanged)"
    assert "The same files passed every check before." in printed
    assert "README.md was edited by hand and is kept." in printed
    assert hub.repositories["model", REPO]["README.md"].endswith(b"# Mine\n")


VISITOR = """
import json, sys
sys.path.insert(0, sys.argv[1])
from stranger import Hidden
sys.meta_path.insert(0, Hidden())
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
ids = torch.arange(3, 1000, 7)[None]
with torch.no_grad():
    model = AutoModelForCausalLM.from_pretrained("someone/nano-teacher", trust_remote_code=True).eval()
    save_file({"logits": model(input_ids=ids).logits}, sys.argv[2])
print(json.dumps([type(model).__name__, sorted(name for name in sys.modules if name.split(".")[0] == "tinywave")]))
"""


def test_the_upload_loads_by_name_from_the_hubs_cache(uploaded, tmp_path):
    repository = tmp_path / "home" / "hub" / "models--someone--nano-teacher"
    for path, content in uploaded[0].repositories["model", REPO].items():
        target = repository / "snapshots" / hub_stub.OID / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(hub_stub.OID)
    environment = {
        "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    arguments = ("-c", VISITOR, str(ROOT / "publishing"), str(tmp_path / "logits.safetensors"))
    finished = run_process("-P", *arguments, environment=environment)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == ["TinyWaveForCausalLM", []]
    with torch.no_grad():
        logits = load_language_model(TEACHER)[0](input_ids=torch.arange(3, 1000, 7)[None]).logits
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], logits)


def test_a_damaged_repository_is_refused_by_name(dry_run, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(dry_run[0], damaged)
    weights = load_file(damaged / "model.safetensors")
    weights["lm_head.weight"][600] += 1
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    (damaged / "processing_tinywave.py").unlink()
    original = TinyWavePipeline(*load_language_model(TEACHER), load_codec(CODEC, griffin_lim=True))
    with pytest.raises(RepositoryCheckError, match="5 of 7 checks of .*damaged failed") as caught:
        check_repository(damaged, original, load_audio(RECORDING))
    problems = str(caught.value)
    assert "AutoProcessor: OSError" in problems and "processing_tinywave.py" in problems
    assert "AutoModelForCausalLM: ValueError: found logits up to" in problems
    assert "LlamaForCausalLM without trust_remote_code: ValueError: found logits up to" in problems
    assert "AutoModel:" not in problems and "AutoConfig:" not in problems


def test_an_edited_card_of_another_model_is_not_overwritten(dry_run, tmp_path, capsys):
    folder = tmp_path / "repository"
    shutil.copytree(dry_run[0], folder)
    for name in ("README.md", "tokenizer.json"):
        (folder / name).write_text("{}")
    assert publish(TEACHER, REPO, "--dry-run", "--output-dir", folder)[0] == 2
    assert "README.md was edited by hand, and the rest" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository"], "nothing half made stays"


@pytest.mark.parametrize(
    ("repo_id", "message"),
    [("teacher", "'teacher' without an owner; expected owner/name"), ("a//b", "'a//b' is no repository id")],
)
def test_a_wrong_repository_id_is_refused(repo_id, message, tmp_path, capsys):
    assert publish(TEACHER, repo_id, "--dry-run", "--output-dir", tmp_path / "new")[0] == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_weights_is_refused(tmp_path, capsys):
    shutil.copy(TEACHER / "config.json", tmp_path)
    assert publish(tmp_path, REPO, "--dry-run")[0] == 2
    assert f"{tmp_path} holds no weights (no .safetensors file)" in capsys.readouterr().err
    assert publish(tmp_path / "nothing", REPO, "--dry-run")[0] == 2
    assert "nothing contains no model: config.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["--speech-encoder", "--vocoder"])
def test_a_part_of_another_codec_is_refused_where_the_folder_holds_one(dry_run, tmp_path, capsys, part):
    assert publish(dry_run[0], REPO, "--dry-run", part, CODEC, "--output-dir", tmp_path / "new")[0] == 2
    assert f"{dry_run[0]} holds a codec of its own, which goes with it; leave out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert publish(TEACHER, REPO, "--dry-run", "--output-dir", tmp_path)[0] == 2
    assert "holds other things than a repository" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_a_token_nothing_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert publish(TEACHER, REPO, "--output-dir", tmp_path / "new")[0] == 2
    assert "found no access token of the Hub; put one with write permission into HF_TOKEN" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


UPLOAD = """
import sys
from tinywave.publishing.upload import upload_repository
try:
    print(upload_repository(sys.argv[1], "someone/demo", repo_type="space", message="Upload the demo"))
except OSError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def space(tmp_path) -> Path:
    folder = tmp_path / "space"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\napp_file: app.py\n---\n# Demo\n")
    (folder / "app.py").write_text("import gradio\n")
    (folder / "requirements.txt").write_text("gradio\n")
    return folder


def test_a_space_is_uploaded_without_caches(space):
    expected = {name: (space / name).read_bytes() for name in ("README.md", "app.py", "requirements.txt")}
    (check_space(space) / "__pycache__").mkdir()
    (space / "__pycache__" / "app.cpython-311.pyc").write_bytes(b"\0")
    assert repository_files(space).keys() == expected.keys(), "what is listed is what is uploaded"
    with hub_stub.serve_hub() as hub:
        finished = run_process("-c", UPLOAD, str(space), environment=hub.environment)
        assert finished.stdout.strip() == f"{hub.url}/spaces/someone/demo", finished.stderr
        assert hub.repositories == {("space", "someone/demo"): expected}
        assert hub.created[0]["sdk"] == "gradio"
        refused = run_process("-c", UPLOAD, str(space), environment=hub.environment | {"HF_TOKEN": "wrong"})
    assert refused.stdout.startswith("UploadError: could not upload") and "401" in refused.stdout
    unreachable = run_process("-c", UPLOAD, str(space), environment=hub.environment)
    assert unreachable.stdout.startswith(f"UploadError: could not upload {space} to someone/demo")
    assert "the same command goes on" in unreachable.stdout


def test_what_is_no_space_is_refused(space):
    (space / "README.md").write_text("# Demo\n")
    with pytest.raises(ValueError, match="says sdk None .* expected 'gradio'"):
        check_space(space)
    (space / "app.py").unlink()
    with pytest.raises(ValueError, match="found no app.py"):
        check_space(space)


def test_offline_mode_is_named(space, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
    with pytest.raises(upload.UploadError, match="HF_HUB_OFFLINE is set"):
        upload.upload_repository(space, "someone/demo", message="Upload")


def score(accuracy: float, low: float, high: float, encoder: str = "feed") -> dict:
    convention = {"normalisation": "mean", "encoder": encoder}
    return {"n": 200, "accuracy": accuracy, "standard_error": 0.02, "ci95": [low, high], "convention": convention}


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A finished quickstart, as far as a card reads it, on a real corpus."""
    student = tmp_path / "student"
    student.mkdir()
    shutil.copytree(ROOT / "assets" / "audio" / "kokoro", tmp_path / "corpus")
    (tmp_path / "samples").mkdir()
    for name in ("1_prompt", "1_student"):
        shutil.copy(RECORDING, tmp_path / "samples" / f"{name}.flac")
    cards = [
        {"text": "One windy day", "prompt": "samples/1_prompt.flac", "student": "samples/1_student.flac"},
        {"text": "Elsewhere", "prompt": "samples/1_prompt.flac", "student": "../../outside.flac"},
    ]
    models = ("teacher", "student", "no_distillation")
    suites = {
        "lexical": {name: score(0.68, 0.61, 0.74) for name in models},
        "speaker": {name: score(0.51, 0.45, 0.57) for name in models},
    }
    retention = {"suites": {"lexical": {"raw": 0.9, "above_chance": 0.8}}, "raw_mean": 0.9, "above_chance_mean": 0.8}
    report = {
        "teacher": {"parameters": 1000},
        "student": {"parameters": 400, "parameter_ratio": 0.4},
        "suites": suites,
        "perplexity": dict.fromkeys(models, 3.5),
        "retention": retention,
        "configuration": yaml.safe_load((ROOT / "recipes" / "nano" / "quickstart.yaml").read_text()),
    }
    training = yaml.safe_load((ROOT / "recipes" / "nano" / "distillation.yaml").read_text())["training"]
    state = {
        "max_steps": training["max_steps"],
        "save_steps": training["save_steps"],
        "train_batch_size": training["per_device_train_batch_size"],
        "log_history": [{"step": training["max_steps"], "loss": 0.85, "hidden_loss": 0.125}, {"train_loss": 1}],
    }
    records = {
        "evaluation.json": {"suites": suites, "retention": retention},
        "report.json": report,
        "continuations.json": {"continuations": cards},
        "student/trainer_state.json": state,
    }
    for name, record in records.items():
        (tmp_path / name).write_text(json.dumps(record))
    return tmp_path


def card_of(folder: Path) -> str:
    config = load_language_model(TEACHER)[0].config.with_streams(["unit"])
    codec = CodecFacts(needs_decoder=True, needs_f0=False, licences=[("vocoder", "apache-2.0")])
    return repository_card(
        "someone/nano", config, 400, read_run_facts(folder), codec, [Example("a.wav", "b.wav", "c")]
    )


def test_the_card_of_a_student_tells_its_run(run_folder):
    facts, card = read_run_facts(run_folder / "student"), card_of(run_folder / "student")
    for expected in (
        "400 parameters, 40.0 % of the 1,000 of its teacher",
        "Recipe of TinyWave: `nano/distillation`",
        "Block l of the student answers to block 5l of the teacher, l = 0 ... 2.",
        f"Steps {facts.state['max_steps']}, batch size 8",
        "- attention: auto, weight 1",
        f"Losses at step {facts.state['max_steps']}, the last that was logged: hidden loss 0.125, loss 0.850.",
        "| test | book | 1 |",
        "Apache-2.0 (Kokoro-82M",
        "| Lexical (n = 200) | 68.0 % [61.0, 74.0] |",
        "- Not shown to be better than guessing on: speaker.",
        "Its last training was on speech alone",
        "| vocoder | apache-2.0 |",
    ):
        assert expected in card, expected
    data = yaml.safe_load(card.split("---\n")[1])
    assert data["license"] == "apache-2.0" and "knowledge-distillation" in data["tags"]
    metrics = [result["metrics"][0]["value"] for result in data["model-index"][0]["results"]]
    assert metrics == [0.68, 0.51]
    assert facts.results[0]["raw_ratio"] == 0.9 and "raw_ratio" not in facts.results[1]
    assert [sample.text for sample in facts.samples] == ["One windy day"], "a path out of the run is not followed"


def test_a_recipe_that_has_changed_since_the_run_is_not_described(run_folder):
    state = json.loads((run_folder / "student" / "trainer_state.json").read_text())
    (run_folder / "student" / "trainer_state.json").write_text(json.dumps(state | {"max_steps": 300}))
    card = card_of(run_folder / "student")
    assert "`nano/distillation`" in card, "the report names it"
    assert "Block l of the student" not in card and "Steps " not in card


def test_the_training_section_of_the_models_own_card_is_kept(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\n---\n# S\n\n## Training\n\nIn 7 steps.\n\n## Limits\n\nNo.\n"
    )
    facts = read_run_facts(tmp_path)
    assert (facts.training_text, facts.licence) == ("In 7 steps.", {"license": "mit"})
    assert "## Training\n\nIn 7 steps.\n\n## Limits" in card_of(tmp_path)


def test_scores_in_the_folder_of_the_model_are_its_own(tmp_path):
    suites = {"salmon": {"student": score(0.6, 0.55, 0.65), "teacher": score(0.7, 0.65, 0.75)}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"suites": suites}))
    facts = read_run_facts(tmp_path)
    assert [(result["suite"], result["accuracy"]) for result in facts.results] == [("salmon", 0.6)]
    assert facts.report == {} and "| Salmon | all | mean | 200 | 60.0 % [55.0, 65.0] |" in card_of(tmp_path)


def test_scores_on_units_of_another_encoder_are_refused(run_folder):
    with pytest.raises(ValueError, match="scored on units of the encoder feed, and the codec's is .*--speech-encoder"):
        check_encoder(read_run_facts(run_folder / "student"), load_codec(CODEC, ["unit"], griffin_lim=True))


def test_the_stamp_is_not_part_of_the_repository(dry_run):
    assert (dry_run[0] / STAMP).is_file() and STAMP not in repository_files(dry_run[0])
