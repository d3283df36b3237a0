"""Small files with one job, functions that fit on a screen, lines that fit beside another file.

A file is split when it passes these limits or gains a second job; a function when it does two
things. Limits are raised for nobody: what does not fit wants a better shape.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_MAX = {".py": 600, ".pyi": 600, ".pyx": 1000, ".pxd": 1000}
TESTS_MAX = 800  # a file of tests is not read from its top: one test is looked up
FUNCTION_MAX = 70
LINE_MAX = 100
FOLDERS = ("gateway", "tests", "tools")


def sources() -> list[str]:
    """Every Python and Cython file of ours."""
    return sorted(
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in FILE_MAX and "node_modules" not in path.parts
    )


def long_functions(text: str) -> list[str]:
    """Names of functions that are longer than they may be, their docstrings included."""
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno
        and node.end_lineno - node.lineno + 1 > FUNCTION_MAX
    ]


@pytest.mark.parametrize("file", sources())
def test_files_functions_and_lines_are_short(file: str) -> None:
    """Within the limits above."""
    text = (ROOT / file).read_text()
    lines = text.splitlines()
    limit = TESTS_MAX if file.startswith("tests/") else FILE_MAX[Path(file).suffix]
    assert len(lines) <= limit
    if file.endswith(".py"):        # whose lines ruff measures
        assert long_functions(text) == []
    else:
        assert [number for number, line in enumerate(lines, 1) if len(line) > LINE_MAX] == []


@pytest.mark.parametrize("file", [file for file in sources() if not file.endswith(".pyi")])
def test_every_file_says_what_it_is_for(file: str) -> None:
    """A module opens with a docstring, a Cython declaration file with a comment or docstring."""
    text = (ROOT / file).read_text()
    if file.endswith(".py"):
        docstring = ast.get_docstring(ast.parse(text))
        assert docstring and len(docstring) >= 20
    else:
        assert text.lstrip().startswith(('"""', "# ", "# cython"))


def test_a_long_function_is_seen() -> None:
    """The test of the test: one line too many is found, also in a method."""
    body = "        pass\n" * FUNCTION_MAX
    assert long_functions(f"class A:\n    def b(self):\n{body}") == [f"b: {FUNCTION_MAX + 1} lines"]
    assert long_functions(f"class A:\n    def b(self):\n{body[13:]}") == []
