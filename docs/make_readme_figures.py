"""The README's large figures: a map on a photograph, and the explorer as it moves in a browser.

python docs/make_readme_figures.py outputs/site/02_llava.html data/figures

Needs Chromium, and the page of a notebook that was executed; without Chromium nothing is changed.
"""

import base64
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, sync_playwright

from rolloutlib.files.complete import complete_file

WIDTH, MOST_BYTES = 640, 1_000_000
STILL = 900  # milliseconds that each word is shown


def frames_of(explorer: Locator) -> list[Image.Image]:
    """The explorer with nothing pointed at, and with each word that is shown pointed at."""
    shown = explorer.locator(".rx-main")
    found = [shown.screenshot()]
    for word in explorer.locator(".rx-chip:visible").all():
        word.hover()
        found.append(shown.screenshot())
    return [Image.open(io.BytesIO(frame)).convert("RGB") for frame in found]


def write_gif(frames: list[Image.Image], path: Path) -> None:
    """Write the frames in as many colours as MOST_BYTES allow.

    Raises ValueError where 16 colours are too many.
    """
    for frame in frames:
        frame.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    for colours in (256, 128, 64, 32, 16):
        first, *others = [frame.quantize(colours) for frame in frames]
        file = io.BytesIO()
        first.save(file, "gif", save_all=True, append_images=others, duration=STILL, loop=0)
        if file.tell() < MOST_BYTES:
            break
    else:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, got {file.tell()}")
    with complete_file(path) as part:
        part.write_bytes(file.getvalue())


def main(page_path: Path, figures: Path) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None or not page_path.exists():
        print(f"left as they are: expected Chromium and {page_path}")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 900})
        page.goto(page_path.absolute().as_uri())
        explorer = page.locator(".rx").first
        explorer.wait_for()
        write_gif(frames_of(explorer), figures / "explorer.gif")
        card = page.locator(".code_cell", has=page.locator("img")).filter(has_text="photo_answer")
        address = card.locator(".output img").first.get_attribute("src")
        browser.close()
    with complete_file(figures / "wide.webp") as part:
        part.write_bytes(base64.b64decode(address.partition(",")[2]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
