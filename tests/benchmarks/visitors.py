"""Some people at once in the app: memory, answers, and whether each sees only a picture of theirs.

PYTHONPATH=tests .venv/bin/python -m benchmarks.visitors --minutes 10

Each visitor has a browser of their own and a picture of one colour. The colour that the page shows
after every answer must be theirs. Needs Chromium. Ends with 1 if somebody saw another's picture,
if nobody was answered, or if the app grew by more than 5 % after its first answers.
"""

import argparse
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from PIL import Image
from playwright.async_api import Page, async_playwright

ROOT = Path(__file__).parent.parent.parent
COLOURS = ["red", "lime", "blue", "yellow", "magenta", "cyan", "white", "black"]
LONG = 300_000  # milliseconds
SETTLED = 3  # answers after which the app holds what it needs
CENTRE = """async () => {
  const picture = document.querySelector(".rx-picture img");
  await picture.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""


async def visit(
    page: Page, address: str, colour: str, folder: Path, until: float, server: psutil.Process
) -> dict:
    """Ask again and again; the answers, and the colours that were seen."""
    picture, seen = folder / f"{colour}.png", []
    Image.new("RGB", (320, 240), colour).save(picture)
    page.set_default_timeout(LONG)
    await page.goto(address)
    await page.get_by_label("picture").set_input_files(picture)
    await page.get_by_text(f"{colour}.png is here").wait_for()
    memory = []
    while time.monotonic() < until or not seen:
        await page.get_by_label("question").fill(f"what colour is the square ? {len(seen)}")
        await page.get_by_role("button", name="ask", exact=True).click()
        await page.locator("#history li").nth(len(seen)).wait_for()
        seen.append(await page.evaluate(CENTRE))
        memory.append(server.memory_info().rss / 2**20)
    return {"colour": colour, "seen": seen, "memory": memory}


def server_process(port: int) -> psutil.Process:
    """The process of the app."""
    for process in psutil.process_iter(["cmdline"]):
        if {"rolloutlib.app", f"--port={port}"} <= {*(process.info["cmdline"] or [])}:
            return process
    raise LookupError(f"expected a process of the app on port {port}, got none")


def is_colour(pixel: list[int], colour: str) -> bool:
    """A picture is sent as JPEG, which is a few steps off."""
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) <= 8


async def all_visit(
    address: str, people: int, folder: Path, minutes: float, port: int
) -> list[dict]:
    """What each of the visitors saw."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        server = server_process(port)
        contexts = [await chromium.new_context(bypass_csp=True) for _ in range(people)]
        pages = [await one.new_page() for one in contexts]
        until = time.monotonic() + 60 * minutes
        visits = zip(pages, COLOURS, strict=False)
        return await asyncio.gather(
            *(visit(page, address, colour, folder, until, server) for page, colour in visits)
        )


def served(folder: Path, port: int) -> tuple[subprocess.Popen, str]:
    """`make app`, and its address."""
    command = ["make", "--old-file=.venv/.ready", "app", f"PORT={port}"]
    command.append(f"BIN={Path(sys.executable).parent}")
    with open(folder / "app.log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    while server.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+/\?token=\w+", (folder / "app.log").read_text())
        if found:
            return server, found[0]
        time.sleep(0.2)
    raise RuntimeError(f"the app did not start: {(folder / 'app.log').read_text()}")


def report(visits: list[dict]) -> bool:
    """Print a line for each visitor; whether all is well."""
    well = True
    for one in visits:
        own = all(is_colour(pixel, one["colour"]) for pixel in one["seen"])
        settled = one["memory"][min(SETTLED, len(one["memory"])) - 1]
        grown = max(one["memory"]) / settled - 1
        well &= own and grown <= 0.05
        print(
            f"{one['colour']:8} {len(one['seen']):4} answers, {settled:5.0f} MB, "
            f"at most {grown:+.1%} later, {'only their picture' if own else 'ANOTHER PICTURE'}"
        )
    return well


def main() -> int:
    """1 if somebody saw another's picture, or the app grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--people", type=int, default=5, choices=range(1, len(COLOURS) + 1))
    parser.add_argument("--port", type=int, default=18866)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, address = served(Path(folder), options.port)
        try:
            visits = asyncio.run(
                all_visit(address, options.people, Path(folder), options.minutes, options.port)
            )
        finally:
            os.killpg(server.pid, signal.SIGTERM)  # as SIGINT is ignored in the background
            server.wait(60)
    return 0 if report(visits) else 1


if __name__ == "__main__":
    raise SystemExit(main())
