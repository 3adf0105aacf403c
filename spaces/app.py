"""What a Hugging Face Space runs. The variable TINYWAVE_MODEL names another model: a folder or a Hub repository."""

import os

from tinywave.spaces.interface import build_interface, launch
from tinywave.spaces.studio import Studio

if __name__ == "__main__":
    studio = Studio(os.environ.get("TINYWAVE_MODEL"))
    studio.load()
    launch(build_interface(studio))
