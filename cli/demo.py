"""`tinywave demo --port 7861`"""

from .argument_types import PORT


def add_arguments(parser):
    parser.add_argument("--port", type=PORT, default=7860, help="to serve the page at")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at; 0.0.0.0 lets other computers in")
    parser.add_argument(
        "--model",
        help="folder of a language model, or folder or Hub repository of a whole pipeline (default: the shipped nano "
        "teacher)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model, where it is the name of a repository")
    parser.add_argument("--student", help="folder of a student to compare (default: that of the quickstart, if any)")
    parser.add_argument(
        "--baseline", help="folder of the student without distillation (default: that of the quickstart, if any)"
    )


def run(arguments) -> int:
    """Load the models and serve the page until Ctrl-C."""
    # Imported here, so that the help of the verb needs no gradio.
    from ..spaces.interface import build_interface, launch
    from ..spaces.studio import Studio

    studio = Studio(arguments.model, arguments.student, arguments.baseline, revision=arguments.revision)
    print("Loading models ...", flush=True)
    studio.load()
    launch(build_interface(studio), arguments.host, arguments.port)
    return 0
