"""One kernel mechanism a file. This file holds what the layers share: where they stand, and the
record of what each of them got. It knows no mechanism.

A layer is a few steps. A step is a function of `Place` that returns the mechanism in words, or
raises OSError with the name of the refused call in `filename`. `confine.py` has them in order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sandbox.isolation import State

_WORSE = (State.ENFORCED, State.PARTIAL, State.UNAVAILABLE)


@dataclass
class Outcome:
    """What one layer got: the evidence from which the parent explains it."""

    state: State = State.ENFORCED
    mechanisms: list[str] = field(default_factory=list)
    step: str = ""  # the first refused step
    errno: int = 0
    caveats: list[str] = field(default_factory=list)

    def without(self, state: State, step: str, errno: int) -> None:
        if _WORSE.index(state) > _WORSE.index(self.state):
            self.state, self.step, self.errno = state, step, errno


class Record:
    """The outcomes of one worker's layers, by name."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}

    def __getitem__(self, layer: str) -> Outcome:
        return self.outcomes.setdefault(layer, Outcome())

    def encode(self) -> bytes:
        rows = {
            name: [o.state.value, o.mechanisms, o.step, o.errno, o.caveats]
            for name, o in self.outcomes.items()
        }
        return json.dumps(rows, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Record:
        record = cls()
        for name, (state, *rest) in json.loads(data).items():
            record.outcomes[name] = Outcome(State(state), *rest)
        return record


@dataclass(frozen=True)
class Bind:
    """A folder or file of the host that a worker sees, read-only, under the path `inside`."""

    host: str
    inside: str
    folder: bool = True
    device: bool = False


@dataclass(frozen=True)
class Plan:
    """What a zygote found out once, for all its workers."""

    caller: str  # ROOT, DEMOTED or USER
    ids: tuple[int, int]  # the zygote's effective uid and gid
    binds: tuple[Bind, ...]
    links: tuple[tuple[str, str], ...]  # symbolic links inside: (path, target)
    proc: int  # descriptor of the host's /proc
    landlock_abi: int
    address_space: int  # bytes that a worker has mapped before it does anything
    data: int  # bytes of that which RLIMIT_DATA counts
    vsock: bool  # does this host have a transport for AF_VSOCK?


# Who calls: one with real capabilities; root without CAP_SYS_ADMIN, who first becomes nobody;
# anybody else.
ROOT = "root"
DEMOTED = "demoted"
USER = "user"

NOBODY = 65534


@dataclass
class Place:
    """Where a step stands: the plan, the record, and the descriptors of this one worker."""

    plan: Plan
    record: Record
    disabled: frozenset[str]
    channel: int  # to the parent
    spare: bool  # nobody is waiting for this worker yet
    born_in: int  # the namespaces that it was cloned into, as flags of clone(2)
    jail: bool = False  # has the new root been built?
    join: list[int] = field(default_factory=list)  # cgroup.procs files
