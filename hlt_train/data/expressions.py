"""The expression language of the data cards: parsed with `ast` against a whitelist, never `eval`ed.

Names are branches or new variables (`jet.pt` is a name too). Operators: `+ - * / // % **`, comparisons, `& | ~`, `x[mask]` with a jagged mask or index.
Functions are those of `FUNCTIONS`, with or without the prefixes `np.` and `ak.`. Values are NumPy arrays `[n_entries]` or jagged Awkward arrays; the two
broadcast entry by entry. An invalid operation (log of 0, mean of an empty list) gives inf or NaN, which the reader counts; it never raises.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import awkward as ak
import numpy as np

from hlt_train.data.functions import CONSTANTS, FUNCTIONS, Function
from hlt_train.errors import HltTrainError, UsageError, nearest

__all__ = ["Expression", "bare", "dotted", "parse"]

Value = Any  # np.ndarray, ak.Array or a scalar

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: np.invert}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_BITWISE = (ast.BitAnd, ast.BitOr, ast.BitXor)


class Expression:
    """A checked expression.

    Attributes:
        text: as written.
        tree: as parsed.
        names: the branches and variables it needs.
    """

    def __init__(self, text: str, tree: ast.expr) -> None:
        self.text = text
        self.tree = tree
        found: set[str] = set()
        _Check(text, found).check(tree)
        self.names: frozenset[str] = frozenset(found)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def evaluate(self, columns: Mapping[str, Value]) -> Value:
        """The value over `columns` (every name of `names` present): an array per entry, or a scalar when no name occurs.

        Raises:
            UsageError: arrays of different shape were combined.
        """
        with np.errstate(all="ignore"):
            try:
                return _value(self.tree, columns)
            except HltTrainError:
                raise
            except (ValueError, TypeError, IndexError) as error:
                reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise UsageError(
                    f"cannot evaluate '{self.text}': {reason}", where=", ".join(f"{n}: {_shape(columns[n])}" for n in sorted(self.names))
                ) from error

    def follows(self, aligned: frozenset[str]) -> bool:
        """Whether the value has one element per element of the lists named in `aligned` (used element by element, not reduced, masked or sorted)."""
        return _follows(self.tree, aligned)


def parse(text: str) -> Expression:
    """Parse and check `text`.

    Raises:
        UsageError: not an expression, or something outside the whitelist, with its position and the nearest function.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        place = f", at column {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise UsageError(f"not an expression{place}: '{text}'", then="write it as in Python, for instance 'log(Jet_pt) * (abs(Jet_eta) < 2.4)'") from error
    return Expression(text.strip(), tree)


def _shape(value: Value) -> str:
    return str(ak.type(value)) if isinstance(value, ak.Array) else str(np.shape(value))


