"""Where a picture's tokens lie on it, from where each of their numbers comes from."""

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image

from rolloutlib.grid import ImageTokens, View

SAME = 0.1  # of the usual distance: coordinates that differ less are one row or column
EVEN = 0.3  # of a step: rows or columns whose distances differ less are evenly spaced
ALIKE = 0.02  # of a step: steps that differ less are the same
SLIVER = 0.1  # of a cell: what overlaps it less does not reach into it
FILLED = 0.9  # of a rectangle: tokens whose numbers fill less of it show no rectangle
OFF = 1.0  # pixel of the picture, beside half a step: what resampling at its edges may move

Origins = Float[np.ndarray, "number 3"]  # (picture, y, x), NaN in the padding


class Unplaced(ValueError):
    """Image tokens that stand for no place of their own on the picture."""


@dataclass(frozen=True)
class Pieces:
    """What some tokens show, each fed by equally many numbers.

    positions: of the tokens.  origins: of their numbers, in the order of the inputs.
    """

    positions: Int[np.ndarray, " token"]
    origins: Float[np.ndarray, "token number 3"]

    @property
    def pictures(self) -> Int[np.ndarray, " token"]:
        """Which picture each token shows; of the frames of a video, the first."""
        return np.nanmin(self.origins[..., 0], axis=1).astype(int)


def pieces_of(origins: Origins, owners: Int[np.ndarray, " number"]) -> list[Pieces]:
    """What each token shows, by how many numbers feed it; what shows only padding is left out."""
    order = np.argsort(owners, kind="stable")
    order = order[owners[order] >= 0]
    positions, starts, sizes = np.unique(owners[order], return_index=True, return_counts=True)
    found = []
    for size in np.unique(sizes):
        of = sizes == size
        numbers = order[starts[of][:, None] + np.arange(size)]
        seen = ~np.isnan(origins[numbers]).any(-1).all(-1)
        if seen.any():
            found.append(Pieces(positions[of][seen], origins[numbers][seen]))
    return found


def boxes_of(
    pieces: Pieces, sizes: Int[np.ndarray, "picture 2"]
) -> tuple[Float[np.ndarray, "token 4"], int]:
    """The rectangle of each token: (left, top, right, bottom) in pixels of its picture; and how
    many rows or columns of numbers a token has, whichever are more.

    The numbers of all these tokens lie in the same rows and columns. With equal steps s from one
    row to the next, row i lies at centre + s · (i - (rows - 1) / 2): the steps are those of tokens
    whose rows are evenly spaced, as resampling bends them at the picture's edges; and the centre is
    the median over the rows, so that a token partly in the padding reaches beyond the picture.

    sizes: (height, width) of each picture.

    Raises `Unplaced` if a token's numbers do not fill a rectangle.
    """
    places = pieces.origins[..., 1:]
    layout = _layout(places, sizes[pieces.pictures][:, None])
    known = ~np.isnan(layout).any(-1)
    alike = ~np.isnan(places[:, known]).any(-1).all(-1)
    if not alike.all():  # tokens that show different rows, as where the padding is wide
        boxes, side = np.empty((len(places), 4)), 0
        for some in (alike, ~alike):
            part = Pieces(pieces.positions[some], pieces.origins[some])
            boxes[some], longest = boxes_of(part, sizes)
            side = max(side, longest)
        return boxes, side
    places, numbers = places[:, known], [_lines(axis) for axis in layout[known].T]
    lines = [number.max() + 1 for number in numbers]
    if len(np.unique(np.stack(numbers), axis=1).T) < FILLED * lines[0] * lines[1]:
        raise Unplaced(f"the token at {pieces.positions[0]} shows no rectangle of the picture")
    axes = [_means(places[..., n], number) for n, number in enumerate(numbers)]
    steps = _steps(axes)
    ends = []
    for means, step in zip(axes, steps.T, strict=True):
        centre, off = _centres(means, step)
        if (bent := off > step / 2 + OFF).any():
            where = pieces.positions[bent][0]
            raise Unplaced(f"the token at {where} shows no rectangle of the picture")
        half = means.shape[1] * step / 2
        ends.append((centre - half, centre + half))
    (top, bottom), (left, right) = ends
    return np.stack([left, top, right, bottom], -1), int(max(lines))


