"""Does the answer depend on the place where the map shown is highest? Asked from the explorer."""

from collections.abc import Callable

from rolloutlib.evaluate.trust import PeakCheck

MADE_OF = ("selected", "combine", "blur")  # traits that the place depends on, beside the maps


def finding(maps) -> dict[str, object]:
    """The trait `trust`, if it has a verdict about the map that is shown; else empty."""
    current = all(getattr(maps, name) == value for name, value in maps.trust.get("of", {}).items())
    return maps.trust if current and "verdict" in maps.trust else {}


def check(
    explorer, verify: Callable[..., PeakCheck], on_progress: Callable[[int, int], object]
) -> PeakCheck:
    """Check the map shown, and tell the browser how far that is and what is found.

    The trait `trust` is then one of these, each with the traits that it holds for as `of`: `said`,
    how far it is; `problem`, what went wrong; or `verdict` and `sentence` with `box`: left, top,
    right, bottom as shares of the picture.
    """
    maps = explorer.maps
    of = {name: getattr(maps, name) for name in MADE_OF}
    heatmap, view = explorer.shown_map(explorer.panel_names[0])

    def tell(done: int, pictures: int) -> None:
        on_progress(done, pictures)
        said = f"The model has seen {done} of {pictures} altered pictures …"
        maps.trust = {"of": of, "said": said}

    maps.trust = {"of": of, "said": "Looking for the highest place …"}
    try:
        found = verify(heatmap, blur_tokens=maps.blur, on_progress=tell)
    except Exception as problem:
        maps.trust = {"of": of, "problem": f"This could not be checked: {problem}"}
        raise
    height, width = view.picture
    shares = zip(found.box, (width, height, width, height), strict=True)
    box = [place / length for place, length in shares]
    maps.trust = {"of": of, "verdict": found.verdict, "sentence": found.sentence, "box": box}
    return found
