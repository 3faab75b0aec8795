"""In the tests every annotated function of the package checks what it gets and gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import optax
import pytest
from beartype.roar import BeartypeCallHintParamViolation

from hlt_train.files import sha256
from hlt_train.strategies import Setup
from hlt_train.strategies.sync import sync
from hlt_train.transports.dealing import Deal


def test_functions_methods_and_inner_functions_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert len(sha256(file)) == 64
    wrong: Any = cast(Any, [1])
    rule = sync(Setup(1, optax.constant_schedule(0.1), optax.sgd, portions=0))
    for call in (lambda: sha256(wrong), lambda: Deal([]).skip(wrong), lambda: rule.init_worker({}, wrong)):
        with pytest.raises(BeartypeCallHintParamViolation):
            call()
