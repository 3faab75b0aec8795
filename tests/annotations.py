"""An import hook under which the annotated functions of a package check their arguments and results (beartype), methods and inner functions included."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

__all__ = ["check_annotations"]

CHECKED = "__checked__"


class _Checked(ast.NodeTransformer):
    """Makes the check the innermost decorator: others get a function that checks."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Any function that says a type."""
        self.generic_visit(node)
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
        if node.returns is not None or any(a is not None and a.annotation is not None for a in arguments):
            node.decorator_list.append(ast.copy_location(ast.Name(CHECKED, ast.Load()), node))
        return node


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """From the source: the stored bytecode is that of the module as it is."""
        tree = ast.parse(self.get_data(self.path), self.path)
        return compile(ast.fix_missing_locations(_Checked().visit(tree)), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        """As ever, with the decorator at hand."""
        from beartype import beartype

        setattr(module, CHECKED, beartype)
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """What the other finders find, read by our loader."""
        if fullname.partition(".")[0] != self.package:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                if type(spec.loader) is SourceFileLoader:
                    spec.loader = _Loader(spec.loader.name, spec.loader.path)
                return spec
        return None


def check_annotations(package: str) -> None:
    """From now on, for modules of `package` that have not been imported."""
    sys.meta_path.insert(0, _Finder(package))