def _layout(
    places: Float[np.ndarray, "token number 2"], sides: Int[np.ndarray, "token 1 2"]
) -> Float[np.ndarray, "number 2"]:
    """Where the numbers of a whole token lie, as those of the token farthest from edges; what that
    lacks is taken from tokens that show the same numbers and others. NaN for what none shows.
    """
    room = np.minimum(places, sides - places).min((1, 2))
    lacking = np.isnan(places).any(-1).sum(1)
    layout = places[np.lexsort((-room, lacking))[0]].copy()
    for place in places if np.isnan(layout).any() else ():
        missing, shown = np.isnan(layout).any(-1), ~np.isnan(place).any(-1)
        shift = (place - layout)[shown & ~missing]
        if len(shift) and np.ptp(shift, axis=0).max() < OFF:  # not a tile beside a thumbnail
            layout[missing & shown] = place[missing & shown] - np.median(shift, axis=0)
    return layout


def _lines(coordinates: Float[np.ndarray, " number"]) -> Int[np.ndarray, " number"]:
    """Which row or column each number is in, from 0, by its coordinate."""
    order = np.sort(coordinates)
    # There are about as many as the square root of the numbers, or fewer.
    apart = np.diff(order) > max(SAME * (order[-1] - order[0]) / len(order) ** 0.5, 1e-3)
    return np.searchsorted(order[1:][apart], coordinates, side="right")


def _means(
    coordinates: Float[np.ndarray, "token number"], line: Int[np.ndarray, " number"]
) -> Float[np.ndarray, "token line"]:
    """The coordinate of each row or column of each token: the mean over its numbers."""
    member = np.eye(line.max() + 1)[line]
    known = ~np.isnan(coordinates)
    with np.errstate(invalid="ignore"):
        return np.where(known, coordinates, 0) @ member / (known @ member)


def _centres(
    means: Float[np.ndarray, "token line"], step: Float[np.ndarray, " token"]
) -> tuple[Float[np.ndarray, " token"], Float[np.ndarray, " token"]]:
    """The middle of each token with this step, and by how much half of its lines are off."""
    number = np.arange(means.shape[1]) - (means.shape[1] - 1) / 2
    each = means - step[:, None] * number
    centre = np.nanmedian(each, axis=1)
    return centre, np.nanmedian(np.abs(each - centre[:, None]), axis=1)


def _steps(axes: list[Float[np.ndarray, "token _"]]) -> Float[np.ndarray, "token 2"]:
    """From one row to the next, and from one column to the next: for each token the steps that fit
    it best, of those found in evenly spaced tokens. Tiles and a thumbnail have different ones.
    """
    gaps = [np.diff(means, axis=1) for means in axes]
    if not all(gap.shape[1] for gap in gaps):
        raise Unplaced("a token shows a single row or column of pixels")
    # Pictures that are resized twice have uneven rows: their mean distance is more exact.
    own = np.stack([gap.mean(1) for gap in gaps], -1)
    bent = np.stack([np.abs(g / o[:, None] - 1).max(1) for g, o in zip(gaps, own.T, strict=True)])
    even = (bent < EVEN).all(0)  # not where some are missing
    rough = np.stack([np.nanmedian(gap) for gap in gaps])
    known = own[even] if even.any() else rough[None]
    choices = [known[0]]
    for steps in known:
        if all(np.abs(steps / other - 1).max() > ALIKE for other in choices):
            choices.append(steps)
    off = [
        sum(
            _centres(means, np.full(len(means), s))[1] / s
            for means, s in zip(axes, steps, strict=True)
        )
        for steps in choices
    ]
    return np.array(choices)[np.argmin(off, axis=0)]


