"""Files of truth made from scenes and screens, as somebody else's tools would write them."""

import json
from pathlib import Path

import numpy as np
from places import DATA
from scipy.ndimage import find_objects

from rolloutlib.tiny.scenes import load_photos, make_scenes
from rolloutlib.tiny.screens import make_screens


def run_lengths(mask):
    """Counts of pixels outside, inside, outside, …, down the columns."""
    flat = np.concatenate([[False], mask.T.ravel()])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *starts, mask.size]).tolist()


def box_of(mask):
    [(down, across)] = find_objects(mask.astype(int))
    return [across.start, down.start, across.stop - across.start, down.stop - down.start]


def write_scenes(folder: Path, scenes: int = 2, seed: int = 7) -> Path:
    """Questions about scenes in COCO's JSON, two for each: a mask with an answer, and a box."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "shape"}]}
    for number, scene in enumerate(make_scenes(seed, scenes, load_photos(DATA / "images", "test"))):
        name, (height, width) = f"scene{number}.png", scene.picture.size[::-1]
        scene.picture.save(folder / name)
        image = {"id": number, "file_name": name, "height": height, "width": width}
        content["images"].append(image)
        asked = next(q for q in scene.questions if q.kind == "colour at")
        thing = scene.objects[0]
        content["categories"].append({"id": 10 + number, "name": f"{thing.colour} {thing.shape}"})
        mask = {"size": [height, width], "counts": run_lengths(asked.region)}
        about = {"image_id": number, "id": f"{number}a", "category_id": 1, "segmentation": mask}
        box = {"image_id": number, "id": f"{number}b", "category_id": 10 + number}
        content["annotations"] += [
            about | {"question": asked.text, "answer": asked.answer, "bbox": box_of(asked.region)},
            box | {"bbox": box_of(thing.mask), "iscrowd": 0},
        ]
    return _written(folder / "scenes.json", content)


def write_screens(folder: Path, screens: int = 2, seed: int = 3) -> Path:
    """Instructions to click, as ScreenSpot has them."""
    content = []
    for number, screen in enumerate(make_screens(seed, screens)):
        screen.picture.save(folder / f"screen{number}.png")
        told = next(i for i in screen.instructions if i.kind == "colour")
        left, top, right, bottom = told.element.box
        content.append(
            {
                "img_filename": f"screen{number}.png",
                "instruction": told.text,
                "bbox": [left, top, right - left, bottom - top],
                "data_type": "icon" if told.element.icon else "text",
                "data_source": "windows",
            }
        )
    return _written(folder / "screens.json", content)


def _written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
