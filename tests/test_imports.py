"""Who may import whom: backbone ← action_expert ← vla → envs; and what each may use besides."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"backbone", "action_expert", "vla", "envs"}

OUR_PACKAGES = {
    "backbone": {"backbone"},
    "action_expert": {"action_expert", "backbone"},
    "envs": {"envs"},
    "vla": OURS,
}
LIBRARIES = {
    "backbone": {"torch", "einops", "numpy", "PIL", "sentencepiece", "safetensors"},
    "action_expert": {"torch", "einops"},
    "envs": {"gymnasium", "numpy", "PIL", "mujoco", "metaworld", "gym_pusht", "gym_aloha", "av"},
}
# Imported where they are used, so that `import envs` and `import vla` do without them.
SIMULATORS = {"mujoco", "metaworld", "gym_pusht", "gym_aloha"}
LAZY = {"envs": SIMULATORS | {"av"}, "vla": SIMULATORS | {"lerobot", "datasets"}}


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no files in {package}"
    return found


def imported(nodes: ast.AST) -> set[str]:
    """Top-level names of everything imported anywhere under `nodes`."""
    names = set()
    for node in ast.walk(nodes):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import absolutely, not relatively"
            names.add((node.module or "").split(".")[0])
    return names


def imported_at_once(tree: ast.Module) -> set[str]:
    """What is imported before any function is called, types for a checker left out."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        names |= imported(node)
    return names


@pytest.mark.parametrize("package", sorted(OURS))
def test_packages_import_only_what_lies_below_them(package):
    for file in modules(package):
        ours = imported(ast.parse(file.read_text())) & OURS
        wrong = ours - OUR_PACKAGES[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("package", sorted(LIBRARIES))
def test_packages_use_only_their_libraries(package):
    for file in modules(package):
        outside = imported(ast.parse(file.read_text())) - OURS - set(sys.stdlib_module_names)
        wrong = outside - LIBRARIES[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("package", sorted(LAZY))
def test_simulators_and_films_are_imported_only_where_they_are_used(package):
    for file in modules(package):
        early = imported_at_once(ast.parse(file.read_text())) & LAZY[package]
        assert not early, f"{file.relative_to(ROOT)} imports {sorted(early)} at its top"


def test_nobody_imports_transformers_or_a_run():
    # transformers is what tests and vla/bench compare with; runs in configs/ are loaded by path
    for package in OURS:
        for file in modules(package):
            benches = {"transformers"} if file.parent == ROOT / "vla/bench" else set()
            unwanted = {"transformers", "configs", "tests"} - benches
            wrong = imported(ast.parse(file.read_text())) & unwanted
            assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_walk_sees_imports_inside_functions_and_conditions():
    tree = ast.parse("import a.b\ndef f():\n    from c.d import e\nif x:\n    import g")
    assert imported(tree) == {"a", "c", "g"}
    assert imported_at_once(tree) == {"a", "g"}
