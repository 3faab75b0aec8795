"""ROOT files in, columns out: the only file of this room that imports uproot.

A `Tree` is an open TTree or RNTuple. Its branches are read one range of entries at a time, each branch in a thread of the caller's pool, so that baskets are
decompressed in parallel. Columns are NumPy arrays `[n_entries]` or jagged Awkward arrays.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import numpy as np
import uproot

from hlt_train.data.codecs import branch_codec, page_codecs
from hlt_train.data.probe import probe
from hlt_train.errors import HltTrainError, RunFailed, UsageError, nearest

__all__ = ["Branch", "Cluster", "Column", "Pending", "Tree", "Trees", "file_facts", "open_file", "open_tree", "tree_names"]

Column = Any  # np.ndarray [n_entries] or ak.Array [n_entries, var, ...]

_TREES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple", "ROOT::Experimental::RNTuple")


class Cluster(NamedTuple):
    """A range of entries that is read at once: entries `start` to `stop` of file number `file` of sample number `sample`."""

    sample: int
    file: int
    start: int
    stop: int


class Branch(NamedTuple):
    """What a branch holds: `depth` 0 for a value per entry, 1 for a list, 2 for a list of lists; `dtype` is None when not numeric (strings, objects)."""

    name: str
    depth: int
    dtype: np.dtype[Any] | None
    text: str


class _Pread(uproot.source.chunk.Source):  # type: ignore[misc]  # uproot is not typed
    """uproot's view of a local file, by `pread`: any thread may read at any time, and a file costs one descriptor.

    uproot's own sources keep a thread per file (and the memory of its allocator), or map the file, whose pages then count as the program's memory.
    """

    def __init__(self, file_path: str, **_options: Any) -> None:
        super().__init__()
        self._file_path = file_path
        self._descriptor = os.open(file_path, os.O_RDONLY)
        self._num_bytes = os.fstat(self._descriptor).st_size

    def chunk(self, start: int, stop: int) -> Any:
        """Read one range now."""
        if self.closed:
            raise OSError(f"file is closed: {self._file_path}")
        content = os.pread(self._descriptor, stop - start, start)
        return uproot.source.chunk.Chunk(self, start, stop, uproot.source.futures.TrivialFuture(content))

    def chunks(self, ranges: list[tuple[int, int]], notifications: queue.Queue[Any]) -> list[Any]:
        """Read several ranges now."""
        found = []
        for start, stop in ranges:
            found.append(self.chunk(start, stop))
            notifications.put(found[-1])
        return found

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._descriptor < 0

    def __enter__(self) -> _Pread:  # noqa: PYI034  the run-time checks of the tests do not know Self here
        return self

    def __exit__(self, *_: object) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_file(path: str) -> Any:
    """Open a ROOT file, or say what is wrong with it: missing, empty, text, a git-LFS pointer, truncated, damaged."""
    local = "://" not in path
    if local:
        probe(Path(path))
    options: dict[str, Any] = {"handler": _Pread} if local else {}
    try:
        return uproot.open(path, object_cache=None, array_cache=None, **options)
    except HltTrainError:
        raise
    except Exception as error:  # uproot raises a dozen types for damaged bytes and unreachable servers
        raise RunFailed(f"cannot open the ROOT file: {_first_line(error)}", where=path, then="copy the file again; if it opens in ROOT, report this") from error


def tree_names(file: Any) -> list[str]:
    """Names of the TTrees and RNTuples of an open file, with their directories, without cycle numbers."""
    return [name for name, kind in file.classnames(recursive=True, cycle=False).items() if kind in _TREES]


def file_facts(file: Any) -> dict[str, Any]:
    """UUID, compression setting (which baskets need not follow), origin, and kind, entries and branches of every tree of an open file."""
    kinds = file.classnames(recursive=True, cycle=False)
    trees = []
    for name in tree_names(file):
        tree = Tree(file.file_path, name, file, owner=False)
        trees.append({"name": name, "kind": tree.kind, "title": tree.title, "entries": tree.entries, "branches": len(tree.names)})
    origin = str(file["origin"]) if kinds.get("origin") == "TObjString" else None
    others = sorted({kind for kind in kinds.values() if kind not in _TREES and kind != "TDirectory"})
    return {"uuid": str(file.file.uuid), "compression": str(file.file.compression), "origin": origin, "trees": trees, "other_objects": others}


def open_tree(path: str, tree: str | None) -> Tree:
    """Open `tree` of a file; without a name, `Events` or the only tree there is.

    Raises:
        UsageError: not a ROOT file, no tree, no tree of that name, or an open choice.
        RunFailed: truncated or damaged.
    """
    file = open_file(path)
    try:
        names = tree_names(file)
        return Tree(path, _choose(path, names, tree), file)
    except BaseException:
        file.close()
        raise


def _choose(path: str, names: list[str], tree: str | None) -> str:
    if not names:
        raise UsageError("the file holds no tree", where=path, then=f"hlt-train inspect {path}")
    wanted = tree or "Events"
    found = [n for n in names if n == wanted] or [n for n in names if n.rpartition("/")[2] == wanted]
    if tree is None and not found and len(names) == 1:
        found = names
    if len(found) == 1:
        return found[0]
    if tree is not None and not found:
        raise UsageError(f"no tree '{tree}'", where=path, near=nearest(tree, names) or names[:8], then="name one of them in the card: 'tree: NAME'")
    raise UsageError("the choice of the tree is open", where=path, near=found or names[:8], then="name one of them in the card: 'tree: NAME'")


class Tree:
    """An open tree.

    Attributes:
        path, name: where it is.
        uuid: of the file.
        entries: how many.
        names: its branches, in the file's order.
    """

    def __init__(self, path: str, name: str, file: Any, *, owner: bool = True) -> None:
        self.path = path
        self.name = name
        self._file = file
        held = [file]
        self._finalizer = weakref.finalize(self, _release, held) if owner else None
        try:
            self._tree = file[name]
            held.append(self._tree)
            self.uuid = str(file.file.uuid)
            self.entries = int(self._tree.num_entries)
            self._rntuple = not isinstance(self._tree, uproot.TTree)
            # The recursive keys of an RNTuple with a thousand fields take seconds; its sub-fields are found by name when one is asked for.
            # `_collection<N>` are uproot's names for nameless fields behind the lists of an RNTuple.
            names = (
                [n for n in self._tree.keys(recursive=False) if not n.startswith("_collection")]
                if self._rntuple
                else self._tree.keys(full_paths=False, ignore_duplicates=True)
            )
        except Exception as error:
            raise RunFailed(f"cannot read tree '{name}': {_first_line(error)}", where=path, then="copy the file again") from error
        self.names: tuple[str, ...] = tuple(names)
        self._set = frozenset(self.names)
        self._branches: dict[str, Branch] = {}

    def __contains__(self, name: str) -> bool:
        if name in self._set:
            return True
        if self._rntuple and "." in name and name.partition(".")[0] in self._set:
            with contextlib.suppress(KeyError):
                return self._tree[name] is not None
        return False

    def close(self) -> None:
        """Close the file. The tree cannot be used afterwards."""
        if self._finalizer is not None:
            self._finalizer()

    def branch(self, name: str) -> Branch:
        """Type of a branch, which must be there."""
        if name not in self._branches:
            self._branches[name] = self._describe(name)
        return self._branches[name]

    def _describe(self, name: str) -> Branch:
        item = self._tree[name]
        text = str(item.typename)
        try:
            if self._rntuple:
                form = item.array(entry_start=0, entry_stop=0, array_cache=None).layout.form
            else:
                form = item.interpretation.awkward_form(self._file.file)
        except Exception:  # noqa: BLE001  whatever uproot cannot interpret is reported as its type, and refused only when the card asks for it
            return Branch(name, 0, None, text)
        return Branch(name, *_form(form), text)

    @property
    def kind(self) -> str:
        """TTree or RNTuple."""
        return "RNTuple" if self._rntuple else "TTree"

    @property
    def title(self) -> str:
        """Title of a TTree."""
        return "" if self._rntuple else str(self._tree.title)

    def codec(self, name: str) -> str:
        """Codec of a branch of a TTree, from its basket's bytes."""
        return branch_codec(self._tree[name], Path(self.path))

    def page_codecs(self) -> dict[str, int]:
        """Codec -> number of columns, of an RNTuple."""
        return page_codecs(self._tree, Path(self.path))

    def offsets(self, names: Sequence[str]) -> list[int]:
        """Entries at which every one of these branches starts a new basket (TTree) or a cluster starts (RNTuple), from 0 to `entries`."""
        if self._rntuple:
            starts = {int(c.num_first_entry) for c in self._tree.cluster_summaries}
        else:
            starts = {0}
            lists = [set(self._tree[name].entry_offsets) for name in names]
            if lists:
                starts = set.intersection(*lists)
        return sorted({0, self.entries, *(s for s in starts if 0 < s < self.entries)})

    def submit(self, names: Sequence[str], start: int, stop: int, pool: Executor) -> Pending:
        """Start reading entries `start` to `stop` of these branches in `pool`."""
        return Pending(self, start, stop, {name: pool.submit(self._array, name, start, stop) for name in names})

    def _array(self, name: str, start: int, stop: int) -> Column:
        array = self._tree[name].array(entry_start=start, entry_stop=stop, array_cache=None, library="ak")
        if len(array) != stop - start:
            raise ValueError(f"{len(array)} entries came back where {stop - start} were asked for")
        return ak.to_numpy(array) if array.layout.is_numpy and array.ndim == 1 else array


