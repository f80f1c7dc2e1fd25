"""The rules of the code's layout, read from the sources: nothing here runs the package, but for its list of keys."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from benchmarks.house import (
    FOREIGN_PRIVATE_ATTRIBUTES,
    find_context_variables,
    find_foreign_private_attributes,
    find_long_functions,
)

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "maskformer"
DEVICE_MODULES = {"cuda", "sdaa", "npu", "xpu", "mps", "mlu", "hpu", "musa", "accelerator"}

# What each part of the package may import from the package, besides itself. A part is a folder or a file right under
# maskformer/; a part that is missing here fails a test.
LAYERS = ("data", "modeling", "losses", "inference")
METHOD = {"structures", "model_inputs", "kernels", "meta_arch", *LAYERS}
BELOW_ENGINE = {"files", "config", "checkpoint", "evaluation", "sdaa", "runs", *METHOD}
ALLOWED = {
    "structures": set(),
    "files": set(),
    "model_inputs": {"structures"},
    "kernels": set(),
    **{layer: {"structures"} for layer in LAYERS},
    "data": {"structures", "files", "kernels", "config.own_datasets"},
    "modeling": {"structures", "kernels"},
    "losses": {"structures", "kernels"},
    "inference": {"structures", "kernels"},
    # load_config makes of "auto" what is there
    "config": {"structures", "engine.accelerator"},
    # a table of positions is resampled for a model as it is for an image
    "checkpoint": {"structures", "files", "modeling"},
    "meta_arch": {"structures", "model_inputs", "kernels", "modeling", "losses", "inference", "data"},
    "evaluation": {"structures", "files", "data", "kernels"},
    "runs": {"structures", "files"},
    "sdaa": {"structures"},
    "engine": {"reports", *BELOW_ENGINE},
    "export": {"structures", "files", "config", "checkpoint", "meta_arch"},
    "reports": {"structures", "files", "data"},
    "results": {"structures", "reports"},
    "predictor": {"engine", "reports", "results", "export", *BELOW_ENGINE},
    "demo": {"engine", "predictor", "reports", *BELOW_ENGINE},
    "tools": {"engine", "predictor", "results", "reports", "demo", "export", "__init__", *BELOW_ENGINE},
    "__init__": {"engine", "predictor", *BELOW_ENGINE},
}

# Keys with a reason to have more than one reader.
SHARED_KEYS = {
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": "the evaluators measure what the model gives",
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": "the evaluators measure what the model gives",
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": "the evaluators measure what the model gives",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "each of two pixel decoders has an encoder of its own",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "query decoders and EoMT have queries",
    "MODEL.TIMM.NORM": "a warning about batch norm names the keys of all norms",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "pixel and mask embeddings are multiplied, so they have one width",
}


# Keys that files of the original hold, and that nothing reads there either; other values than its own are refused.
UNREAD_KEYS = {
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS",
}


def name_module(path: Path) -> str:
    """maskformer/data/__init__.py -> maskformer.data."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name_module(path) for path in TREES}
PRODUCT = {**TREES, REPOSITORY / "train_net.py": ast.parse((REPOSITORY / "train_net.py").read_text(encoding="utf-8"))}


def where(path: Path, node: ast.AST) -> str:
    """A place as file:line."""
    return f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}"


def name_part(module: str) -> str:
    """maskformer.data.mappers -> data; maskformer -> __init__."""
    return [*module.split("."), "__init__"][1]


def find_imports(path: Path, tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yields the full name of every imported module or member, wherever in the file the import stands."""
    package = name_module(path).split(".") if path.name == "__init__.py" else name_module(path).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{prefix}.{alias.name}", node) for alias in node.names)


def find_own_imports(path: Path, tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yields the modules of the package that a file imports."""
    for name, node in find_imports(path, tree):
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        if name in MODULES:
            yield name, node


def test_every_import_follows_the_order_of_the_layers():
    wrong = []
    for path, tree in TREES.items():
        part = name_part(name_module(path))
        for target, node in find_own_imports(path, tree):
            if not {name_part(target), target.removeprefix("maskformer.")} & {part, *ALLOWED[part]}:
                wrong.append(f"{where(path, node)} imports {target}")
    assert not wrong


def test_nothing_but_the_command_line_imports_tools():
    for path, tree in PRODUCT.items():
        if PACKAGE / "tools" not in path.parents:
            assert not [where(path, n) for name, n in find_own_imports(path, tree) if name_part(name) == "tools"]


def test_imports_have_no_cycle():
    graph = {name_module(path): {name for name, _ in find_own_imports(path, tree)} for path, tree in TREES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("cycle: " + " -> ".join(error.args[1]))


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in TREES}
    assert not [str(folder.relative_to(REPOSITORY)) for folder in folders if not (folder / "__init__.py").exists()]


def test_init_files_re_export_and_never_compute():
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr, ast.FunctionDef)
    for path, tree in TREES.items():
        if path.name == "__init__.py" and path.parent != PACKAGE:
            assert not [where(path, n) for n in tree.body if not isinstance(n, allowed) or is_call_statement(n)]


