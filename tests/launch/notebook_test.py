"""The notebook runs from top to bottom without a network, and shows what it promises."""

import ast
import json
import os
import pathlib
import sys
import types

import jax
import nbformat
import pytest
from nbclient import NotebookClient

import configs

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATH = ROOT / "launch" / "colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def of_kind(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def test_the_notebook_is_valid_and_was_saved_without_outputs(notebook):
    nbformat.validate(notebook)
    assert all(not cell.outputs and not cell.execution_count for cell in of_kind(notebook, "code"))
    # Short texts between short cells.
    assert all(len(cell.source) < 700 for cell in of_kind(notebook, "markdown"))
    tags = [cell.metadata.get("tags") for cell in notebook.cells]
    assert tags.count(["parameters"]) == 1


def test_the_notebook_installs_all_that_its_data_set_asks_for(notebook, monkeypatch):
    """Its function of the published data set, with a network and an installer that are none."""
    (cell,) = (c.source for c in of_kind(notebook, "code") if "def online_config" in c.source)
    definitions = cell[: cell.index("\n\n\nconfig, ")]
    hub, ran = types.ModuleType("huggingface_hub"), []
    hub.snapshot_download = lambda name: f"hub/{name}"
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    installer = types.SimpleNamespace(run=lambda command, check: ran.append(command[1:]))
    given = {"configs": configs, "jax": jax, "sys": sys, "subprocess": installer}
    scope = given | {"STEPS": 2, "IMAGES": 24}
    exec(definitions, scope)
    config, _ = scope["online_config"]()
    assert config.model.path == "hub/Qwen/Qwen2.5-VL-3B-Instruct"
    install, build = ran
    assert install[:3] == ["-m", "pip", "install"]
    assert {"tensorflow-cpu", "opencv-python-headless", "scipy"} <= set(install)
    assert build[:2] == ["-m", "speciarl_jax.tools.prepare_data"]


def test_the_notebook_asks_modules_for_what_they_have(notebook):
    """Its imports, and every attribute of a module of the project."""
    code = "\n".join(cell.source for cell in of_kind(notebook, "code"))
    tree = ast.parse(code.replace("%cd", "# %cd"))
    scope, asked = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("speciarl_jax"):
            exec(ast.unparse(node), scope)  # fails where the name is gone
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if isinstance(scope.get(node.value.id), types.ModuleType):
                asked.append(f"{node.value.id}.{node.attr}")
                assert hasattr(scope[node.value.id], node.attr), asked[-1]
    assert "train.train" in asked and "report.table" in asked


@pytest.mark.slow
def test_the_notebook_runs_offline_from_top_to_bottom(notebook, tmp_path, compilation_cache):
    (first,) = (i for i, c in enumerate(notebook.cells) if c.metadata.get("tags") == ["parameters"])
    workdir = tmp_path / "run"
    given = f"OFFLINE, STEPS, IMAGES, WORKDIR = True, 2, 24, {str(workdir)!r}"
    # As papermill does: behind the cell of the defaults.
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(given))
    client = NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(ROOT)}}, kernel_name="python3"
    )
    settings = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(compilation_cache)}
    client.execute(env=os.environ | settings)
    outputs = [output for cell in of_kind(notebook, "code") for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert text.count("| base ") == 2 and text.count("| trained") == 1
    assert text.count("truth: ") == 3 and "the best of 10 about these images: HM" in text
    shown = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(shown) == 3  # curves, trade-off and shares, images
    rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
