"""The parts of the explorer's JavaScript: each a real ES module, and one module when joined."""

import re
import shutil
import subprocess
from collections import Counter

import pytest

from rolloutlib.explorer.browser import FOLDER, PARTS, joined_module
from rolloutlib.explorer.widget import MapView

TOP_LEVEL = re.compile(r"^(export )?(?:function|const|let|class) (\w+)", re.MULTILINE)
IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./(\w+)\.js";$')


def source(part):
    return (FOLDER / f"{part}.js").read_text(encoding="utf-8")


def exported(part):
    return {name for export, name in TOP_LEVEL.findall(source(part)) if export}


def imported(part):
    """Names and where they come from, for each import of a part."""
    lines = [line for line in source(part).splitlines() if line.startswith("import")]
    found = [IMPORT.match(line) for line in lines]
    assert all(found), f"{part}.js: joining takes imports of one line only, got {lines}"
    return [(each[1].split(", "), each[2]) for each in found]


def run_node(*arguments):
    if shutil.which("node") is None:
        pytest.skip("there is no node here")
    done = subprocess.run(["node", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_file_of_the_folder_is_a_part():
    assert {file.stem for file in FOLDER.glob("*.js")} == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_imports_name_exports_of_earlier_parts_and_are_used(part):
    body = re.sub(r"^import .*\n", "", source(part), flags=re.MULTILINE)
    for names, origin in imported(part):
        assert origin in PARTS[: PARTS.index(part)]
        assert set(names) <= exported(origin)
        assert all(re.search(rf"\b{name}\b", body) for name in names)


def test_exports_are_imported_somewhere():
    used = {name for part in PARTS for names, _ in imported(part) for name in names}
    assert used == set().union(*map(exported, PARTS))


def test_joined_parts_share_no_name_and_import_nothing():
    text = joined_module()
    counts = Counter(name for _, name in TOP_LEVEL.findall(text))
    assert sum(counts.values()) == sum(len(TOP_LEVEL.findall(source(part))) for part in PARTS)
    assert [name for name, count in counts.items() if count > 1] == []
    declared = re.findall(r"^(?:import|export).*", text, re.MULTILINE)
    assert declared == ["export default { render };"]


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "in parts"])
def test_a_browser_gets_a_module_that_renders(tmp_path, joined):
    (tmp_path / "package.json").write_text('{"type": "module"}')
    if joined:
        (tmp_path / "widget.js").write_text(joined_module(), encoding="utf-8")
    else:
        shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    run_node("--check", str(tmp_path / "widget.js"))
    asked = f"import({str(tmp_path / 'widget.js')!r}).then(m => console.log(m.default.render.name))"
    assert run_node("--eval", asked) == "render"


def test_small_shares_keep_a_digit():
    shares = [0, 1e-5, 0.00012, 0.0049, 0.123, 1]
    script = f"{source('dom').replace('export ', '')}console.log({shares}.map(percent).join())"
    expected = "0.0 %,0.001 %,0.01 %,0.5 %,12 %,100 %"
    assert run_node("--eval", script) == expected


def test_the_widget_carries_the_joined_module_and_its_style():
    widget = MapView()
    assert widget._esm == joined_module()
    assert ".rx-picture" in widget._css
    widget.close()
