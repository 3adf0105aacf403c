"""What MkDocs does beside Markdown: files of the repository as links, the table of commands, links between docstrings.

A page may link to a file outside of `docs`, as it does when it is read in the repository (`../LICENSE`): the site gets
a copy of that file. `<!-- table of commands -->` becomes the table of all verbs of `tinywave`.
"""

import re
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tinywave.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = "<!-- table of commands -->"
OUTSIDE_LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
# A docstring names other objects as in transformers: [`LayerMap`], [`~TinyWavePipeline.stream`]. In text the backticks
# have become tags, in the type of an argument they have not.
TYPE = re.compile(r"<code>[^<]*</code>")
MENTION = re.compile(r"\[(?P<open><code>|`)~?(?P<name>[\w.]+)(?P<close></code>|`)\]")

_package: tempfile.TemporaryDirectory | None = None


# Before mkdocstrings reads its configuration.
@event_priority(100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings the package under its own name: the repository root is the package, whatever it is called."""
    global _package
    _package = tempfile.TemporaryDirectory(prefix="tinywave-docs-")
    view = Path(_package.name) / "tinywave"
    view.mkdir()
    for path in ROOT.iterdir():
        if path.suffix == ".py" and path.name != "setup.py" or (path / "__init__.py").is_file():
            (view / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_package.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to, as text that a browser shows."""
    for page in list(files.documentation_pages()):
        for target in OUTSIDE_LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            source, name = ROOT / target, _site_name(target)
            if source.is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at those copies, and fill in the table of commands."""
    rows = "".join(f"| `tinywave {verb}` | {summary} |\n" for verb, summary in VERBS.items())
    markdown = markdown.replace(COMMANDS, f"| command | what it does |\n|---|---|\n{rows}")
    return OUTSIDE_LINK.sub(lambda link: f"]({_site_name(link[1])})", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the names that docstrings mention links, where the object is on the same page."""
    anchors = re.findall(r'id="(tinywave\.[\w.]+)"', html)
    known = {".".join(anchor.split(".")[-count:]): anchor for anchor in anchors for count in (1, 2)}

    def link(mention: re.Match) -> str:
        name = mention["name"]
        shown = name if mention["open"] == "`" else f"<code>{name}</code>"
        return f'<a href="#{known[name]}">{shown}</a>' if name in known else shown

    html = MENTION.sub(link, html)
    return TYPE.sub(lambda code: code[0].replace("`", ""), html) if anchors else html


def on_post_build(config: MkDocsConfig) -> None:
    _package.cleanup()


def _site_name(target: str) -> str:
    return f"repository/{target}.txt"