def is_call_statement(node: ast.stmt) -> bool:
    """Whether a statement only calls something, such as `register_all()`."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def test_importing_a_module_registers_no_dataset():
    for path, tree in TREES.items():
        calls = [node.value.func for node in tree.body if is_call_statement(node)]
        calls = [call for call in calls if ast.unparse(call) != "PathManager.register_handler"]  # how zips are opened
        assert not [
            where(path, call) for call in calls if "register" in ast.unparse(call) or "Catalog" in ast.unparse(call)
        ]


def find_device_uses(path: Path, tree: ast.AST) -> Iterator[str]:
    """Yields the places that use a device module: `torch.cuda`, `from torch import mps`, `import torch_sdaa`."""
    for name, node in find_imports(path, tree):
        top, _, member = name.partition(".")
        if top.startswith("torch_") or (top == "torch" and member.split(".")[0] in DEVICE_MODULES):
            yield where(path, node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            if node.attr in DEVICE_MODULES:
                yield where(path, node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DEVICE_MODULES:
            yield where(path, node)


def test_device_modules_appear_in_accelerator_alone():
    accelerator = PACKAGE / "engine" / "accelerator.py"
    assert not [
        place for path, tree in PRODUCT.items() if path != accelerator for place in find_device_uses(path, tree)
    ]


def find_calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yields every call with the dotted name that is called, where it has one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def changes_the_process(node: ast.AST) -> bool:
    """Whether a statement sets a signal handler, an environment variable or an option of the C allocator."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in {"signal.signal", "os.environ.setdefault", "os.environ.update", "os.putenv"}
    if isinstance(node, ast.Assign):
        return any(ast.unparse(target).startswith("os.environ[") for target in node.targets)
    return isinstance(node, ast.Constant) and node.value in {"mallopt", "malloc_trim"}


def test_the_process_is_changed_in_runs_alone():
    for path, tree in PRODUCT.items():
        if PACKAGE / "runs" not in path.parents:
            assert not [where(path, node) for node in ast.walk(tree) if changes_the_process(node)]


def test_private_attributes_of_other_libraries_stand_in_the_table():
    assert find_foreign_private_attributes() == set(FOREIGN_PRIVATE_ATTRIBUTES)
    assert len(FOREIGN_PRIVATE_ATTRIBUTES) <= 8


def test_nothing_is_handed_over_in_context_variables():
    assert not find_context_variables()


def test_every_function_fits_a_screen():
    assert not find_long_functions()


def test_print_is_for_commands_alone():
    commands = {PACKAGE / name for name in ("tools", "demo", "sdaa")}
    for path, tree in PRODUCT.items():
        if not commands & set(path.parents):
            assert not [where(path, node) for name, node in find_calls(tree) if name == "print"]


# The one function that may, for files that the user names in an environment variable.
TRUSTING = (PACKAGE / "checkpoint" / "reading.py", "_read_trusted")


def test_nothing_runs_code_that_a_file_carries():
    unsafe = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "np.load", "torch.load"}
    unsafe |= {"pickle.load", "pickle.loads", "pickle.Unpickler"}
    safe_when = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
    for path, tree in PRODUCT.items():
        trusting = [node for node in tree.body if (path, getattr(node, "name", "")) == TRUSTING]
        excepted = {call for function in trusting for _, call in find_calls(function)}
        for name, node in find_calls(tree):
            if node in excepted:
                continue
            keywords = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            argument, value = safe_when.get(name, ("", None))
            assert name not in unsafe or keywords.get(argument) is value is not None, where(path, node)


def test_detectron2_is_used_by_its_public_names():
    for path, tree in PRODUCT.items():
        names = [(name, node) for name, node in find_imports(path, tree) if name.startswith("detectron2")]
        assert not [where(path, node) for name, node in names if any(p.startswith("_") for p in name.split("."))]


def test_constructors_take_no_config():
    for path, tree in TREES.items():
        if name_part(name_module(path)) in {*LAYERS, "meta_arch"}:
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    names = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
                    assert not names & {"cfg", "config"}, where(path, node)


# --- configuration keys: every declared key is read, by one module ---


