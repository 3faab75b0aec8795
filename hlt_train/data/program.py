"""A card's derived variables as typed steps, from which a target can be written that has neither NumPy nor Awkward.

Every step names the type in which NumPy computes it and the type of what it gives; both come from NumPy and Awkward themselves, which are asked with arrays of
ones. A *list* is the length that values per constituent share: that of a collection, or what a mask leaves of another list.

What has no form here is refused by the name of the variable, with the reason: lists of lists, an index of numbers, lists whose lengths only data can compare.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import awkward as ak
import numpy as np

from hlt_train.data.card import Card
from hlt_train.data.expressions import bare, dotted
from hlt_train.data.functions import CONSTANTS, FUNCTIONS
from hlt_train.data.ragged import ragged
from hlt_train.data.recipe import Recipe
from hlt_train.errors import HltTrainError, nearest

__all__ = ["Kind", "Program", "compile_program"]

TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
LONGEST = 4096  # leading elements of a sorted list that are kept without allocation

_BINARY: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", operator.add),
    ast.Sub: ("subtract", operator.sub),
    ast.Mult: ("multiply", operator.mul),
    ast.Div: ("divide", operator.truediv),
    ast.FloorDiv: ("floor_divide", operator.floordiv),
    ast.Mod: ("remainder", operator.mod),
    ast.Pow: ("power", operator.pow),
    ast.BitAnd: ("bitwise_and", operator.and_),
    ast.BitOr: ("bitwise_or", operator.or_),
    ast.BitXor: ("bitwise_xor", operator.xor),
}
_UNARY: dict[type[ast.unaryop], tuple[str, Callable[[Any], Any]]] = {
    ast.USub: ("negative", operator.neg),
    ast.UAdd: ("positive", operator.pos),
    ast.Invert: ("invert", np.invert),
}
_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("equal", operator.eq),
    ast.NotEq: ("not_equal", operator.ne),
    ast.Lt: ("less", operator.lt),
    ast.LtE: ("less_equal", operator.le),
    ast.Gt: ("greater", operator.gt),
    ast.GtE: ("greater_equal", operator.ge),
}
_COMPARISONS = frozenset(word for word, _ in _COMPARE.values())
_RENAMED = {"abs": "absolute", "min": "minimum", "max": "maximum"}
_ALL = 1 << 62  # elements of a list
_POWERS = {2.0: "square", 0.5: "sqrt", -1.0: "reciprocal"}  # NumPy takes these for the power of a float


@dataclass(frozen=True)
class Kind:
    """What a branch holds: `depth` 0 for one value, 1 for a list, 2 for a list of lists; `type` is a name of NumPy."""

    depth: int
    type: str


@dataclass(eq=False)
class Program:
    """The steps, as data.

    Attributes:
        branches: name, type, and number of its list (None: one value).
        lists: {"branches"} of a collection, or {"of", "where"}: the elements of another list at which a step is true.
        steps: op, of (earlier steps), as (types of the operands), type, list (of the value), and what the op needs besides: over (the list that is counted), k,
            default, value, branch, most (leading elements of a sorted list that somebody reads).
        groups: name, list (None: scalars), values: the step of each variable, None where the caller gives it.
        given: variable -> why it has no form here.
        object: the list whose elements are the examples, or None.
    """

    branches: list[dict[str, Any]] = field(default_factory=list)
    lists: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)
    object: int | None = None

    @property
    def derives(self) -> bool:
        """Whether any variable has a form."""
        return any(value is not None for group in self.groups for value in group["values"])

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in ("branches", "lists", "steps", "groups", "given", "object")}


def compile_program(card: Card, groups: Sequence[tuple[str, int | None, Sequence[str]]], kinds: Mapping[str, Kind]) -> Program:
    """The program of a card's input groups.

    Args:
        card: its new variables, and what one example is.
        groups: name, length (None for scalars) and variables of each group that a network reads, in its order.
        kinds: branch -> what it holds; a branch that is not here is refused.
    """
    writer = _Writer(card, kinds)
    found = []
    for name, length, variables in groups:
        values = [writer.variable(variable, constituents=length is not None) for variable in variables]
        if length is not None:
            writer.together(variables, values, length)
        found.append((name, length, values))
    return writer.program(found)


class _Refused(Exception):
    """This variable has no form; the message says why."""


@dataclass(frozen=True)
class _Constant:
    """A number of the card; a Python number takes the type of what it meets, one of NumPy has its own."""

    value: Any


_Value = int | _Constant  # the number of a step, or a constant


class _Writer:
    def __init__(self, card: Card, kinds: Mapping[str, Kind]) -> None:
        self.kinds = kinds
        self.recipe = Recipe(card, labelled=False)
        self.steps: list[dict[str, Any]] = []
        self.given: dict[str, str] = {}
        self._lists: list[dict[str, Any]] = []
        self._same: list[int] = []  # list -> a list of the same length, in the end itself
        self._branches: dict[str, int] = {}
        self._variables: dict[str, _Value | _Refused] = {}
        self._known: dict[str, int] = {}
        self._evaluating: list[str] = []
        self._aligned = self.recipe.aligned(kinds)
        self._objects: int | None = None
        if card.collection is not None:
            self._prefixes = (f"{card.collection}_", f"{card.collection}.")
            self._objects = self._list({})

    # variables --------------------------------------------------------------------------------------------------------------------------------------------

    def variable(self, name: str, *, constituents: bool) -> int | None:
        """The step of an input variable, or None and an entry in `given`."""
        try:
            return self._constituents(name) if constituents else self._scalar(name)
        except _Refused as error:
            self.given[name] = str(error)
            return None

    def _scalar(self, name: str) -> int:
        found, own = self._variable(name)
        if own is not None:
            if name not in self._aligned:
                raise _Refused("it is a list, used as one value")
            self._unify(own, self._objects or 0)
            found = self._step("object", [found], self.steps[found]["type"], None)
        self._demand(found, 1)
        return found

    def _constituents(self, name: str) -> int:
        found, own = self._variable(name)
        if own is None or name in self._aligned:
            raise _Refused("it is no list of constituents")
        return found

    def _variable(self, name: str) -> tuple[int, int | None]:
        """The step of an input variable and its list."""
        found = self._name(name)
        if isinstance(found, _Constant):
            found = self._step("constant", [], np.asarray(found.value).dtype.name, None, value=_number(found.value))
        return found, self.steps[found]["list"]

    def together(self, variables: Sequence[str], values: list[int | None], length: int) -> None:
        """The constituents of one group share a list; where one variable has no form, the caller gives the whole group."""
        reason = next((f"with {name}, which is of the same group: {self.given[name]}" for name, v in zip(variables, values, strict=True) if v is None), None)
        try:
            for value in values:
                if reason is None and value is not None:
                    self._unify(self.steps[value]["list"], self.steps[values[0] or 0]["list"])
                    self._demand(value, length)
        except _Refused as error:
            reason = str(error)
        if reason is not None:
            for k, name in enumerate(variables):
                values[k] = None
                self.given.setdefault(name, reason)

    def program(self, groups: Sequence[tuple[str, int | None, list[int | None]]]) -> Program:
        """What is needed for these values and nothing else, numbered anew."""
        needed = [False] * len(self.steps)
        lists: set[int] = set()

        def need(step: int) -> None:
            if not needed[step]:
                needed[step] = True
                for source in self.steps[step]["of"]:
                    need(source)
                need_list(self.steps[step]["list"])
                need_list(self.steps[step].get("over"))

        def need_list(number: int | None) -> None:
            if number is None or (number := self._find(number)) in lists:
                return
            lists.add(number)
            if "where" in self._lists[number]:
                need(self._lists[number]["where"])
                need_list(self._lists[number]["of"])

        for _, _, values in groups:
            for value in values:
                if value is not None:
                    need(value)
        if self._objects is not None and any(step["op"] == "object" for step, used in zip(self.steps, needed, strict=True) if used):
            need_list(self._objects)
        step_number = {old: new for new, old in enumerate(k for k, used in enumerate(needed) if used)}
        list_number = {old: new for new, old in enumerate(sorted(lists))}

        def listed(number: int | None) -> int | None:
            return None if number is None else list_number[self._find(number)]

        made = Program(given=self.given)
        names = [(name, step) for name, step in self._branches.items() if needed[step]]
        position = {name: k for k, (name, _) in enumerate(names)}
        made.branches = [{"name": name, "type": self.kinds[name].type, "list": listed(self.steps[step]["list"])} for name, step in names]
        for old in sorted(lists):
            if "where" in self._lists[old]:
                made.lists.append({"of": listed(self._lists[old]["of"]), "where": step_number[self._lists[old]["where"]]})
            else:
                made.lists.append({"branches": [branch["name"] for branch in made.branches if branch["list"] == list_number[old]]})
        for old in step_number:
            step = self.steps[old]
            moved = {**step, "of": [step_number[k] for k in step["of"]], "list": listed(step["list"])}
            if step["op"] == "branch":
                moved["branch"] = position[step["branch"]]
            if step["op"] == "count":
                moved["over"] = listed(step["over"])
            made.steps.append(moved)
        for name, length, values in groups:
            own = None if length is None or values[0] is None else listed(self.steps[values[0]]["list"])
            made.groups.append({"name": name, "list": own, "values": [None if v is None else step_number[v] for v in values]})
        made.object = listed(self._objects) if self._objects is not None and self._find(self._objects) in lists else None
        return made

    # steps ------------------------------------------------------------------------------------------------------------------------------------------------

    def _step(self, op: str, of: Sequence[int], type: str, list: int | None, **more: Any) -> int:
        if type not in TYPES:
            raise _Refused(f"NumPy computes {op} in {type}")
        step = {"op": op, "of": [*of], "type": type, "list": list, **more}
        key = repr(step)
        if key not in self._known:
            self._known[key] = len(self.steps)
            self.steps.append(step)
        return self._known[key]

    def _list(self, content: dict[str, Any]) -> int:
        self._lists.append(content)
        self._same.append(len(self._same))
        return len(self._same) - 1

    def _find(self, number: int) -> int:
        while self._same[number] != number:
            number = self._same[number]
        return number

    def _unify(self, a: int, b: int) -> int:
        """Values at the same position: NumPy takes lists of equal lengths only, so two collections become one."""
        a, b = self._find(a), self._find(b)
        if a != b:
            if "where" in self._lists[a] or "where" in self._lists[b]:
                raise _Refused("it combines lists that different masks have cut, and only data can say whether their lengths agree")
            a, b = min(a, b), max(a, b)
            self._same[b] = a
        return a

    def _name(self, name: str) -> _Value:
        if name in self.recipe.variables and name not in self._evaluating:
            if name not in self._variables:
                self._evaluating.append(name)
                try:
                    self._variables[name] = self._expression(self.recipe.variables[name].tree)
                except _Refused as error:
                    self._variables[name] = error
                finally:
                    self._evaluating.pop()
            found = self._variables[name]
            if isinstance(found, _Refused):
                raise found
            return found
        if name not in self._branches:
            kind = self.kinds.get(name)
            if kind is None:
                raise _Refused(f"the types of branch {name} are not known" + (f" (is it {near[0]}?)" if (near := nearest(name, self.kinds)) else ""))
            if kind.depth > 1:
                raise _Refused(f"branch {name} is a list of lists")
            own = None
            if kind.depth:
                own = self._objects if self._objects is not None and name.startswith(self._prefixes) else self._list({})
            self._branches[name] = self._step("branch", [], kind.type, own, branch=name)
        return self._branches[name]

    def _expression(self, node: ast.expr) -> _Value:
        match node:
            case ast.Constant(value=value):
                return _Constant(value)
            case ast.Name() | ast.Attribute():
                name = dotted(node) or ""
                return _Constant(CONSTANTS[bare(name)]) if bare(name) in CONSTANTS else self._name(name)
            case ast.BinOp(left=left, op=op, right=right):
                return self._elementwise(*_BINARY[type(op)], [self._expression(left), self._expression(right)])
            case ast.UnaryOp(op=op, operand=operand):
                return self._elementwise(*_UNARY[type(op)], [self._expression(operand)])
            case ast.Compare(left=left, ops=ops, comparators=others):
                values = [self._expression(side) for side in (left, *others)]
                results = [self._elementwise(*_COMPARE[type(op)], [a, b]) for op, a, b in zip(ops, values, values[1:], strict=False)]
                found = results[0]
                for result in results[1:]:
                    found = self._elementwise("bitwise_and", operator.and_, [found, result])
                return found
            case ast.Subscript(value=value, slice=index):
                return self._filter(self._expression(value), self._expression(index))
            case ast.Call():
                return self._call(node)
        raise AssertionError(ast.dump(node))  # the parser refused everything else

    def _call(self, node: ast.Call) -> _Value:
        name = bare(dotted(node.func) or "")
        function = FUNCTIONS[name]
        values = [self._expression(argument) for argument in node.args]
        options = {str(k.arg): function.options[str(k.arg)](ast.literal_eval(k.value)) for k in node.keywords}
        if options.pop("axis", 1) != 1:
            raise _Refused(f"{name}() over axis 2 works on lists of lists")
        if name == "clip":
            return self._elementwise("minimum", np.minimum, [self._elementwise("maximum", np.maximum, values[:2]), values[2]])
        if name == "where":
            return self._where(values)
        if function.elementwise or (name in ("min", "max") and len(values) == 2):
            word = _RENAMED.get(name, name)
            return self._elementwise(word, getattr(np, word), values)
        if isinstance(values[0], _Constant) or self.steps[values[0]]["list"] is None:
            raise _Refused(f"{name}() needs a list")
        return self._reduce(name, values, options)

    def _elementwise(self, word: str, call: Callable[..., Any], values: Sequence[_Value]) -> _Value:
        """One ufunc of NumPy."""
        if all(isinstance(value, _Constant) for value in values):
            with np.errstate(all="ignore"):
                try:
                    return _Constant(call(*[value.value for value in values if isinstance(value, _Constant)]))
                except (ArithmeticError, TypeError, ValueError) as error:
                    raise _Refused(str(error)) from error
        try:
            resolved = getattr(np, word).resolve_dtypes((*map(self._dtype, values), None))
        except TypeError as error:
            raise _Refused(str(error).partition("\n")[0]) from error
        loop, result = resolved[:-1], resolved[-1]
        wide = np.dtype("int64")
        if word in _COMPARISONS and loop[0].kind in "iu" and loop[0] != np.dtype("uint64") and all(self._fits(value, wide) for value in values):
            loop = (wide, wide)  # also with a number that the narrower type cannot hold
        if len({dtype.name for dtype in loop}) > 1:
            raise _Refused(f"{word} of {' and '.join(dtype.name for dtype in loop)}")
        if any(dtype.name not in TYPES for dtype in loop):
            raise _Refused(f"NumPy computes {word} in {loop[0].name}")
        if (seen := self._seen(call, values)) != result.name:
            raise _Refused(f"{word} gives {result.name} or {seen}, as NumPy or Awkward computes it")
        if word == "power" and isinstance(values[1], _Constant) and loop[0].kind == "f" and float(values[1].value) in _POWERS:
            word, values, loop = _POWERS[float(values[1].value)], values[:1], loop[:1]
        elif word == "power" and loop[0].kind in "iu" and not (isinstance(values[1], _Constant) and values[1].value >= 0):
            raise _Refused("a power of integers needs a constant exponent from 0")
        return self._step(word, self._operands(values, loop), result.name, self._common(values), **{"as": [dtype.name for dtype in loop]})

    def _where(self, values: Sequence[_Value]) -> _Value:
        if all(isinstance(value, _Constant) for value in values):
            return _Constant(FUNCTIONS["where"].call(*[value.value for value in values if isinstance(value, _Constant)]))
        result = np.dtype(self._seen(FUNCTIONS["where"].call, values))
        condition = np.dtype(bool) if isinstance(values[0], _Constant) else np.dtype(self.steps[values[0]]["type"])
        if isinstance(values[0], _Constant):
            values = [_Constant(bool(values[0].value)), *values[1:]]
        loop = (condition, result, result)
        return self._step("where", self._operands(values, loop), result.name, self._common(values), **{"as": [dtype.name for dtype in loop]})

    def _filter(self, value: _Value, mask: _Value) -> int:
        if isinstance(value, _Constant) or isinstance(mask, _Constant) or self.steps[value]["list"] is None or self.steps[mask]["list"] is None:
            raise _Refused("a subscript needs a list of constituents and a mask of them")
        if self.steps[mask]["type"] != "bool":
            raise _Refused("an index of numbers is not taken, only a mask: nth, sort and sort_desc choose by position and size")
        whole = self._unify(self.steps[value]["list"], self.steps[mask]["list"])
        own = next((k for k, one in enumerate(self._lists) if one.get("where") == mask), None)
        if own is None:
            own = self._list({"of": whole, "where": mask})
        return self._step("filter", [value, mask], self.steps[value]["type"], own, **{"as": [self.steps[value]["type"], "bool"]})

    def _reduce(self, name: str, values: Sequence[_Value], options: Mapping[str, Any]) -> _Value:
        source, step = values[0], self.steps[int(values[0])]  # type: ignore[arg-type]
        own, kind = step["list"], step["type"]
        call = FUNCTIONS[name].call
        if name in ("sort", "sort_desc"):
            return self._step(name, [source], kind, own, **{"as": [kind]})  # type: ignore[list-item]
        if name == "mean":
            count = self._reduce("count", values, {})
            total = self._reduce("sum", values, {})
            some = self._elementwise("greater", operator.gt, [count, _Constant(0)])
            ratio = self._elementwise("divide", operator.truediv, [total, self._where([some, count, _Constant(1)])])
            found = self._where([some, ratio, _Constant(options.get("default", float("nan")))])
            return self._checked(found, lambda x: call(x, **options), values)
        if name == "nth":
            k = values[1]
            if not (isinstance(k, _Constant) and isinstance(k.value, int) and k.value >= 0):
                raise _Refused("nth(x, k) needs a whole number k")
            default = options.get("default", float("nan"))
            type = self._seen(lambda x: call(x, k.value, **options), values[:1])
            return self._step("nth", [source], type, None, **{"as": [kind], "k": k.value, "default": _number(default)})  # type: ignore[list-item]
        if name == "count":
            return self._step("count", [source], "int64", None, over=own)  # type: ignore[list-item]
        if step["op"] in ("sort", "sort_desc") and name != "sum":
            source = step["of"][0]  # the order does not matter
        type = self._seen(lambda x: call(x, **options), values[:1])
        more = {"default": _number(options.get("default", float("nan")))} if name in ("min", "max") else {}
        sums = type if name == "sum" else kind
        return self._step(name, [source], type, None, **{"as": [sums], **more})  # type: ignore[list-item]

    def _checked(self, found: _Value, call: Callable[..., Any], values: Sequence[_Value]) -> _Value:
        """A composition of steps must give what the function gives."""
        seen = self._seen(call, values)
        if isinstance(found, _Constant) or self.steps[found]["type"] != seen:
            raise _Refused(f"it gives {seen}, in a way that has no form here")
        return found

    # types ------------------------------------------------------------------------------------------------------------------------------------------------

    def _dtype(self, value: _Value) -> Any:
        """As `resolve_dtypes` takes it: Python's numbers have no type of their own."""
        if isinstance(value, int):
            return np.dtype(self.steps[value]["type"])
        number = value.value
        return type(number) if type(number) in (int, float) else np.asarray(number).dtype

    def _seen(self, call: Callable[..., Any], values: Sequence[_Value]) -> str:
        """The type that NumPy or Awkward gives for ones of the operands' types."""
        with np.errstate(all="ignore"):
            try:
                found = call(*map(self._ones, values))
                return ragged(found).content.dtype.name if isinstance(found, ak.Array) else np.asarray(found).dtype.name
            except HltTrainError:
                raise
            except (TypeError, ValueError, LookupError, ArithmeticError) as error:
                raise _Refused(str(error).strip().partition("\n")[0]) from error

    def _ones(self, value: _Value) -> Any:
        if isinstance(value, _Constant):
            return value.value
        step = self.steps[value]
        ones = np.ones(2 if step["list"] is None else 3, step["type"])
        return ones if step["list"] is None else ak.unflatten(ones, [1, 2])

    def _common(self, values: Sequence[_Value]) -> int | None:
        found = None
        for value in values:
            own = None if isinstance(value, _Constant) else self.steps[value]["list"]
            if own is not None:
                found = own if found is None else self._unify(found, own)
        return found

    def _operands(self, values: Sequence[_Value], types: Sequence[np.dtype[Any]]) -> list[int]:
        return [self._constant(v.value, dtype) if isinstance(v, _Constant) else v for v, dtype in zip(values, types, strict=True)]

    def _constant(self, number: Any, dtype: np.dtype[Any]) -> int:
        """A constant in the type in which it is used."""
        if not self._fits(_Constant(number), dtype):
            raise _Refused(f"{number} does not fit {dtype.name}")
        with np.errstate(all="ignore"):
            return self._step("constant", [], dtype.name, None, value=_number(np.asarray(number).astype(dtype).item()))

    @staticmethod
    def _fits(value: _Value, dtype: np.dtype[Any]) -> bool:
        """Whether a constant has a place in a type."""
        return isinstance(value, int) or dtype.kind not in "iu" or int(np.iinfo(dtype).min) <= int(value.value) <= int(np.iinfo(dtype).max)

    def _demand(self, step: int, most: int) -> None:
        """Check that of every sorted list no more than `most` leading elements are needed."""
        seen: set[tuple[int, int]] = set()

        def visit(number: int, needed: int) -> None:
            if (number, needed) in seen:
                return
            seen.add((number, needed))
            one = self.steps[number]
            op = one["op"]
            if op in ("sort", "sort_desc"):
                if needed > LONGEST:
                    raise _Refused(f"it needs more than {LONGEST} elements of a sorted list")
                one["most"] = max(one.get("most", 0), needed)
                needed = _ALL
            elif op == "nth":
                needed = one["k"] + 1
            elif op in ("filter", "min", "max", "sum", "any", "all", "count", "object"):
                needed = _ALL
            for source in one["of"]:
                visit(source, needed)

        visit(step, most)


def _number(value: Any) -> bool | int | float | str:
    """A number of JSON; what is not finite is a word."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if np.isfinite(value) else str(float(value))
