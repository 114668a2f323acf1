"""The order in which a fresh worker is confined. Read this page first.

The worker does it all to itself, trusted until it is done: it is cloned as the first process of a
new pid namespace (`namespaces.at_birth`), makes the other namespaces and its new root, and gives up
what is left. Only then does it say READY, and only then does the parent, if every required layer is
there, send it a request.

A step that the kernel refuses never stops the list: the record says what the layer is without it,
and the parent decides. So one run tells all that a host lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sandbox.isolation import State
from sandbox.layers import (
    Place,
    descriptors,
    filesystem,
    landlock,
    namespaces,
    network,
    privileges,
    rlimits,
)


@dataclass(frozen=True)
class Step:
    layer: str
    apply: Callable[[Place], str]  # returns the mechanism in words, or ""; raises OSError
    without: State = State.UNAVAILABLE  # what the layer is where this step is refused


STEPS = (
    Step("descriptors", descriptors.keep_only_own),
    Step("descriptors", descriptors.own_session),
    Step("cgroup", namespaces.join_cgroup),
    Step("user", namespaces.user_for_unprivileged),
    Step("filesystem", namespaces.mount),
    Step("network", namespaces.network),
    Step("process", namespaces.ipc),
    Step("process", namespaces.uts),
    Step("process", namespaces.pid),
    Step("filesystem", filesystem.build_root),
    Step("process", namespaces.cgroup, without=State.ENFORCED),
    Step("network", network.prove_there_is_none),
    Step("rlimits", rlimits.first_for_the_oom_killer, without=State.ENFORCED),
    Step("user", privileges.become_nobody),
    Step("user", namespaces.user_for_root, without=State.PARTIAL),
    Step("user", namespaces.switch_off_nested, without=State.ENFORCED),
    Step("filesystem", filesystem.enter_jail),
    Step("user", namespaces.prove_no_nested, without=State.PARTIAL),
    Step("privileges", privileges.own_keyring, without=State.ENFORCED),
    Step("privileges", privileges.no_new_privileges),
    Step("landlock", landlock.restrict),
    Step("rlimits", rlimits.never_needed),
    Step("privileges", privileges.no_capabilities),
    Step("privileges", privileges.not_dumpable),
    Step("privileges", privileges.no_executable_writes, without=State.ENFORCED),
    Step("descriptors", descriptors.keep_only_channel),
)

DISABLED = "disabled"


def confine(place: Place) -> None:
    """Take each step in order, and record what it gave."""
    for step in STEPS:
        outcome = place.record[step.layer]
        if step.layer in place.disabled:
            outcome.without(State.UNAVAILABLE, DISABLED, 0)
            continue
        try:
            mechanism = step.apply(place)
        except OSError as error:
            call = str(error.filename or step.apply.__name__)
            outcome.without(step.without, call, error.errno or 0)
            if step.without is State.ENFORCED:
                outcome.caveats.append(f"{call}: {error.strerror}")
        except NotImplementedError as error:  # a call without a number in `kernel`
            outcome.without(step.without, str(error), 0)
        else:
            if mechanism:
                outcome.mechanisms.append(mechanism)
