"""A program that loads a model repository where the package `tinywave` cannot be imported.

    python -P stranger.py REPOSITORY EXPECTED

EXPECTED is a folder that `clean_check.write_expected` made. Each check is one line of JSON on standard output:
{"check", "problem" (null if it passed), "difference" (largest distance from the expected numbers, null where there are
none)}. This file imports nothing of the package.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

TENSORS, REQUEST = "expected.safetensors", "request.json"


class Hidden:
    """A finder that makes every import of the package fail."""

    def find_spec(self, name, path=None, target=None):
        """Refuse the package; leave all else to the other finders."""
        if name.split(".")[0] == "tinywave":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class Visit:
    """The checks of one repository, by what a user would call."""

    def __init__(self, repository: str, expected: Path):
        from safetensors.torch import load_file

        self.repository = repository
        self.expected = load_file(expected / TENSORS)
        self.request = json.loads((expected / REQUEST).read_text(encoding="utf-8"))
        self.inputs = {name: self.expected[name] for name in ("input_ids", "attention_mask")}

    def checks(self) -> dict[str, Callable[[], float | None]]:
        """Name -> function that raises `ValueError` for what is wrong and returns the largest difference."""
        return {
            "AutoConfig": self.load_config,
            "AutoProcessor": self.load_processor,
            "AutoModelForCausalLM": lambda: self.compare_logits("AutoModelForCausalLM", trust_remote_code=True),
            "AutoModel": self.compare_hidden_states,
            "LlamaForCausalLM without trust_remote_code": lambda: self.compare_logits("LlamaForCausalLM"),
            'pipeline("text-to-audio")': self.speak_after_text,
            'pipeline("speech-continuation")': self.continue_speech,
        }

    def load_config(self) -> None:
        """The configuration is TinyWave's, and has the layout of ids of the original."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.repository, trust_remote_code=True)
        found = {name: getattr(config, name, None) for name in self.request["id_layout"]}
        if found != self.request["id_layout"]:
            raise ValueError(f"found {type(config).__name__} of {found}; expected {self.request['id_layout']}")

    def load_processor(self) -> float:
        """Text and units become the ids of the original."""
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(self.repository, trust_remote_code=True)
        ids = processor([("text", self.request["text"])], output_modality="speech")["input_ids"]
        return self.distance("text_ids", ids, exact=True)

    def compare_logits(self, name: str, **options) -> float:
        """The logits of a class of transformers are those of the original."""
        import torch
        import transformers

        model = getattr(transformers, name).from_pretrained(self.repository, **options).eval()
        with torch.no_grad():
            return self.distance("logits", model(**self.inputs).logits)

    def compare_hidden_states(self) -> float:
        """The last hidden states of the model without a head are those of the original."""
        import torch
        from transformers import AutoModel

        model = AutoModel.from_pretrained(self.repository, trust_remote_code=True).eval()
        with torch.no_grad():
            return self.distance("hidden_states", model(**self.inputs).last_hidden_state)

    def speak_after_text(self) -> float:
        """The pipeline has the logits of the original, and speaks."""
        import torch
        from transformers import pipeline

        pipe = pipeline("text-to-audio", model=self.repository, trust_remote_code=True)
        audio = torch.as_tensor(pipe(self.request["text"], **self.request["generation"])["audio"])
        if len(audio) == 0 or not audio.isfinite().all():
            raise ValueError(f"found {len(audio)} samples; expected speech of finite samples")
        with torch.no_grad():
            return self.distance("logits", pipe.model(**self.inputs).logits)

    def continue_speech(self) -> float:
        """A recording is encoded, continued and spoken as by the original."""
        import torch
        from transformers import pipeline

        pipe = pipeline("speech-continuation", model=self.repository, trust_remote_code=True)
        if (found := pipe.tinywave.codec.fingerprint()) != self.request["codec"]:
            raise ValueError(f"found a codec of fingerprint {found}; expected {self.request['codec']}")
        torch.manual_seed(self.request["seed"])  # of the phases that Griffin-Lim starts from
        said = pipe(self.expected["recording"].numpy(), **self.request["generation"])
        ids = torch.cat([torch.as_tensor(segment.streams.ids) for segment in said["segments"]])
        self.distance("continuation_ids", ids, exact=True)
        return self.distance("continuation", torch.as_tensor(said["audio"]), self.request["audio_tolerance"])

    def distance(self, name: str, found, tolerance: float | None = None, exact: bool = False) -> float:
        """The largest distance from an expected tensor; `ValueError` beyond the tolerance, and for another shape."""
        expected = self.expected[name]
        if found.shape != expected.shape:
            raise ValueError(f"found {name} of shape {tuple(found.shape)}; expected {tuple(expected.shape)}")
        difference = (found.double() - expected.double()).abs().max().item() if found.numel() else 0.0
        allowed = 0.0 if exact else self.request["tolerance"] if tolerance is None else tolerance
        if not difference <= allowed:  # NaN is too far as well
            raise ValueError(f"found {name} up to {difference:.3g} from those of the original; allowed {allowed:.3g}")
        return difference


def main(repository: str, expected: str) -> None:
    """Run every check, also after one that failed, and print a line for each."""
    sys.meta_path.insert(0, Hidden())
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    visit = Visit(repository, Path(expected))
    # As many as computed the expected numbers: sums in another order differ in their last bits.
    torch.set_num_threads(visit.request["num_threads"])
    for name, check in visit.checks().items():
        problem = difference = None
        try:
            difference = check()
        except Exception as error:  # whatever stops a user from loading the repository is what is looked for
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(json.dumps({"check": name, "problem": problem, "difference": difference}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
