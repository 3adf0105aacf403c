"""Does a repository load, and compute what the original computes, where this package is not installed?"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ..pipeline_tinywave import TinyWavePipeline
from ..processing_tinywave import ID_LAYOUT_FIELDS
from . import stranger

TEXT = "A quiet day in the garden."
GENERATION = {"max_new_tokens": 25, "min_new_tokens": 25, "do_sample": False}
SEED = 0
# To the bit where weights are float32. Half-precision kernels may round products of another order differently; one
# part in 128 of the largest value is the step of bfloat16.
HALF_PRECISION_STEP = 2.0**-7
AUDIO_TOLERANCE = 1e-4


class RepositoryCheckError(ValueError):
    """A repository does not load, or computes something else, where the package is not installed."""


@dataclass(frozen=True)
class CheckResult:
    """One check: what was loaded, what was wrong (None if nothing), the largest difference (None without numbers)."""

    check: str
    problem: str | None
    difference: float | None


def check_repository(
    repository: str | os.PathLike, original: TinyWavePipeline, recording: np.ndarray
) -> list[CheckResult]:
    """Load a repository in a process in which `tinywave` cannot be imported and compare it with the original.

    Checked are AutoConfig, AutoProcessor, AutoModelForCausalLM, AutoModel, `pipeline("text-to-audio")` and
    `pipeline("speech-continuation")` with `trust_remote_code=True`, and LlamaForCausalLM without. Logits and hidden
    states of a recording must agree to the bit for float32 weights, within 2^-7 of their largest value for others; a
    greedy continuation must have the same ids, and its waveform agree to 1e-4.

    Args:
        repository: folder with the language model at its root and its codec in folders of its own.
        original: what was saved there.
        recording (`np.ndarray` of shape `(samples,)`): speech at the rate of the codec's encoder.

    Raises [`RepositoryCheckError`] that names every check that failed.
    """
    with tempfile.TemporaryDirectory(prefix="tinywave-check-") as work:
        write_expected(original, recording, Path(work))
        results = _visit(Path(repository).resolve(), Path(work))
    if failed := [result for result in results if result.problem]:
        problems = "; ".join(f"{result.check}: {result.problem}" for result in failed)
        raise RepositoryCheckError(
            f"{len(failed)} of {len(results)} checks of {repository} failed in a process without tinywave: {problems}"
        )
    return results


@torch.no_grad()
def write_expected(original: TinyWavePipeline, recording: np.ndarray, folder: Path) -> None:
    """Write what [`stranger`] has to find: ids, logits, hidden states and a spoken continuation of a recording."""
    model, processor = original.model, original.processor
    inputs = processor([("speech", original.codec.encode([recording])[0])], output_modality="speech")
    output = model(**inputs, output_hidden_states=True)
    torch.manual_seed(SEED)
    segments = original([("speech", recording)], sampling_rate=original.codec.input_sampling_rate, **GENERATION)
    tensors = {
        **inputs,
        "recording": torch.as_tensor(recording),
        "logits": output.logits,
        "hidden_states": output.hidden_states[-1],
        "text_ids": processor([("text", TEXT)], output_modality="speech")["input_ids"],
        "continuation_ids": torch.cat([torch.as_tensor(segment.streams.ids) for segment in segments]),
        "continuation": torch.cat([segment.waveform for segment in segments]),
    }
    is_exact = model.dtype == torch.float32
    request = {
        "text": TEXT,
        "generation": GENERATION,
        "seed": SEED,
        "codec": original.codec.fingerprint(),
        "id_layout": {name: getattr(model.config, name) for name in ID_LAYOUT_FIELDS},
        "tolerance": 0.0 if is_exact else HALF_PRECISION_STEP * output.logits.abs().max().item(),
        "audio_tolerance": AUDIO_TOLERANCE,
        "num_threads": torch.get_num_threads(),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / stranger.TENSORS)
    (folder / stranger.REQUEST).write_text(json.dumps(request), encoding="utf-8")


def _visit(repository: Path, work: Path) -> list[CheckResult]:
    """Run [`stranger`] with empty caches of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    finished = subprocess.run(
        [sys.executable, "-P", stranger.__file__, str(repository), str(work)],
        cwd=work,
        env=environment | {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    results = [CheckResult(**json.loads(line)) for line in finished.stdout.splitlines() if line.startswith("{")]
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        raise RepositoryCheckError(f"the checks of {repository} stopped after {len(results)}: {last}")
    return results