def declared_keys() -> set[str]:
    """The full names of the keys that maskformer adds to Detectron2's and to the deeplab project's."""
    from detectron2.config import CfgNode, get_cfg
    from detectron2.projects.deeplab import add_deeplab_config

    from maskformer.config import add_maskformer_config

    def leaves(node: CfgNode, prefix: str = "") -> set[str]:
        found = set()
        for name, value in node.items():
            found |= leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {f"{prefix}{name}"}
        return found

    before, after = get_cfg(), get_cfg()
    add_deeplab_config(before)
    add_maskformer_config(after)
    return leaves(after) - leaves(before)


def resolve_chain(node: ast.AST, aliases: dict[str, str]) -> str | None:
    """Returns the key that an expression stands for: "MODEL.MASK_FORMER.NHEADS", "?.NHEADS" on an unknown base."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, "" if node.id == "cfg" else "?")
    if isinstance(node, ast.Attribute):
        if node.attr == "cfg":
            return ""
        base = resolve_chain(node.value, aliases)
        return None if base is None or not node.attr.isupper() else f"{base}.{node.attr}".lstrip(".")
    return "?" if isinstance(node, ast.Call | ast.Subscript) else None


def find_aliases(scope: ast.AST) -> dict[str, str]:
    """Returns the names that a scope gives to parts of the config, as in `node, test = cfg.MODEL, cfg.TEST`."""
    aliases: dict[str, str] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            both_tuples = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = zip(target.elts, value.elts, strict=True) if both_tuples else [(target, value)]
            for name, chain in pairs:
                if isinstance(name, ast.Name) and isinstance(chain, ast.Attribute):
                    aliases[name.id] = resolve_chain(chain, aliases) or "?"
    return aliases


def find_reads(tree: ast.Module, keys: set[str]) -> set[str]:
    """Returns the keys of a set that a module reads: as an attribute, or as a name in a table or a subscript."""
    scopes = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    methods = [node for scope in scopes for node in scope.body if isinstance(node, ast.FunctionDef)]
    read: set[str] = set()
    for scope in [*(node for node in scopes if isinstance(node, ast.FunctionDef)), *methods]:
        aliases = find_aliases(scope)
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read |= match_keys(resolve_chain(node, aliases), keys)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isupper():
            read |= match_keys(f"?.{node.value}", keys) if "." not in node.value else set()
    return read


def match_keys(chain: str | None, keys: set[str]) -> set[str]:
    """Returns the key that a chain names; on an unknown base, the one key that ends in it."""
    if chain is None:
        return set()
    if not chain.startswith("?"):
        return {chain} & keys
    ending = [key for key in keys if f".{key}".endswith(chain[1:]) and chain != "?"]
    return set(ending) if len(ending) == 1 else set()


def find_readers() -> dict[str, list[str]]:
    """Returns the modules that read each declared key, config, export and the tools left out."""
    keys = declared_keys()
    readers: dict[str, list[str]] = {key: [] for key in keys}
    for path, tree in PRODUCT.items():
        if not {PACKAGE / name for name in ("config", "tools", "export")} & set(path.parents):
            for key in find_reads(tree, keys):
                readers[key].append(str(path.relative_to(REPOSITORY)))
    return readers


def test_every_declared_key_is_read():
    assert {key for key, modules in find_readers().items() if not modules} == UNREAD_KEYS


def test_a_key_has_one_reader():
    readers = find_readers()
    assert not {key: modules for key, modules in readers.items() if len(modules) > 1 and key not in SHARED_KEYS}
    assert not [key for key in SHARED_KEYS if len(readers[key]) < 2]


def test_key_reads_are_found_through_names_tables_and_unknown_bases():
    keys = {"MODEL.A.X", "MODEL.A.Y", "MODEL.A.Z", "MODEL.B.W", "MODEL.B.SAME", "MODEL.A.SAME"}
    source = """
def build(cfg, part):
    node, other = cfg.MODEL.A, cfg.MODEL.B
    return node.X, part.W, part.SAME, other.MISSING, other["Y"]

class Model:
    def __init__(self):
        self.cfg.MODEL.A.Z
"""
    assert find_reads(ast.parse(source), keys) == {"MODEL.A.X", "MODEL.A.Y", "MODEL.A.Z", "MODEL.B.W"}


@pytest.mark.slow
def test_the_house_is_measured_and_a_step_enters_few_files():
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.house"]
    printed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=300).stdout
    figures = {
        name: (int(seen), int(limit))
        for name, seen, limit in re.findall(r"^(.+): (\d+) \(at most (\d+)\)", printed, re.M)
    }
    assert len(figures) == 6
    for name, (seen, limit) in figures.items():
        assert seen <= limit or "lines" in name, name  # lines: the aim is not reached yet; CHANGELOG.md says how far
