"""Every test that docs/reliability.md names exists."""

import ast
import re

from places import ROOT


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`((?:lab/)?tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/reliability.md").read_text())
    assert len(named) > 40
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
