"""The order of the imports and the sizes of the files, as CONTRIBUTING.md states them."""

import ast
import functools
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ["vision", "runtimes", "rknnpool", "funcs", "func", "sources", "results", "streams", "top"]
TOP = {"main", "arguments", "process", "benchmark", "measure", "limits", "meter", "doctor"}
TOP |= {"models", "examples"}
# (file, what it imports inside a function): the reason
LAZY = {
    ("rknnpool.py", "runtimes"): "rknnpool.py also works alone, when copied to a board",
    ("rknnpool.py", "func"): "func.py's myFunc is the default of the parameter func",
    ("funcs/__init__.py", "func"): "the loader imports the file that the user edits",
}
SUFFIXES = ".py", ".sh", ".html", ".css", ".js"
COLUMNS, FUNCTION, LINES = 100, 50, 400
LINES_OF = {"rknnpool.py": 550, "main.py": 240, "streams.py": 260, "func.py": 150}


def project_files():
    """Paths relative to the root of all scripts and of the page; no environments."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if (name == ".ci" or name[0] != ".")
            and name not in ("box", "boxes", "shared", "build")
            and not (Path(folder) / name / "pyvenv.cfg").exists()
        ]
        for path in (Path(folder) / name for name in names):
            if path.suffix in SUFFIXES or path.parent.name == ".ci" and not path.suffix:
                yield path.relative_to(ROOT)


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


FILES = sorted(project_files())
SOURCES = [path for path in FILES if path.suffix == ".py" and path.parts[0] != "tests"]
PAGE = [path for path in FILES if path.suffix in (".html", ".css", ".js")]
OURS = {path.stem for path in SOURCES if path.parts[0] in TOP} | {"boards_parts"} | TOP


def layer(name):
    """The layer of a module, None if it is not one of this project's."""
    return name if name in LAYERS else "top" if name in OURS else None


def imports(tree):
    """(top package, whether inside a function) of every import in a file's syntax tree."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, functions) for node in ast.walk(f)}
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            modules = [node.module]
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            modules = [text for text in texts[:1] if isinstance(text, str)]
        for module in modules:
            yield module.split(".")[0], id(node) in inside


@functools.lru_cache(maxsize=None)
def imports_of_our_modules():
    found = []
    for path in SOURCES:
        for name, lazy in imports(ast.parse(read(path))):
            if layer(name):
                found.append((path.as_posix(), name, lazy))
    return found


def test_imports_run_downwards():
    order = {name: number for number, name in enumerate(LAYERS)}
    wrong = []
    for path, name, lazy in imports_of_our_modules():
        own = layer(Path(path).parts[0].replace(".py", "")) or "top"
        if order[layer(name)] > order[own] and not (lazy and (path, name) in LAZY):
            wrong.append(f"{path} imports {name}")
    assert not wrong


def test_only_the_loader_and_the_pool_import_func_and_only_inside_a_function():
    found = [(path, name, lazy) for path, name, lazy in imports_of_our_modules() if name == "func"]
    assert [one for one in found if not one[2] or one[:2] not in LAZY] == []


def test_rknnpool_imports_no_file_of_ours_outside_a_function():
    found = [one for one in imports_of_our_modules() if one[0] == "rknnpool.py"]
    assert [one for one in found if not one[2] or one[:2] not in LAZY] == []


def test_every_allowed_import_inside_a_function_exists():
    assert set(LAZY) <= {(path, name) for path, name, _ in imports_of_our_modules()}


def test_files_have_at_most_400_lines():
    counts = {path.as_posix(): len(read(path).splitlines()) for path in SOURCES + PAGE}
    assert {name: n for name, n in counts.items() if n > LINES_OF.get(name, LINES)} == {}


def test_functions_have_at_most_50_lines():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [(path, node) for path in SOURCES for node in ast.walk(ast.parse(read(path)))]
    sizes = {
        f"{path}:{node.name}": node.end_lineno - node.lineno + 1
        for path, node in nodes
        if isinstance(node, functions)
    }
    assert {name: size for name, size in sizes.items() if size > FUNCTION} == {}


def test_lines_have_at_most_100_columns():
    lines = ((path, *line) for path in FILES for line in enumerate(read(path).splitlines(), 1))
    assert [f"{path}:{n}" for path, n, line in lines if len(line) > COLUMNS] == []