class Pending(NamedTuple):
    """Columns on their way."""

    tree: Tree
    start: int
    stop: int
    futures: Mapping[str, Future[Any]]

    def result(self) -> dict[str, Column]:
        """Wait for the columns; damaged bytes are an error that names the branch and the entries."""
        columns = {}
        for name, future in self.futures.items():
            try:
                columns[name] = future.result()
            except Exception as error:
                raise RunFailed(
                    f"cannot read branch '{name}': {_first_line(error)}",
                    where=f"{self.tree.path}, tree '{self.tree.name}', entries {self.start} to {self.stop}",
                    then="the file is damaged or truncated: copy it again",
                ) from error
        return columns


class Trees:
    """Keeps the trees used last open: opening one with a thousand branches takes a quarter of a second, keeping it 12 MB. Thread-safe.

    Args:
        branches, files: at most so many in sum (always one file), some 150 MB.
    """

    def __init__(self, branches: int = 12_000, files: int = 16) -> None:
        self._branches = branches
        self._files = files
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str | None], Tree] = OrderedDict()

    def get(self, path: str, tree: str | None) -> Tree:
        """The tree, opened now or before."""
        with self._lock:
            key = (path, tree)
            if key not in self._open:
                self._open[key] = open_tree(path, tree)
                # Not closed here: a pending read may still use it. Its file closes when the last reference goes.
                while len(self._open) > self._files or (len(self._open) > 1 and sum(len(t.names) for t in self._open.values()) > self._branches):
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for tree in self._open.values():
                tree.close()
            self._open.clear()


def _release(held: list[Any]) -> None:
    """Close a file and take its objects apart: they refer to each other in circles, and would stay in memory until a garbage collection."""
    file, *trees = held
    file.close()
    for tree in trees:
        stack = [tree]
        while stack:
            item = stack.pop()
            if isinstance(item, uproot.TTree | uproot.TBranch):
                stack += item.branches
            vars(item).clear()


def _form(form: Any) -> tuple[int, np.dtype[Any] | None]:
    depth = 0
    while True:
        if form.parameters.get("__array__") in ("string", "bytestring"):
            return depth, None
        if form.is_list:
            depth += 1
            form = form.content
        elif form.is_numpy:
            primitive = np.dtype(form.primitive)
            return depth + len(form.inner_shape), primitive if primitive.kind in "biuf" else None
        else:
            return depth, None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
