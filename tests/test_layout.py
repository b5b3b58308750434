"""The import rules of the layout, read from the source: imports run one way, and no page waits for torch."""

import ast
from pathlib import Path

import pytest

from pipelines import PIPELINES

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "app.py", *sorted((ROOT / "pipelines").rglob("*.py"))]
MODEL_LIBRARIES = {
    "torch",
    "torchvision",
    "transformers",
    "diffusers",
    "facenet_pytorch",
    "dlib",
    "timm",
    "safetensors",
    "ai_edge_litert",
}
TORCH_FREE = {
    "__init__", "config", "contract", "pipeline", "view", "inside_view", "gallery", "processing", "quality", "layout",
    "checks", "clock", "live", "recording", "teach", "tokenizer", "memory", "features", "hysteresis", "skeletons",
    "streams", "camera", "train_data",
    "pixels", "pixels_drawing", "pixels_pipeline", "attention_config", "attention_measure", "attention_pipeline",
    "tasks", "recurrence_curves", "margin_contract", "experts_contract", "margin_view", "margin_table_view",
    "experts_view",
}  # fmt: skip
REFERENCES = {"transformers", "diffusers", "facenet_pytorch", "dlib", "timm"}
NETWORK_FORBIDDEN = {"cv2", "PIL", "gradio", "safetensors", "huggingface_hub", *REFERENCES}
NETWORKS = {
    "mtcnn", "inception_resnet", "dlib_resnet", "clip_text", "unet", "vae", "resnet", "mobilenet", "norm", "position",
    "transformer", "detr", "panoptic", "deformable_sampling", "deformable", "dense_head", "output",
    "rotary", "cache", "attention", "router", "experts", "decoder", "decode", "prefill", "taesd", "plan", "spacing",
    "registry", "euler", "ancestral", "heun", "multistep", "pndm", "consistency", "fast",
    "oadtr", "gru", "linear_attention", "streaming", "packed", "losses", "windows", "bench_authors",
    "autoregressive", "attention_model", "recurrent", "margin_softmax", "toy_experts", "initialisation",
}  # fmt: skip


def imports(path, top_level_only, base=ROOT):
    """(module, line) of every import; those under `if TYPE_CHECKING` never run and are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ".".join(path.relative_to(base).with_suffix("").parts[:-1])
    found = []

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = child.module or ""
                if child.level:
                    parts = package.split(".")[: len(package.split(".")) - child.level + 1]
                    module = ".".join([*parts, module] if module else parts)
                found.extend((f"{module}.{alias.name}", child.lineno) for alias in child.names)
            walk(child)

    walk(tree)
    return found


def home(path, base=ROOT):
    """face for pipelines/face/tab.py, "" for app.py and pipelines/__init__.py."""
    parts = path.relative_to(base).parts
    return parts[1] if parts[0] == "pipelines" and len(parts) > 2 else ""


def complaints(path, base=ROOT):
    """Every broken rule of one file, as sentences."""
    where, name = home(path, base), path.stem
    page = name == "tab" or name.endswith("_page")
    for module, line in imports(path, False, base):
        parts = module.split(".")
        target = parts[1] if parts[0] == "pipelines" and len(parts) > 1 else ""
        file = parts[2] if len(parts) > 2 else ""
        said = f"{path.name}:{line} imports {module}"
        if parts[0] == "gradio" and not (where == "ui" or page or name == "app"):
            yield f"{said}: gradio only in app, ui and tab"
        if parts[0] == "app":
            yield f"{said}: the app is the top"
        if where == "common" and target and target != "common":
            yield f"{said}: common knows no pipeline and no ui"
        if where == "ui" and target and target not in ("common", "ui"):
            yield f"{said}: ui knows no pipeline"
        if where not in ("", "ui") and target == "ui" and not (page or name.endswith("view")):
            yield f"{said}: only pages and views know ui"
        if where in PIPELINES and target in PIPELINES and target != where:
            yield f"{said}: no pipeline imports another"
        if where in PIPELINES and target == where and (file == "tab" or file.endswith("_page")) and not page:
            yield f"{said}: only pages know pages"
        if where in PIPELINES and target == where and file in ("train", "bench") and not name.startswith("bench"):
            yield f"{said}: train and bench are leaves"
    for module, line in imports(path, True, base):
        said = f"{path.name}:{line} imports {module} when it is loaded"
        library = module.split(".")[0]
        if (name in TORCH_FREE or page or where == "ui" or name == "app") and library in MODEL_LIBRARIES:
            yield f"{said}: the page waits for no model library"
        if library in REFERENCES and not name.startswith("bench"):
            yield f"{said}: reference libraries are imported inside load"
        if name in NETWORKS and library in NETWORK_FORBIDDEN:
            yield f"{said}: a network file is only networks"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    assert list(complaints(path)) == []


@pytest.mark.parametrize(
    ("file", "source", "rule"),
    [
        ("face/cascade.py", "def f():\n    import gradio as gr", "gradio only"),
        ("face/pipeline.py", "import torch", "waits for no model library"),
        ("face/tab.py", "from torch import nn", "waits for no model library"),
        ("face/insight.py", "from . import tab", "only pages know pages"),
        ("face/insight.py", "from ..ui import draw", "only pages and views know ui"),
        ("face/local.py", "from .train import main", "train and bench are leaves"),
        ("face/reference.py", "import facenet_pytorch", "inside load"),
        ("face/mtcnn.py", "import cv2", "only networks"),
        ("common/images.py", "from pipelines.face import run", "common knows no pipeline"),
        ("ui/draw.py", "from pipelines.face.contract import Face", "ui knows no pipeline"),
    ],
)
def test_planted_faults_are_caught(tmp_path, file, source, rule):
    path = tmp_path / "pipelines" / file
    path.parent.mkdir(parents=True)
    path.write_text(source + "\n")
    found = list(complaints(path, tmp_path))
    assert len(found) == 1 and rule in found[0]


def test_every_pipeline_has_its_files():
    assert (ROOT / "pipelines" / "foundations" / "tab.py").is_file()  # the others are a file a topic
    for name in set(PIPELINES) - {"foundations"}:
        folder = ROOT / "pipelines" / name
        for file in (
            "__init__",
            "config",
            "contract",
            "pipeline",
            "local",
            "reference",
            "weights",
            "insight",
            "tab",
            "bench",
        ):
            assert (folder / f"{file}.py").is_file(), f"{name} has no {file}.py"


def test_sizes_stay_readable():
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"
