"""Every shape that a signature names is checked at run time in all tests; and a real browser."""

import functools
import gc
import shutil
import signal
from pathlib import Path

import hypothesis
import matplotlib.pyplot as plt
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import config, install_import_hook


def check_types(function):
    """Beartype, but an int counts as a float, as everywhere in Python. Most functions are called
    in few of the processes: a check is made when it is first needed."""
    checked = functools.cache(lambda: beartype(conf=BeartypeConf(is_pep484_tower=True))(function))
    return functools.wraps(function)(lambda *given, **named: checked()(*given, **named))


install_import_hook("rolloutlib", "conftest.check_types")

# On a busy machine an example may take any amount of time.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# A shell that starts the tests in the background makes them and their children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Modules stay: no garbage is looked for while they are imported, nor among them later, and
    seldom in what tests make. Tests import nbformat, which is a second faster without the grammar
    of IRIs."""
    from rolloutlib.extras import without_iris

    gc.disable()
    with without_iris():
        import nbformat  # noqa: F401
    collected = yield
    gc.freeze()
    gc.set_threshold(100_000)
    gc.enable()
    return collected


@pytest.fixture
def without_type_checks():
    """What a user without a type checker gets: the package's own errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def close_figures():
    """No figure outlives the test that drew it."""
    yield
    plt.close("all")


LONG = 240_000  # milliseconds: on a busy machine a page may have to wait


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium without a window, through playwright."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def violations():
    """`violations(page)`: what axe-core finds on it, on a light phone and on a dark desktop."""
    from axe_playwright_python.sync_playwright import Axe

    def found(page):
        said, before = [], page.viewport_size
        for scheme, width in (("light", 360), ("dark", 1300)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 900})
            result = Axe().run(page)
            said += [result.generate_report()] * bool(result.violations_count)
        page.set_viewport_size(before)
        return said

    return found


@pytest.fixture
def faint():
    """`faint(page)`: texts of less contrast than 4.5:1, in light and in dark, as the page is and
    with each control under the pointer and with the focus."""
    script = Path(__file__).with_name("faint.js").read_text(encoding="utf-8")

    def found(page):
        said = {}
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            said |= dict.fromkeys(
                f"{scheme}: {text}" for text in page.locator("body").evaluate(script)
            )
            for control in page.locator("a:visible, button:visible, select:visible").all():
                control.evaluate("control => control.focus({ focusVisible: true })")
                control.hover(force=True)
                said |= dict.fromkeys(f"{scheme}: {text}" for text in control.evaluate(script))
        page.mouse.move(0, 0)
        return list(said)

    return found


@pytest.fixture
def browser(chromium):
    """`browser(path)` opens a page from the disk and returns the page, its network requests, and
    the console's complaints."""
    pages = []

    def open_page(path, **look):
        page = chromium.new_page(**look)
        page.set_default_timeout(LONG)
        pages.append(page)
        asked, complaints = [], []
        page.on("request", lambda r: r.url.startswith("http") and asked.append(r.url))
        page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
        page.on("pageerror", lambda problem: complaints.append(str(problem)))
        page.goto(path.absolute().as_uri())
        return page, asked, complaints

    yield open_page
    for page in pages:
        page.close()
