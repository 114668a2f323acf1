"""What this version of torch knows, as plain data: for a worker that has not imported it.

Gathered where torch is there, by name only. Nothing here is of a file.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from .manifest import DTYPES


class Facts(msgspec.Struct, frozen=True):
    """`dtypes`: those of `manifest.DTYPES` that torch here has → bytes of an element. `storages`:
    its storage classes, as files name them ("FloatStorage") → the dtype's name.

    `allowed`: the globals that its weights_only unpickler allows; `blocked`: modules of which it
    says something else than that the global is not allowed. `modules` and `names`: how it maps
    those of Python 2 before it looks there (names as pairs of (module, name)).

    `constants`: full names of dtypes, layouts, … → their kind and name in `manifest.Named`.
    `globals`: those of `torch_values.TORCH_GLOBALS` → the word for one in a report."""

    dtypes: dict[str, int]
    storages: dict[str, str]
    allowed: frozenset[str]
    blocked: frozenset[str]
    modules: dict[str, str]
    names: list[tuple[tuple[str, str], tuple[str, str]]]
    constants: dict[str, tuple[str, str]]
    globals: dict[str, str]


@cache
def gather() -> Facts:
    """Of the torch of this process."""
    import torch  # noqa: PLC0415 - who only reads the facts must not import it
    from torch import _weights_only_unpickler  # noqa: PLC0415 - the same
    from torch._utils import IMPORT_MAPPING, NAME_MAPPING  # noqa: PLC0415 - the same

    from .torch_values import TORCH_GLOBALS, torch_constants  # noqa: PLC0415 - it has torch

    dtypes = {name: getattr(torch, name, None) for name in DTYPES}
    kinds = torch.storage._storage_type_to_dtype_map()
    return Facts(
        dtypes={n: dtype.itemsize for n, dtype in dtypes.items() if isinstance(dtype, torch.dtype)},
        storages={name: str(dtype).removeprefix("torch.") for name, dtype in kinds.items()},
        allowed=frozenset(_weights_only_unpickler._get_allowed_globals()),
        blocked=frozenset(_weights_only_unpickler._blocklisted_modules),
        modules=dict(IMPORT_MAPPING),
        names=[*NAME_MAPPING.items()],
        constants=torch_constants(),
        globals={name: _shown(value) for name, value in TORCH_GLOBALS.items()},
    )


def _shown(value: Any) -> str:
    if type(value) is type:
        return f"{value.__module__}.{value.__qualname__}"
    return f"<{type(value).__name__}>"
