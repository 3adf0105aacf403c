"""`tinywave quickstart --variant expressive`: from speech to a distilled student and a report, in one command.

Every step leaves its result in the output folder and is skipped when it is there: an interrupted run continues.
"""

import platform
import time
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
import transformers

from ..configuration_tinywave import PROSODY_STREAMS
from ..data.audio_io import load_audio, write_audio
from ..data.codec_loading import load_codec
from ..data.corpus import SAMPLING_RATE, iterate_corpus, prepare_corpus, verify_splits
from ..data.interleaving import read_documents
from ..data.storage import read_json, write_json
from ..data.text_items import text_items
from ..data.unit_extraction import extract_units
from ..eval.prosody import continue_prompts, measure_prosody, read_styled_prompts
from ..eval.recordings import read_corpus_recordings, read_recordings
from ..eval.report import write_report
from ..eval.results import build_report
from ..eval.results_table import report_to_markdown
from ..eval.resynthesis import WhisperTranscriber, evaluate_resynthesis
from ..eval.runner import evaluate_models
from ..pipeline_tinywave import TinyWavePipeline
from ..stages.recipes import CorrectionRecipe, DistillationRecipe, QuickstartRecipe
from ..training.arguments import CorrectionArguments, DistillationArguments
from ..training.run_record import RunRecord
from .argument_types import NUM_PROCESSES
from .correct import correct
from .distill import WITHOUT_TEACHER, distill
from .loading import load_language_model
from .recipe import RecipeArgument, read_recipe
from .shipped import AUDIO, CODEC, SUITES, TEACHER

VARIANTS = ("base", "expressive", "interleaved")
MODELS = ("teacher", "student", "no_distillation")
# Small shards keep both processes busy to the end, and lose little when the run is interrupted.
ROWS_PER_SHARD = 20

RECIPE = RecipeArgument("quickstart recipe", QuickstartRecipe)


def add_arguments(parser):
    parser.add_argument("--recipe", default="nano/quickstart", help="YAML file or the name of a packaged recipe")
    RECIPE.declare_overrides(parser)
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="base",
        help="what the models read and write: units, or with pitch and style, or with text as well",
    )
    parser.add_argument(
        "--output-dir", help="folder of everything the run makes (default: outputs/quickstart, or _VARIANT after it)"
    )
    parser.add_argument("--num-processes", type=NUM_PROCESSES, default=2, help="worker processes")


def run(arguments) -> int:
    recipe, variant = RECIPE.read(arguments), arguments.variant
    folder = arguments.output_dir or "outputs/quickstart" + ("" if variant == VARIANTS[0] else f"_{variant}")
    quickstart = Quickstart(recipe, variant, Path(folder), arguments.num_processes)
    report = quickstart.run()
    print(f"\n{report_to_markdown(report)}\n")
    print(f"Report: {quickstart.folder / 'report.html'}")
    return 0


