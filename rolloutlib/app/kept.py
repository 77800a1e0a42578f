"""An answer of the app to take away: a page that stays alive, or a notebook with its question."""

import json
from collections.abc import Mapping

from rolloutlib.explorer.browser import STYLE
from rolloutlib.extras import needs, without_iris
from rolloutlib.pages.page import PAGES, explorer_script, sha256_of

with needs("notebooks"), without_iris():
    import nbformat


def as_page(said: Mapping) -> str:
    """One file with the picture, its maps and the explorer: it needs no server and no network."""
    script = explorer_script()
    alone = said["state"] | {"status": ""}  # which speaks of the app
    state = {"answer": {"state": alone, "buffers": said["buffers"]}}
    return PAGES.get_template("answer.html.j2").render(
        title=said["question"],
        answer=said["answer"],
        about=said["about"],
        state=json.dumps(state).replace("<", "\\u003c"),
        script=script,
        policy_script=f"'sha256-{sha256_of(script)}'",
        code_colours=STYLE,
    )


def as_notebook(said: Mapping) -> str:
    """A notebook that asks the same again; its parameters are those of the question.

    The pictures are not in it: they are looked for beside it, by their names.
    """
    texts = {
        "model_id": said["model"],
        "adapter_id": said["adapter"],
        "device_map": said["device"],
        "dtype": said["dtype"],
        "prompt": said["question"],
        "head_fusion": said["head_fusion"],
    }
    lines = [f"{name}: str = {str(text)!r}" for name, text in texts.items()]
    lines += [f"picture_paths: list = {[str(name) for name in said['names']]!r}"]
    lines += [f"max_new_tokens: int = {int(said['longest'])}"]
    lines += [f"residual: float = {float(said['residual'])}"]
    lines += [f"beyond_even: bool = {bool(said['beyond_even'])}"]
    cells = [
        nbformat.v4.new_markdown_cell("# Ask again, and see where the model looks"),
        nbformat.v4.new_code_cell("from rolloutlib import explore, load_model, load_picture"),
        nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "model = load_model(\n"
            "    model_id, adapter_id=adapter_id, device_map=device_map, dtype=dtype\n"
            ")\n"
            "pictures = [load_picture(path) for path in picture_paths]\n"
            "answer = model.generate(\n"
            "    pictures, prompt, max_new_tokens=max_new_tokens, record=True\n"
            ")\n"
            "answer.text"
        ),
        nbformat.v4.new_code_cell(
            "explore(\n"
            "    answer, head_fusion=head_fusion, residual=residual, beyond_even=beyond_even\n"
            ")"
        ),
    ]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}))
