"""The documentation has a place for everything, and names nothing that is not there."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import dmnn_convert

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def documented():
    """Yield the object that every ``:::`` line of the API's pages names."""
    for page in sorted((DOCS / "api").glob("*.md")):
        for path in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, _, name = path.rpartition(".")
            yield path, getattr(import_module(module), name)


def test_every_public_name_is_on_a_page_of_the_api():
    found = [subject for _, subject in documented()]
    missing = [n for n in dmnn_convert.__all__ if getattr(dmnn_convert, n) not in found]
    assert missing == []
    assert len(found) == len({id(subject) for subject in found})


def test_no_name_of_the_api_hides_behind_a_module_of_that_name():
    # A path that a module has as well is read as the module's, which holds the function and more.
    odd = [
        path
        for path, subject in documented()
        if inspect.isfunction(subject)
        and path == f"dmnn_convert.{subject.__name__}"
        and inspect.unwrap(subject).__module__.endswith(f".{subject.__name__}")
    ]
    assert odd == []


def test_every_page_is_on_the_site():
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"[\w/]+\.md", SITE))


@pytest.mark.parametrize("kind", ["*.py", "*.ipynb"])
def test_every_example_has_a_page(kind):
    examples = {path.stem for path in (ROOT / "examples").glob(kind)}
    assert examples
    assert examples <= {path.stem for path in (DOCS / "examples").glob("*.md")}


def test_nothing_is_fetched_by_the_site():
    assert "font: false" in SITE
    assert "http" not in SITE


def test_links_and_pictures_lead_somewhere():
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
