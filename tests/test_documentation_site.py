"""The documentation site: every code block runs, every link leads somewhere, and nothing comes from another server.

A block that is not run says why in a comment before it: `<!-- not run: reason -->`. The others run in the order of the
page, in a folder that looks like a clone after `make quickstart`, in small. Python blocks of a page share their names;
`tinywave` commands run in this process; a YAML block with a title is the file of that name.
"""

import ast
import contextlib
import functools
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

import tinywave
from tinywave import LayerMap, TinyWaveForCausalLM, TinyWaveProcessor, load_audio, student_from_teacher, write_audio
from tinywave.cli.main import VERBS, main
from tinywave.cli.shipped import AUDIO, TEACHER

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
PAGES_WITH_CODE = ("quickstart", "concepts", "distil", "deploy", "faq", "evaluation", "codec", "parallel_heads")
RUN_LANGUAGES = {"python", "bash", "yaml", "text"}
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<code>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    reason: str | None
    code: str


def read_page(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def read_blocks(name):
    return [Block(m["language"], m["title"], m["reason"], m["code"]) for m in FENCE.finditer(read_page(name))]


def commands(code):
    """The commands of a bash block, each as its words."""
    return [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with what a page may rely on: the repository's assets, a recording, a quickstart's results, heads."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("assets", "recipes", "eval"):
        (folder / name).symlink_to(ROOT / name)
    clip = load_audio(AUDIO / "librivox" / "sense_and_sensibility_01_0880.flac")
    write_audio(folder / "recording.wav", clip, 16_000)
    quickstart = folder / "outputs" / "quickstart"
    teacher = TinyWaveForCausalLM.from_pretrained(TEACHER, dtype="float32")
    teacher.config = teacher.config.with_streams(["unit"])
    tokenizer = TinyWaveProcessor.from_pretrained(TEACHER).tokenizer
    processor = TinyWaveProcessor.from_config(teacher.config, tokenizer)
    student = student_from_teacher(teacher, LayerMap.from_pairs([[0, 0], [5, 1], [10, 2]]))
    for name, model in (("teacher", teacher), ("student", student)):
        model.save_pretrained(quickstart / name)
        processor.save_pretrained(quickstart / name)
    drafting = TinyWaveForCausalLM.from_pretrained(quickstart / "student", num_parallel_heads=4)
    for part in (drafting, processor):
        part.save_pretrained(folder / "outputs" / "heads")
    return folder


def run_command(words, shown):
    """One `tinywave` command, in this process; `> file` writes what it prints."""
    assert words[0] == "tinywave", f"{words} is no tinywave command; mark its block with <!-- not run: reason -->"
    target = words[words.index(">") + 1] if ">" in words else None
    arguments = words[1 : words.index(">")] if target else words[1:]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(arguments) == 0, f"{words} failed"
    if target:
        Path(target).write_text(printed.getvalue(), encoding="utf-8")
    shown.append(printed.getvalue())


def run_blocks(name):
    """Run the blocks of a page in the working folder; returns how many Python and bash blocks ran."""
    names, shown, count = {"__name__": "__main__"}, [], 0
    for block in read_blocks(name):
        if block.reason:
            continue
        if block.language == "python":
            exec(compile(block.code, f"{name}.md", "exec"), names)
        elif block.language == "bash":
            for words in commands(block.code):
                run_command(words, shown)
        elif block.language == "yaml":
            Path(block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "text":
            assert block.title == "output"
            assert block.code == shown[-1], f"the output shown in {name}.md is not what its command prints"
        count += block.language in ("python", "bash")
    return count


@pytest.mark.parametrize("name", PAGES_WITH_CODE)
def test_blocks_run(name, clone, monkeypatch):
    monkeypatch.chdir(clone)
    torch.manual_seed(0)
    assert run_blocks(name) >= 1


@pytest.mark.parametrize("name", PAGES)
def test_blocks_are_known_and_reasons_given(name):
    blocks = read_blocks(name)
    assert read_page(name).count("\n```") == 2 * len(blocks)
    assert {block.language for block in blocks} <= RUN_LANGUAGES
    assert [block.code for block in blocks if block.reason is not None and len(block.reason.split()) < 2] == []
    assert name in PAGES_WITH_CODE or all(block.reason for block in blocks)
    assert read_page(name).count("<!-- not run") == sum(block.reason is not None for block in blocks)


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_their_options_exist(name):
    for block in read_blocks(name):
        if block.language != "bash":
            continue
        for words in commands(block.code):
            if words[0] == "make":
                assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
            elif words[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(words[2]) is not None
            elif words[0] == "tinywave":
                assert words[1] in VERBS
                assert {word for word in words if word.startswith("--")} <= options_of(words[1])
    mentioned = set(re.findall(r"`tinywave ([a-z][a-z-]+)", read_page(name)))
    assert mentioned <= set(VERBS)


@functools.cache
def options_of(verb):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main([verb, "--help"])
    return set(re.findall(r"--[a-z][a-z-]+", printed.getvalue()))


class Page(HTMLParser):
    """Targets of a page: `links` that are followed, `resources` that are loaded; and its `anchors`."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.resources, self.anchors = path, [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        loads = "href" if tag == "link" else "src" if tag in ("script", "img", "source", "iframe", "audio") else None
        if loads and attributes.get(loads):
            self.resources.append(attributes[loads])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the built site by path; a proxy that nobody answers at stands for a missing network."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere}
    finished = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "WARNING" not in finished.stderr and "ERROR" not in finished.stderr, finished.stderr
    return {path.relative_to(folder).as_posix(): Page(path) for path in folder.rglob("*.html")}


def test_site_holds_every_page(site):
    pages = {f"{path.stem}.html" for path in DOCS.glob("*.md")}
    assert pages <= set(site)
    assert {"index.html", "evaluation.html", "codec.html"} <= pages


def test_site_loads_nothing_from_elsewhere(site):
    loaded = [resource for page in site.values() for resource in page.resources]
    assert len(loaded) > 50
    assert [resource for resource in loaded if urlsplit(resource).netloc] == []
    folder = site["index.html"].path.parent
    styles = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.css"))
    assert "@import" not in styles and not re.search(r"url\(['\"]?(https?:)?//", styles)


def test_site_links_lead_to_pages_and_anchors(site):
    folder, missing, followed = site["index.html"].path.parent, [], 0
    for name, page in site.items():
        if name == "404.html":  # its links are absolute, for wherever it is shown
            continue
        for link in (*page.links, *page.resources):
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            path = (page.path.parent / unquote(target.path)).resolve() if target.path else page.path
            followed += 1
            if not path.is_file():
                missing.append((name, link))
            elif target.fragment and path.suffix == ".html":
                anchors = site[path.relative_to(folder).as_posix()].anchors
                missing += [] if unquote(target.fragment) in anchors else [(name, link)]
    assert followed > 200
    assert missing == []


def test_reference_holds_every_public_name_and_command(site):
    page = site["api.html"]
    public = {name for name in tinywave.__all__ if not name.startswith("__")}
    assert public - {anchor.split(".")[-1] for anchor in page.anchors if anchor.startswith("tinywave.")} == set()
    text = page.path.read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"<code>tinywave {verb}</code>" not in text] == []
    assert "[<code>" not in text and "[`" not in text  # the mentions of docstrings have become names or links


def test_reference_holds_every_name_that_a_page_imports(site):
    anchors, imported = site["api.html"].anchors, set()
    for page in PAGES:
        for block in (block for block in read_blocks(page) if block.language == "python"):
            for statement in ast.walk(ast.parse(block.code)):
                if isinstance(statement, ast.ImportFrom) and statement.module.startswith("tinywave."):
                    imported |= {f"{statement.module}.{name.name}" for name in statement.names}
    assert len(imported) > 10
    assert imported - anchors == set()


def test_pictures_show_what_the_code_does(tmp_path):
    subprocess.run([sys.executable, str(DOCS / "make_pictures.py"), str(tmp_path)], check=True, capture_output=True)
    drawn, shown = ({path.name: path for path in folder.glob("*.svg")} for folder in (tmp_path, DOCS / "images"))
    assert set(drawn) == set(shown)
    for name in drawn:
        assert labels(drawn[name]) == labels(shown[name]), f"run python docs/make_pictures.py: {name} is out of date"
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    assert [name for name in drawn if f"images/{name})" not in pages] == []


def labels(path):
    """All that is written in a picture: units, tokens, words, scores."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


def cited_papers():
    """Number of arXiv -> files of the package and recipes that name it."""
    folders = [path for path in ROOT.iterdir() if (path / "__init__.py").is_file() and path.name != "assets"]
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    files += (ROOT / "recipes").rglob("*.yaml")
    papers = {}
    for path in files:
        for number in re.findall(r"\b\d{4}\.\d{4,5}\b", path.read_text(encoding="utf-8")):
            papers.setdefault(number, set()).add(path.relative_to(ROOT).as_posix())
    return papers


def test_paper_index_is_complete_and_true():
    rows = {
        re.search(r"abs/([\d.]+)\)", line)[1]: re.findall(r"`([\w/]+\.(?:py|yaml|md))`", line)
        for line in read_page("papers").splitlines()
        if "arxiv.org" in line
    }
    cited = cited_papers()
    assert set(cited) - set(rows) == set(), "papers.md lacks papers that the code names"
    for number, files in rows.items():
        assert files, f"papers.md names no file for {number}"
        assert [file for file in files if not (ROOT / file).is_file()] == []
        named = [file for file in files if number in (ROOT / file).read_text(encoding="utf-8")]
        assert named, f"none of the files of {number} names it"
