"""What is known about the licences of published checkpoints; printed before a conversion and written in its card."""

from dataclasses import dataclass
from pathlib import Path

from ..training.model_card import read_licence

LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "USE_POLICY.md", "NOTICE")


@dataclass(frozen=True)
class Licence:
    """A licence of weights.

    Args:
        tag (`str`): the `license` of a model card, as the Hub knows it.
        name (`str`): full name.
        terms (`str`): what is known of it, in sentences.
    """

    tag: str
    name: str
    terms: str

    def as_text(self) -> str:
        """Return name and terms in one line."""
        return f"{self.name}. {self.terms}"


SPIRIT_LM = Licence(
    "other",
    "FAIR Noncommercial Research License",
    "SPIRIT-LM's weights are released for noncommercial research under this licence and its acceptable use policy, "
    "and so is everything made from them, this conversion included: pass it on only under the same terms.",
)
TINYWAVE_REPOSITORY = Licence(
    "other",
    "FAIR Noncommercial Research License",
    "The published TinyWave models are distilled from SPIRIT-LM and carry its layers and embeddings; SPIRIT-LM's "
    "licence binds what is made from it, so treat them as noncommercial research, whatever else their cards state.",
)
MHUBERT = Licence(
    "mit",
    "MIT",
    "slprl/mhubert-base-25hz is released under MIT. The licence of k-means centroids from elsewhere is unknown: check "
    "their source.",
)
SLAMKIT = Licence(
    "mit",
    "MIT",
    "The cards of slamkit's models state MIT; the text model that they began from (Qwen, Llama, OPT) has a licence of "
    "its own, which holds as well: check the base model.",
)
UNKNOWN = Licence(
    "other",
    "unknown: check the source",
    "textlesslib's code is MIT; its vocoders come without a statement of their own, and some are trained on "
    "noncommercial data (Expresso is CC BY-NC 4.0).",
)


def stated_licence(folder: Path) -> str | None:
    """Return the `license` that the card of a source folder states in its front matter, or None."""
    stated = read_licence(folder)
    return stated.get("license_name") or stated.get("license")
