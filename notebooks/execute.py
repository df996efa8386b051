"""Run notebooks top to bottom and save them with their outputs, the same bytes in every run: `make notebooks`.

python notebooks/execute.py [NOTEBOOK ...]    these notebooks, or all of this folder
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
COLOURS = 256
"""Colours of a saved picture: plots need few, and take a third of the bytes."""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook in a file, run in a fresh kernel; the first cell that fails is an exception."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, kernel_name="python3", timeout=600, record_timing=False, resources={"metadata": {"path": str(HERE)}}
    ).execute()
    return cleaned(notebook)


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without what changes from run to run: random cell names, timings, the version of Python."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    notebook.nbformat_minor = 5
    for index, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{index:02}"
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = lighter(output.data["image/png"])
    return notebook


def lighter(png: str) -> str:
    """A picture, in base64, with few colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    saved = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(saved, format="png", optimize=True)
    return base64.b64encode(saved.getvalue()).decode()


def main(names: list[str]) -> None:
    """Run and save the named notebooks, or all."""
    for path in map(Path, names) if names else sorted(HERE.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
