"""How many pixels of a picture a processor gives to the model, whatever it calls its limits."""

from math import isqrt

from transformers import ProcessorMixin

AREA = 4096  # "edges" above this are areas, as in the processors of Qwen's models
TILES = ("max_patches", "max_image_tiles", "max_tiles", "max_num_tiles", "max_crops")


def set_limits(processor: ProcessorMixin, *, max_pixels: int = 0, min_pixels: int = 0) -> None:
    """Reduce larger pictures to at most `max_pixels`, enlarge smaller ones to `min_pixels`.

    Processors know such limits as areas, as sides or as a number of tiles. A side becomes that of a
    square of as many pixels; tiles are counted without the thumbnail. 0 leaves a limit as it is.

    Raises ValueError for a negative number, for a limit that the processor does not have, as one
    that resizes all pictures to the same square, and for less than one tile.
    """
    wanted = {"max_pixels": max_pixels, "min_pixels": min_pixels}
    for name, value in wanted.items():
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    if max_pixels and min_pixels > max_pixels:
        raise ValueError(f"min_pixels must be at most max_pixels, {max_pixels}, got {min_pixels}")
    set_size = {name: value for name, value in wanted.items() if value}
    for name, value in set_size.items():
        _set_limit(processor.image_processor, name, value)


def _set_limit(settings, name: str, pixels: int) -> None:
    size = {edge: n for edge, n in dict(getattr(settings, "size", None) or {}).items() if n}
    longest, tiles = size.get("longest_edge", 0), [n for n in TILES if hasattr(settings, n)]
    edge = "longest_edge" if name == "max_pixels" else "shortest_edge"
    if longest > AREA and edge in size:
        settings.size = type(settings.size)(**size | {edge: pixels})
    elif name == "max_pixels" and longest:
        settings.size = type(settings.size)(**size | {edge: isqrt(pixels)})
    elif name == "max_pixels" and tiles and {"height", "width"} <= size.keys():
        count = pixels // (size["height"] * size["width"])
        if count < 1:
            raise ValueError(
                f"max_pixels must be at least {size['height'] * size['width']}, one tile of "
                f"{type(settings).__name__}, got {pixels}"
            )
        setattr(settings, tiles[0], count)
    else:
        raise ValueError(
            f"expected an image processor with a limit such as {name}, got "
            f"{type(settings).__name__} with the size {size}"
        )