class Quickstart:
    """The steps of one run, in order; each reads what the steps before it wrote into `folder`."""

    def __init__(self, recipe: dict, variant: str, folder: Path, num_processes: int):
        self.recipe, self.folder, self.num_processes = recipe, folder, num_processes
        self.variant = recipe["variants"][variant]
        self.prosody = [name for name in PROSODY_STREAMS if name in self.variant["streams"]]
        RunRecord(folder, "quickstart", {"recipe": recipe, "variant": variant}, {})
        self.seconds_file = folder / "seconds.json"
        self.seconds = read_json(self.seconds_file) if self.seconds_file.is_file() else {}

    def run(self) -> dict:
        """Runs every step that is not done and returns the report."""
        steps = (
            ("speak", self.speak),
            ("extract units", self.extract_units),
            ("correct teacher", self.correct_teacher),
            ("distill student", self.distill_student),
            ("train without teacher", self.train_without_teacher),
            ("score", self.score),
            ("resynthesize", self.resynthesize),
            ("continue speech", self.continue_speech),
        )
        if self.prosody:
            steps += (("continue prosody", self.continue_prosody),)
        for number, (name, step) in enumerate(steps, start=1):
            print(f"\n[{number}/{len(steps)}] {name}", flush=True)
            with self._timed(name):
                step()
        return self._write_report()

    @contextmanager
    def _timed(self, name: str):
        """Adds the duration of a step to those of earlier, interrupted runs."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            # A step that was skipped keeps the time it took when it ran.
            if elapsed > 1 or name not in self.seconds:
                self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed, 1)
                write_json(self.seconds, self.seconds_file)

    def speak(self) -> None:
        items = text_items(self.recipe["corpus"])
        corpus = prepare_corpus(
            items, self.folder / "corpus", num_processes=self.num_processes, rows_per_shard=ROWS_PER_SHARD
        )
        verify_splits(corpus)

    def extract_units(self) -> None:
        extract_units(self.folder / "corpus", self.codec, self.folder / "units", self.num_processes)

    def correct_teacher(self) -> None:
        recipe = self._recipe("correction", CorrectionRecipe, CorrectionArguments)
        correct(recipe, TEACHER, self.folder / "units", self.folder / "teacher")

    def _recipe(self, stage: str, recipe_class: type, training: type) -> dict:
        return read_recipe(self.recipe[stage], recipe_class, training=training) | self.variant

    def distill_student(self) -> None:
        self._distill("student", {})

    def train_without_teacher(self) -> None:
        self._distill("no_distillation", WITHOUT_TEACHER)

    def _distill(self, name: str, overrides: dict) -> None:
        recipe = self._recipe("distillation", DistillationRecipe, DistillationArguments)
        distill(recipe, self.folder / "teacher", self.folder / "units", self.folder / name, overrides)

    def score(self) -> None:
        path = self.folder / "evaluation.json"
        if path.is_file():
            return
        held_out = read_documents(self.folder / "units", "test", prosody=self.prosody)
        evaluation = evaluate_models(
            self.models,
            {suite: SUITES / f"{suite}.parquet" for suite in self.recipe["suites"]},
            held_out,
            batch_size=16,
            encoder=self.codec.fingerprint(),
        )
        evaluation.write_rows(self.folder / "pairs")
        write_json(evaluation.to_record(), path)

    def resynthesize(self) -> None:
        path = self.folder / "resynthesis.json"
        if path.is_file():
            return
        sets = {
            "hibari_held_out": read_corpus_recordings(
                self.folder / "corpus", max_per_domain=self.recipe["num_resynthesis_clips"]
            ),
            "kokoro_unseen_voices": read_corpus_recordings(AUDIO / "kokoro"),
            "librivox": read_recordings(AUDIO / "librivox"),
        }
        transcribe = WhisperTranscriber(num_threads=torch.get_num_threads())
        results = {
            name: evaluate_resynthesis(recordings, self.codec, transcribe).to_dict()
            for name, recordings in sets.items()
        }
        write_json(results, path)

    def _test_rows(self):
        return (row for row in iterate_corpus(self.folder / "corpus") if row["split"] == "test")

    def continue_speech(self) -> None:
        path = self.folder / "continuations.json"
        if path.is_file():
            return
        stories = [row for row in self._test_rows() if row["domain"] == "story"][: self.recipe["num_continuations"]]
        speed = {name: [0, 0.0] for name in MODELS}
        cards = [self._continue_story(number, row, speed) for number, row in enumerate(stories, start=1)]
        record = {
            "continuations": cards,
            "units_per_second": {name: units / seconds for name, (units, seconds) in speed.items()},
        }
        write_json(record, path)

    def _continue_story(self, number: int, row: dict, speed: dict) -> dict:
        """Continues the first sentences of one story with every model and writes the audio."""
        num_words = len(" ".join(row["sentences"][: self.recipe["prompt_sentences"]]).split())
        waveform = load_audio(row["audio"]["bytes"], SAMPLING_RATE, name=f"story {number}")
        prompt = waveform[: int(row["words"][num_words]["start"] * SAMPLING_RATE)]
        card = {"title": f"Story {number}", "text": " ".join(row["text"].split()[:num_words])}
        card["prompt"] = self._write_sample(f"{number}_prompt", prompt, SAMPLING_RATE)
        for name, (model, processor) in self.models_and_processors.items():
            pipeline = TinyWavePipeline(model, processor, self.codec)
            torch.manual_seed(self.recipe["seed"])
            start = time.perf_counter()
            (continuation,) = pipeline([("speech", prompt)], match_loudness=True, **self.recipe["generation"])
            speed[name][0] += len(continuation.streams)
            speed[name][1] += time.perf_counter() - start
            waveform = continuation.waveform.numpy()
            card[name] = self._write_sample(f"{number}_{name}", waveform, continuation.sampling_rate)
        return card

    def continue_prosody(self) -> None:
        path = self.folder / "prosody.json"
        if path.is_file():
            return
        settings = self.recipe["prosody"]
        prompts = read_styled_prompts(
            self.folder / "corpus", settings["styles"], settings["max_per_style"], split="test"
        )
        record = {}
        for name, (model, processor) in self.models_and_processors.items():
            pipeline = TinyWavePipeline(model, processor, self.codec)
            continuations = continue_prompts(pipeline, prompts, seed=self.recipe["seed"], **settings["generation"])
            record[name] = measure_prosody(continuations, seed=self.recipe["seed"])
        write_json(record, path)

    def _write_sample(self, name: str, waveform, sampling_rate: int) -> str:
        path = self.folder / "samples" / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        write_audio(path, waveform, sampling_rate)
        return str(path.relative_to(self.folder))

    @cached_property
    def codec(self):
        return load_codec(CODEC, self.variant["streams"])

    @cached_property
    def models_and_processors(self):
        return {name: load_language_model(self.folder / name) for name in MODELS}

    @property
    def models(self):
        return {name: model for name, (model, _) in self.models_and_processors.items()}

    def _write_report(self) -> dict:
        evaluation, resynthesis, continued = (
            read_json(self.folder / name) for name in ("evaluation.json", "resynthesis.json", "continuations.json")
        )
        cards = continued["continuations"]
        prosody = self.folder / "prosody.json"
        report = build_report(
            evaluation,
            parameters={name: self.models[name].num_parameters() for name in MODELS[:2]},
            resynthesis_wer={name: result["resynthesis"]["value"] for name, result in resynthesis.items()},
            samples=[str(self.folder / card[key]) for card in cards for key in ("prompt", *MODELS)],
            seconds=self.seconds,
        )
        report |= {
            "resynthesis": resynthesis,
            "continuations": cards,
            **({"prosody": read_json(prosody)} if prosody.is_file() else {}),
            "speed": {"units_per_second": continued["units_per_second"]},
            "curves": {name: self._loss_curve(name) for name in MODELS[1:]},
            "configuration": self.recipe,
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "num_threads": torch.get_num_threads(),
            },
        }
        write_json(report, self.folder / "report.json")
        write_report(report, self.folder)
        return report

    def _loss_curve(self, name: str) -> list[dict]:
        state = read_json(self.folder / name / "trainer_state.json")
        return [entry for entry in state["log_history"] if "loss" in entry]
