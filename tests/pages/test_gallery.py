import base64
import io

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from places import ROOT

from rolloutlib import cli
from rolloutlib.pages import gallery as site
from rolloutlib.pages.figures import as_webp
from rolloutlib.plots import PAGE_WIDTH, plot_metrics
from rolloutlib.runs import results


def picture(colour, size=(900, 400)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return {"image/png": base64.b64encode(file.getvalue()).decode()}


def write_executed(path, title, *, said, figures=()):
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\n$r$")]
    for data, tags in figures:
        output = nbformat.v4.new_output("display_data", data=data)
        cells.append(nbformat.v4.new_code_cell("1", outputs=[output], metadata={"tags": tags}))
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"papermill": said})
    nbformat.write(notebook, path)


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs"
    figures = [(picture("red"), []), (picture("blue"), ["card"])]
    said = {"input_path": "notebooks/01_look.ipynb", "duration": 2.5}
    write_executed(folder / "01_look.ipynb", "Look <b>", said=said, figures=figures)
    failed = folder / "deep" / "02_lost.failed.ipynb"
    write_executed(failed, "Lost", said={"duration": 1.0, "exception": True})
    (folder / "03_half.1234abcd.part.ipynb").write_text("{")
    write_executed(folder / ".ipynb_checkpoints" / "01_look.ipynb", "Look then", said=said)
    write_executed(tmp_path / "notebooks" / "01_look.ipynb", "Look <b>", said={})
    grid = folder / "sweeps" / "grid"
    for number in range(3):
        write_run(grid, f"run{number}", number, number**2)
    write_executed(grid / "run1" / "look.ipynb", "Look with 1", said={})
    results.write_failure(grid / "run3", record_of("run3", 3, error="ValueError: no"))
    write_executed(grid / "run3" / "look.failed.ipynb", "Look with 3", said={})
    results.write_table(grid)
    return folder


def record_of(run, number, *, error="", **metrics):
    record = {"run": run, "notebook": "look", "route": "direct", "error": error, "versions": {}}
    numbers = {"seconds": 1.0, "peak_memory_mb": None, "metrics": metrics}
    return record | numbers | {"parameters": {"number": number, "x": 1}}


def write_run(out, run, number, square):
    results.write_result(out / run, record_of(run, number, square=square, word="<i>"))


def build(outputs):
    folder = outputs / "site"
    return site.build_site(site.executed_in(outputs, folder), outputs, folder)


def test_every_notebook_is_read_once_and_every_figure_closed(outputs, monkeypatch):
    read, found = nbformat.read, []
    monkeypatch.setattr(
        nbformat, "read", lambda path, **how: found.append(path) or read(path, **how)
    )
    assert cli.main(["gallery", "--figures", "notebooks", "figures"]) == 0
    assert len(found) == len(set(found)) == 4  # two beside the sweep, and two runs of it
    assert plt.get_fignums() == []


def test_what_notebooks_and_runs_say_is_text_and_not_html(outputs):
    build(outputs)
    index = (outputs / "site" / "index.html").read_text()
    sweep = (outputs / "site" / "sweeps" / "grid.html").read_text()
    assert ">Look &lt;b&gt;</a></h3>" in index and "&amp;lt;" not in index + sweep
    assert ">Look &lt;b&gt;</a>" in sweep and "<td>&lt;i&gt;</td>" in sweep
    assert 'math[display="block"]' in index and "<style>" in sweep