def dotted(node: ast.expr) -> str | None:
    """The name that a node spells (`x`, `jet.pt`), or None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    return None


def bare(name: str) -> str:
    """A name without `np.` or `ak.`."""
    return name[3:] if name.startswith(("np.", "ak.")) else name


def _function(node: ast.Call) -> Function:
    return FUNCTIONS[bare(dotted(node.func) or "")]


class _Check:
    """Walks a tree once: collects the names and refuses what is not in the language."""

    def __init__(self, text: str, names: set[str]) -> None:
        self.text = text
        self.names = names

    def refuse(self, node: ast.AST, what: str, near: tuple[str, ...] = (), then: str = "") -> UsageError:
        place = getattr(node, "col_offset", 0) + 1
        return UsageError(f"{what}, at column {place} of '{self.text}'", near=near, then=then)

    def check(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=bool() | int() | float()):
                return
            case ast.Name() | ast.Attribute():
                self.name(node)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                self.check(left)
                self.check(right)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                self.check(operand)
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
                for side in (left, *others):
                    self.parenthesised(side)
                    self.check(side)
            case ast.Subscript(value=value, slice=index):
                if isinstance(index, ast.Constant | ast.Slice | ast.Tuple | ast.UnaryOp):
                    raise self.refuse(index, "an index must be a jagged mask or a jagged index", then="use nth(x, k) for the k-th element, counted from 0")
                self.check(value)
                self.check(index)
            case ast.Call():
                self.call(node)
            case ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                raise self.refuse(node, "'and', 'or', 'not' do not work entry by entry", then="write & | ~ with each comparison in parentheses")
            case _:
                raise self.refuse(node, f"{type(node).__name__} is not in the expression language")

    def name(self, node: ast.expr) -> None:
        name = dotted(node)
        if name is None:
            raise self.refuse(node, "an attribute of a value is not in the expression language")
        if name.startswith(("np.", "ak.")):
            if bare(name) not in CONSTANTS:
                raise self.refuse(node, f"unknown constant '{name}'", nearest(bare(name), CONSTANTS))
        elif name not in CONSTANTS:
            self.names.add(name)

    def call(self, node: ast.Call) -> None:
        name = bare(dotted(node.func) or "?")
        if name not in FUNCTIONS:
            raise self.refuse(node, f"unknown function '{name}'", nearest(name, FUNCTIONS))
        function = FUNCTIONS[name]
        if not function.least <= len(node.args) <= function.most:
            wanted = str(function.least) if function.least == function.most else f"{function.least} to {function.most}"
            raise self.refuse(node, f"{name}() takes {wanted} arguments, got {len(node.args)}")
        for argument in node.args:
            self.check(argument)
        for keyword in node.keywords:
            if keyword.arg not in function.options:
                raise self.refuse(keyword.value, f"{name}() has no option '{keyword.arg}'", tuple(function.options))
            kind = function.options[str(keyword.arg)]
            try:
                value = ast.literal_eval(keyword.value)
            except ValueError as error:
                raise self.refuse(keyword.value, f"option '{keyword.arg}' of {name}() must be a number") from error
            if not isinstance(value, kind | int) or (keyword.arg == "axis" and value < 1):
                raise self.refuse(keyword.value, f"option '{keyword.arg}' of {name}() must be {'a whole number from 1' if kind is int else 'a number'}")

    def parenthesised(self, side: ast.expr) -> None:
        """`a > 1 & b < 2` means `a > (1 & b) < 2` in Python, which nobody wants: a bit operation beside a comparison needs its own parentheses."""
        if not (isinstance(side, ast.BinOp) and isinstance(side.op, _BITWISE)):
            return
        source = self.text.strip().encode()
        before = source[: side.col_offset].rstrip()
        after = source[side.end_col_offset or 0 :].lstrip()
        if not (before.endswith(b"(") and after.startswith(b")")):
            raise self.refuse(side, "& and | bind more tightly than comparisons", then="put each comparison into parentheses: (a > 1) & (b < 2)")


def _value(node: ast.expr, columns: Mapping[str, Value]) -> Value:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name() | ast.Attribute():
            name = dotted(node) or ""
            return CONSTANTS[bare(name)] if bare(name) in CONSTANTS else columns[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, columns), _value(right, columns))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_value(operand, columns))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(side, columns) for side in (left, *others)]
            results = [_COMPARE[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False)]
            found = results[0]
            for result in results[1:]:
                found = found & result
            return found
        case ast.Subscript(value=value, slice=index):
            return _value(value, columns)[_value(index, columns)]
        case ast.Call():
            function = _function(node)
            options = {str(k.arg): function.options[str(k.arg)](ast.literal_eval(k.value)) for k in node.keywords}
            return function.call(*[_value(a, columns) for a in node.args], **options)
    raise AssertionError(ast.dump(node))  # `_Check` refused everything else


def _follows(node: ast.expr, aligned: frozenset[str]) -> bool:
    match node:
        case ast.Name() | ast.Attribute():
            return dotted(node) in aligned
        case ast.BinOp(left=left, right=right):
            return _follows(left, aligned) or _follows(right, aligned)
        case ast.UnaryOp(operand=operand):
            return _follows(operand, aligned)
        case ast.Compare(left=left, comparators=others):
            return any(_follows(side, aligned) for side in (left, *others))
        case ast.Call():
            inner = any(_follows(a, aligned) for a in node.args)
            axis = next((ast.literal_eval(k.value) for k in node.keywords if k.arg == "axis"), 1)
            return inner and (_function(node).elementwise or axis > 1)
    return False
