"""The names that the direct reader takes, as torch here takes them: a part of the table of torch's
own weights_only unpickler, and what stands for each.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from isoload import manifest
from isoload.torch_facts import Facts, gather

from . import stand_ins
from .stand_ins import Dtype, Kind, Ordered

_TRAINABLE = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")
_ORDINARY = frozenset((
    *_TRAINABLE,
    *("uint8", "int8", "int16", "int32", "int64", "bool", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
))  # fmt: skip
REBUILD = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
)
"""The functions that make tensors: who executes a program brings what stands for them."""

UNTYPED = Kind(manifest.DTYPES.index("uint8"), 1, False)
"""torch.storage.UntypedStorage"""


class Vocabulary:
    """`allowed`: the full names. `table`: what stands for each but those of REBUILD. `kinds`: the
    dtypes that tensors ordinarily have, by name."""

    def __init__(self, facts: Facts) -> None:
        self._modules = facts.modules
        self._names = dict(facts.names)
        self.kinds = {
            name: Kind(manifest.DTYPES.index(name), itemsize, name in _TRAINABLE)
            for name, itemsize in facts.dtypes.items()
            if name in _ORDINARY
        }
        found: dict[str, Any] = {
            "collections.OrderedDict": Ordered,
            "collections.Counter": Counter,
            "builtins.set": set,
            "builtins.complex": complex,
            "builtins.bytearray": stand_ins.byte_array,
            "_codecs.encode": stand_ins.encoded,
            "torch.Size": stand_ins.size,
            "torch.device": stand_ins.device,
            "torch.storage.UntypedStorage": UNTYPED,
        }
        for name, dtype in facts.storages.items():
            if dtype in self.kinds:
                found[f"torch.{name}"] = self.kinds[dtype]
        for name in facts.dtypes:
            found[f"torch.{name}"] = Dtype(name, self.kinds.get(name))
        self.table = {name: held for name, held in found.items() if name in facts.allowed}
        self.allowed = frozenset((*self.table, *facts.allowed.intersection(REBUILD)))

    def mapped(self, module: str, name: str) -> tuple[str, str]:
        """A global as torch looks it up: names of Python 2 are mapped, as torch maps them."""
        if (module, name) in self._names:
            return self._names[(module, name)]
        return self._modules.get(module, module), name

    def full_name(self, module: str, name: str) -> str:
        """The name of a global as torch looks it up."""
        return ".".join(self.mapped(module, name))


@cache
def own_vocabulary() -> Vocabulary:
    """That of the torch that this process has imported."""
    return Vocabulary(gather())