def test_gallery_shows_notebooks_and_sweeps_without_a_network(outputs, browser, violations, capsys):
    assert cli.main(["gallery", "--figures", "notebooks", "figures"]) == 0
    page, asked, complaints = browser(outputs / "site" / "index.html", color_scheme="dark")
    assert page.locator(".card h3").all_inner_texts() == ["Look <b>", "Lost", "Sweep: grid"]
    assert "1 of 3 finished" in page.locator("body").inner_text()
    shown = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)")
    assert shown[0] == 640 and len(shown) == 2 and all(shown)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    page.get_by_role("link", name="Lost", exact=True).click()
    page.locator("nav >> text=Look").click()
    assert page.title() == "Look <b>" and page.locator("math").count() == 1
    page.locator("nav >> text=Sweep").click()
    assert "3 of 4 runs finished" in page.locator("body").inner_text()
    assert page.locator("tbody tr").count() == 4 and "<i>" in page.locator("table").inner_text()
    assert page.locator("th").all_inner_texts()[:4] == ["run", "number", "square", "word"]
    assert page.locator("table").get_attribute("tabindex") == "0"  # keys can scroll it
    assert page.locator("td a").all_inner_texts() == ["run1", "run3"]
    page.locator("td a >> text=run3").click()
    assert page.title() == "Look with 3"
    page.locator("nav >> text=Sweep: grid").click()
    page.locator("nav >> text=All notebooks").click()
    assert asked == [] and complaints == []


def test_cards_are_grouped_searched_and_lead_to_the_cell_of_their_figure(
    outputs, browser, violations
):
    notebook = nbformat.read(outputs / "01_look.ipynb", 4)
    notebook.cells[0].metadata["tags"] = ["learn", "start"]
    notebook.cells[0].source = "# Look <b>\n\nSee *where* it [looks](a.md).\n\nMore."
    nbformat.write(notebook, outputs / "01_look.ipynb")
    page, asked, complaints = browser(build(outputs))
    assert violations(page) == []
    assert page.locator("h2").all_inner_texts() == ["Learn how rollout works", "More", "Sweeps"]
    assert page.locator(".summary").all_inner_texts()[0] == "See where it looks."
    page.get_by_role("searchbox").fill("WHERE look")
    assert page.locator(".card:visible h3").all_inner_texts() == ["Look <b>"]
    assert page.locator("section:visible").count() == 1
    page.locator(".card:visible").get_by_role("link", name="the figure in its place").click()
    drawn = page.evaluate("document.querySelector(':target').querySelector('img').naturalWidth")
    assert drawn == 900 and page.evaluate("document.querySelector('img').currentSrc")
    first = page.locator(":target img").get_attribute("src")
    assert first.startswith("data:image/webp;base64,")
    page.go_back()
    page.get_by_role("link", name="Start here: Look <b>").click()
    assert page.title() == "Look <b>" and asked == [] and complaints == []


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_figure_that_is_no_picture_stays_as_it_is(content):
    text = base64.b64encode(content).decode()
    assert as_webp(text) == f"data:image/png;base64,{text}"


def test_lines_keep_every_pixel_and_photographs_look_the_same():
    lines = Image.new("L", (300, 200), "white")
    lines.paste(0, (20, 30, 200, 32))
    photo = Image.open(ROOT / "data" / "images" / "coffee.png").convert("RGB")
    for shown, most in ((lines.convert("RGB"), 0), (photo, 3)):
        file = io.BytesIO()
        shown.save(file, "png")
        kept = as_webp(base64.b64encode(file.getvalue()).decode()).partition(",")[2]
        assert len(kept) < len(file.getvalue()) / 2
        again = Image.open(io.BytesIO(base64.b64decode(kept))).convert("RGB")
        assert np.abs(np.asarray(again).astype(int) - np.asarray(shown)).mean() <= most


def test_index_links_to_the_reference_where_there_is_one(outputs):
    found = site.executed_in(outputs, outputs / "site")
    index = site.build_site(found, outputs, outputs / "site")
    assert "reference" not in index.read_text()
    (outputs / "site" / "reference").mkdir()
    (outputs / "site" / "reference" / "index.html").touch()
    site.build_site(found, outputs, outputs / "site")
    assert '<a href="reference/index.html">' in index.read_text()


def test_gallery_of_nothing_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "site" / "reference").mkdir(parents=True)
    assert cli.main(["gallery"]) == 2
    assert capsys.readouterr().err == "rollout: outputs: no notebook was executed here yet\n"


