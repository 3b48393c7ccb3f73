"""The guides: their links lead somewhere, and what they name exists."""

import re
import shlex
from pathlib import Path

import pytest

from pretrain.cli import main
from pretrain.config.load import load_config
from pretrain.config.problems import MOVED
from pretrain.config.reference import reference
from pretrain.config.run import RunConfig
from tests.tiny import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
SECTIONS = "|".join(RunConfig.model_fields)


def page_id(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def anchor(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_there_are_pages() -> None:
    assert len(PAGES) > 5


def test_the_reference_of_options_is_current() -> None:
    written = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m pretrain.config.reference > docs/configuration.md"


def test_every_option_is_documented() -> None:
    assert not [line for line in reference().splitlines() if re.search(r"\| *\|$", line)]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert fragment in map(anchor, headings), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_options_that_are_named_exist(page: Path) -> None:
    listed = {
        f"{heading}.{option}" if heading else option
        for heading, table in re.findall(r"(?:^## (\S+)\n)?(.*?)(?=^## |\Z)", reference(), re.MULTILINE | re.DOTALL)
        for option in re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    } | {f"{section}.kind" for section in ("model", "tokenizer", "optimizer")}
    if page.name == "CHANGELOG.md":
        listed |= set(MOVED)  # the names that they had
    named = re.findall(rf"`((?:{SECTIONS})\.[a-z_.]+)(?:: [^`]*|=[^`]*)?`", page.read_text(encoding="utf-8"))
    files = {name for name in named if name.endswith((".json", ".safetensors"))}
    assert not sorted(set(named) - files - listed)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_of_the_guides_are_well_formed(page: Path) -> None:
    """Commands and options exist, and shipped configs take the overrides; the README's commands are also run."""
    for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[0] != "pretrain":
                continue
            command = main.commands[words[1]]
            context = command.make_context(words[1], words[2:])
            if "config" in context.params:
                load_config(context.params["config"], context.params["overrides"])
