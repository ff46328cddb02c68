"""The layers of the design: imports go down, parts never import one another, and `import ocl` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ocl

ROOT = Path(ocl.__file__).parent
LAYERS = [
    {"types", "interfaces", "errors"},
    {"ops"},
    {"nn"},
    {"encoders", "slots", "decoders", "data"},
    {"losses", "metrics"},
    {"models"},
    {"train", "pretrain", "evaluate", "generate", "vis", "studio"},
    {"cli"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
# vis: pictures of what was done, it imports none of them; generate: what an analysis draws, it does not import evaluate
SIDEWAYS = {("evaluate", "vis"), ("train", "vis"), ("generate", "vis"), ("evaluate", "generate"), ("pretrain", "train")}
HEAVY = {
    "bitsandbytes", "datasets", "deepspeed", "diffusers", "huggingface_hub", "lightning", "matplotlib", "mlflow", "peft",
    "pycocotools", "skimage", "sklearn", "tensorboard", "tensorflow", "timm", "torchvision", "transformers", "triton",
    "wandb", "xformers",
}  # fmt: skip
FORBIDDEN = {"torchvision", "timm"}
FILES = sorted(ROOT.rglob("*.py"))
IN_LAYERS = [path for path in FILES if path not in (ROOT / "__init__.py", ROOT / "__main__.py")]
VOCABULARY = [path for path in IN_LAYERS if path.parent == ROOT]


def named(path):
    return str(path.relative_to(ROOT))


def part_of(module):
    """ocl.nn.positions -> nn; ocl itself -> ''."""
    return [*module.split("."), ""][1]


def imports(path):
    """(line, full module name, inside a function or TYPE_CHECKING) of every import statement of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["ocl", *path.relative_to(ROOT).parts[:-1]]

    def walk(node, deferred):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, deferred) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found = [f"ocl.{alias.name}" for alias in node.names] if base == "ocl" else [base]
            yield from ((node.lineno, name, deferred) for name in found)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        inside |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, deferred or inside)

    yield from walk(tree, False)


def test_every_folder_and_file_has_its_layer():
    found = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES} - {"__init__", "__main__"}
    assert found - LAYER.keys() == set(), "say in tests/test_layers.py which layer it belongs to"


def allowed(own, other):
    both_vocabulary = LAYER[own] == LAYER[other] == 0
    return other == own or LAYER[other] < LAYER[own] or both_vocabulary or (own, other) in SIDEWAYS


@pytest.mark.parametrize("path", IN_LAYERS, ids=named)
def test_imports_go_down(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    ours = [(line, module) for line, module, _ in imports(path) if part_of(module) in LAYER and module.startswith("ocl.")]
    upward = [f"line {line}: {module}" for line, module in ours if not allowed(own, part_of(module))]
    assert upward == [], f"{own} is in layer {LAYER[own]} and may import only from lower ones"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_heavy_packages_are_imported_where_they_are_used(path):
    at_once = [(line, module) for line, module, deferred in imports(path) if not deferred]
    early = [f"line {line}: {module}" for line, module in at_once if HEAVY & {module.split(".")[0], module.split(".")[-1]}]
    assert early == [], "import it inside the function that needs it and raise MissingExtra where it is missing"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_file_needs_torchvision_or_timm(path):
    assert [module for _, module, _ in imports(path) if module.split(".")[0] in FORBIDDEN] == []


@pytest.mark.parametrize("path", VOCABULARY, ids=named)
def test_the_vocabulary_needs_torch_and_the_standard_library_only(path):
    found = {module.split(".")[0] for _, module, _ in imports(path)} - {"ocl", "torch"}
    assert found <= set(sys.stdlib_module_names)


def loaded_by(statement):
    code = f"import sys; {statement}; print(' '.join(sys.modules)); import torch; assert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_ocl_is_light():
    loaded = {name.split(".")[0] for name in loaded_by("import ocl")}
    assert loaded & (HEAVY | {"scipy", "PIL", "jsonargparse", "rich"}) == set()


def test_importing_every_module_loads_no_optional_package():
    modules = [".".join(["ocl", *path.relative_to(ROOT).with_suffix("").parts]) for path in FILES if path.name != "__main__.py"]
    names = sorted({name.removesuffix(".__init__") for name in modules})
    loaded = {name.split(".")[0] for name in loaded_by("import " + ", ".join(names))}
    assert loaded & HEAVY == set()