def test_only_so_many_runs_of_a_sweep_have_a_page_and_failed_ones_first(outputs, monkeypatch):
    monkeypatch.setattr(site, "RUN_PAGES", 1)
    build(outputs)
    [page] = (outputs / "site" / "sweeps" / "grid").glob("*.html")
    assert page.name == "run3.html"
    sweep = (outputs / "site" / "sweeps" / "grid.html").read_text()
    assert "1 runs have a page" in sweep and sweep.count("<td><a") == 1


def test_figure_of_the_readme_is_the_one_that_is_tagged_and_small(outputs):
    found = site.executed_in(outputs, outputs / "site")
    notebooks = outputs.parent / "notebooks"
    [written] = site.write_readme_figures(found, outputs, notebooks, outputs / "small")
    figure = Image.open(written)
    assert written.name == "01_look.png" and figure.width == site.README_WIDTH
    assert figure.convert("RGB").getpixel((9, 9)) == (0, 0, 255)


def test_figure_full_of_colours_stays_below_the_limit(outputs, monkeypatch):
    noise = Image.effect_noise((900, 900), 90).convert("RGB")
    file = io.BytesIO()
    noise.save(file, "png")
    site._write_small(file.getvalue(), outputs / "noise.png")
    assert (outputs / "noise.png").stat().st_size <= site.README_BYTES


# The figure of a sweep


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "number": [1, 2, 1, 2],
            "word": ["a", "a", "b", "b"],
            "square": [1.0, 4.0, 3.0, 6.0],
            "none": [None] * 4,
        }
    )


def test_line_goes_through_means_and_dots_are_runs(table):
    figure = plot_metrics(table, ["square"], "number")
    [axis] = figure.axes
    assert axis.lines[0].get_xydata().tolist() == [[1, 2], [2, 5]]
    assert sorted(map(tuple, axis.collections[0].get_offsets().tolist())) == [
        (1, 1),
        (1, 3),
        (2, 4),
        (2, 6),
    ]
    plt.close(figure)


def test_second_parameter_gives_a_line_for_each_of_its_values(table):
    figure = plot_metrics(table, ["square"], "number", by="word")
    lines = [line.get_ydata().tolist() for line in figure.axes[0].lines if len(line.get_ydata())]
    assert lines[:2] == [[1, 4], [3, 6]]
    plt.close(figure)


@pytest.mark.parametrize(("count", "rows"), [(4, 1), (6, 2)])
def test_many_metrics_share_a_page_width(table, count, rows):
    metrics = [f"square {n}" for n in range(count)]
    wide = table.assign(**dict.fromkeys(metrics, table["square"]))
    figure = plot_metrics(wide, metrics, "number")
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == metrics
    assert len({axis.get_subplotspec().rowspan.start for axis in figure.axes}) == rows
    assert figure.get_size_inches()[0] <= PAGE_WIDTH
    plt.close(figure)


@pytest.mark.parametrize(
    ("metrics", "parameter"), [(["lost"], "number"), (["square"], "lost"), (["none"], "number")]
)
def test_what_cannot_be_plotted_is_an_error(table, metrics, parameter):
    with pytest.raises(ValueError, match="got"):
        plot_metrics(table, metrics, parameter)


def test_what_cannot_be_read_has_a_card_that_says_so(outputs, capsys):
    (outputs / "04_broken.ipynb").write_text("no notebook")
    assert cli.main(["gallery"]) == 0
    index = (outputs / "site" / "index.html").read_text()
    assert "04_broken.ipynb: not a notebook" in index and "Look &lt;b&gt;" in index
    assert cli.main(["gallery", "--outputs", "lost"]) == 2
    assert "lost: there is no such folder" in capsys.readouterr().err


# What somebody else made


def write_own_table(folder, **columns):
    folder.mkdir(parents=True)
    table = pd.DataFrame({"run": ["r"], "notebook": ["look"], "error": [""], **columns})
    table = table.assign(route="direct", seconds=1.0, peak_memory_mb=None)
    table.attrs = {"parameters": [], "metrics": []}
    table.to_parquet(folder / "results.parquet")