def image_of(
    shown: Image.Image | list[Image.Image],
    positions: Int[np.ndarray, " token"],
    boxes: Float[np.ndarray, "token 4"],
    firsts: Int[np.ndarray, " token"],
    token: int,
) -> ImageTokens:
    """A picture's tokens, on a grid of cells as large as the smallest of them; or those of a
    video's frames, on such a grid for each time step.

    Where each token is one cell, they are in the grid's order. Else tokens overlap, as those of
    tiles and of a thumbnail do, and each spreads its relevance evenly over the cells it shows.

    firsts: the number of the first frame that each token shows.
    token: the side of the smallest in pixels of the model's input.
    """
    frames = tuple(shown) if isinstance(shown, list) else ()
    picture = frames[0] if frames else shown
    height, width = picture.height, picture.width
    axes = [_axis(boxes[:, n], boxes[:, n + 2], side) for n, side in ((1, height), (0, width))]
    grid = tuple(axis.shares.shape[1] for axis in axes)
    scale = [token / axis.cell for axis in axes]
    view = View(
        picture=(height, width),
        resized=(height * scale[0], width * scale[1]),
        offset=(axes[0].start * scale[0], axes[1].start * scale[1]),
        window=(grid[0] * token, grid[1] * token),
        token=token,
        grid=grid,
    )
    where = torch.tensor(positions)
    shares = [axis.shares for axis in axes]
    if frames:
        steps = np.unique(firsts)
        grid = (len(steps), *grid)
        view, shares = replace(view, grid=grid), [firsts[:, None] == steps, *shares]
        of_video = {"frames": frames, "steps": tuple(steps.tolist())}
    else:
        of_video = {}
    if all(((each == 0) | (each == 1)).all() for each in shares):
        cells = np.ravel_multi_index([each.argmax(-1) for each in shares], grid)
        if np.array_equal(np.sort(cells), np.arange(prod(grid))):
            return ImageTokens(picture, view, where[cells.argsort()], **of_video)
    spread = shares[0]
    for along in shares[1:]:
        spread = np.einsum("tn,tc->tnc", spread, along).reshape(len(boxes), -1)
    spread = torch.tensor(spread, dtype=torch.float32)
    return ImageTokens(picture, view, where, shares=spread, **of_video)


@dataclass(frozen=True)
class Axis:
    """Equal cells along one axis of a picture, and how tokens lie on them.

    start: where the first cell begins.  cell: its length. Both in pixels of the picture.
    shares: of each token's part of the picture in each cell; each token's sum to 1.
    """

    start: float
    cell: float
    shares: Float[np.ndarray, "token cell"]


def _axis(
    firsts: Float[np.ndarray, " token"], lasts: Float[np.ndarray, " token"], side: float
) -> Axis:
    """Cells of the length of the shortest tokens, which begin where these do."""
    lengths = lasts - firsts
    finest = lengths < 1.1 * lengths.min()
    cell, begins = np.median(lengths[finest]), np.unique(firsts[finest])
    numbers = np.concatenate([[0], np.rint(np.diff(begins) / cell).cumsum()])
    if numbers[-1] > 0:  # over many tokens the distance is more exact than their lengths
        cell, _ = np.polyfit(numbers, begins, 1)
    start = np.median(begins - numbers * cell)
    low, high = np.maximum(firsts, 0), np.minimum(lasts, side)
    before = np.ceil((start - low.min()) / cell - SLIVER)
    start -= max(before, 0) * cell
    count = max(int(np.ceil((high.max() - start) / cell - SLIVER)), 1)
    edges = start + np.arange(count + 1) * cell
    overlap = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    overlap = np.where(overlap > SLIVER * cell, overlap, 0)
    overlap[(overlap == 0).all(-1), -1] = 1  # a token that shows hardly anything of the picture
    return Axis(float(start), float(cell), overlap / overlap.sum(-1, keepdims=True))
