"""The reference has an entry for every public name, and asks no network for anything."""

import runpy

import pytest
from places import ROOT

import rolloutlib


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["make_reference.py", str(folder)])
        runpy.run_path(str(ROOT / "docs/make_reference.py"), run_name="__main__")
    return folder


def test_every_public_name_has_an_entry(reference):
    page = (reference / "rolloutlib.html").read_text()
    rooms = {path.name for path in (ROOT / "rolloutlib").iterdir() if path.is_dir()}
    for name in {*rolloutlib.__all__} - rooms:
        if not (ROOT / "rolloutlib" / f"{name}.py").exists():
            assert f'id="{name}"' in page, name


def test_it_is_light(reference):
    assert sum(path.stat().st_size for path in reference.rglob("*") if path.is_file()) < 3e6


def test_search_finds_a_name_without_a_network(reference, browser):
    page, asked, complaints = browser(reference / "rolloutlib.html")
    page.get_by_role("searchbox").fill("heatmaps")
    page.locator(".search-result").first.wait_for()
    assert "heatmaps" in page.locator(".search-result").first.inner_text()
    assert not asked and not complaints