@pytest.mark.parametrize(
    ("run", "notebook"),
    [("..", "look"), ("../grid", "look"), ("run1", "../run1/look"), ("", "look"), (".", "look")],
)
def test_run_that_leads_out_of_its_folder_has_no_page(outputs, run, notebook):
    folder = outputs / "sweeps" / "own"
    write_own_table(folder, run=[run], notebook=[notebook])
    for place in (folder, folder.parent, folder / "run1"):
        write_executed(place / "look.ipynb", "Outside", said={})
    with pytest.warns(match="1 rows that name no run are left out"):
        build(outputs)
    pages = outputs / "site"
    assert "Outside" not in "".join(page.read_text() for page in pages.rglob("*.html"))
    assert not (pages / "sweeps" / "own").exists() and (pages / "sweeps" / "own.html").exists()


def test_absolute_run_has_no_page(outputs, tmp_path):
    write_executed(tmp_path / "far" / "look.ipynb", "Outside", said={})
    write_own_table(outputs / "sweeps" / "own", run=[str(tmp_path / "far")])
    with pytest.warns(match="1 rows that name no run are left out"):
        build(outputs)
    assert not (tmp_path / "far.html").exists()
    assert "<td><a" not in (outputs / "site" / "sweeps" / "own.html").read_text()


@pytest.mark.parametrize("link", ["folder", "notebook", "table"])
def test_link_out_of_the_outputs_is_not_followed(outputs, tmp_path, link):
    far = tmp_path / "far"
    write_executed(far / "r" / "look.ipynb", "Outside", said={})
    write_own_table(far / "table")
    own = outputs / "sweeps" / "own"
    if link == "table":
        own.parent.mkdir(exist_ok=True)
        own.symlink_to(far / "table")
    else:
        write_own_table(own)
        target = own / "r" if link == "folder" else own / "r" / "look.ipynb"
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(far / "r" if link == "folder" else far / "r" / "look.ipynb")
    (outputs / "linked.ipynb").symlink_to(far / "r" / "look.ipynb")
    build(outputs)
    pages = (outputs / "site").rglob("*.html")
    assert "Outside" not in "".join(page.read_text() for page in pages)


@pytest.mark.parametrize("table", ["no table", "no columns", "no lists of columns"])
def test_table_of_any_origin_costs_only_its_own_page(outputs, capsys, table):
    folder = outputs / "sweeps" / "odd"
    folder.mkdir()
    if table == "no table":
        (folder / "results.parquet").write_text("words")
    else:
        columns = {"run": ["r"]} | ({"error": [""]} if "lists" in table else {})
        pd.DataFrame(columns).to_parquet(folder / "results.parquet")
    assert cli.main(["gallery"]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("rollout: outputs/sweeps/odd/results.parquet: its page could not be")
    index = (outputs / "site" / "index.html").read_text()
    assert "Sweep: odd" in index and "Sweep: grid" in index and "Look &lt;b&gt;" in index


@pytest.mark.parametrize(
    "said", [3, [], {"duration": "long"}, {"input_path": 3}, {"input_path": ""}]
)
def test_odd_notes_of_papermill_do_no_harm(outputs, said):
    write_executed(outputs / "odd.ipynb", "Odd", said=said)
    build(outputs)
    assert "Odd" in (outputs / "site" / "index.html").read_text()


def test_notebook_that_names_another_source_shows_no_pictures_from_there(outputs, tmp_path):
    far = tmp_path.parent / f"{tmp_path.name}-far"
    write_executed(far / "a.ipynb", "A", said={})
    Image.new("RGB", (9, 9)).save(far / "private.png")
    for name, source in (("near", "notebooks/01_look.ipynb"), ("far", str(far / "a.ipynb"))):
        said = {"input_path": source}
        write_executed(outputs / f"{name}.ipynb", "![](private.png)", said=said)
    Image.new("RGB", (9, 9)).save(tmp_path / "notebooks" / "private.png")
    build(outputs)
    assert "left out: private.png" in (outputs / "site" / "far.html").read_text()
    assert "left out" not in (outputs / "site" / "near.html").read_text()
