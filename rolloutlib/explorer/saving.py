"""What an explorer shows as a file: a picture, a figure, numbers, or boxes."""

import io
import json

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from rolloutlib.overlay import peak_boxes, to_picture

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FIGURES = {".svg": "svg", ".pdf": "pdf"}


def content(explorer, ending: str) -> bytes:
    """The bytes of a file with this ending, as `Explorer.save` says.

    Raises ValueError for an ending that it does not say.
    """
    file = io.BytesIO()
    if kind := PICTURES.get(ending):
        Image.fromarray(explorer.shown_picture()).save(file, kind, quality=95)
    elif kind := FIGURES.get(ending):
        figure = explorer.figure()
        figure.savefig(file, format=kind)
        plt.close(figure)
    elif ending == ".npy":
        np.save(file, np.stack([explorer.shown_map(panel)[0] for panel in explorer.panel_names]))
    elif ending == ".json":
        file.write(json.dumps(coco(explorer), indent=1).encode())
    else:
        known = ", ".join([*PICTURES, *FIGURES, ".npy", ".json"])
        raise ValueError(f"expected a file that ends in one of {known}, got {ending!r}")
    return file.getvalue()


def coco(explorer) -> dict[str, list[dict]]:
    """Boxes round the peaks of the picture shown, as COCO writes annotations.

    https://cocodataset.org/#format-data
    """
    number = explorer.maps.picture
    boxes = []
    for category, panel in enumerate(explorer.panel_names, 1):
        heatmap, view = explorer.shown_map(panel)
        heatmap = to_picture(np.abs(heatmap), view, blur_tokens=explorer.maps.blur)
        for box, score in peak_boxes(heatmap):
            common = {"id": len(boxes) + 1, "image_id": 1, "category_id": category, "iscrowd": 0}
            boxes.append(common | {"bbox": box, "area": box[2] * box[3], "score": score})
    height, width = explorer.shown_map(panel)[1].picture
    name = explorer.maps.pictures[number]["label"]
    return {
        "images": [{"id": 1, "file_name": name, "width": width, "height": height}],
        "annotations": boxes,
        "categories": [
            {"id": category, "name": panel or "map"}
            for category, panel in enumerate(explorer.panel_names, 1)
        ],
    }
