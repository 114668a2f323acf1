"""What a compromised worker may try against its parent: the list that the tests go by.

Each test that attacks a line says so in its docstring: "Line 7: …". `test_security_md.py` checks
that every line has one.
"""

from __future__ import annotations

LINES = {
    1: "shared memory changed after it was checked",
    2: "truncation after mmap: SIGBUS in the parent",
    3: "a descriptor of the wrong kind",
    4: "numbers: offsets, shapes, strides, dtypes, dimensions, alignment, sparse indices",
    5: "a pickle sent as the reply",
    6: "hooks, attributes and subclasses of tensors",
    7: "kill(0), which crosses namespaces by the shared process group",
    8: "inherited descriptors",
    9: "ptrace, process_vm_writev, /proc/PID/mem, pidfd_getfd",
    10: "typing into the terminal (TIOCSTI)",
    11: "multiprocessing's resource tracker and forkserver",
    12: "System V shared memory, keyrings, AF_VSOCK",
    13: "abstract and pathname unix sockets",
    14: "unshare, remount, setns, open_by_handle_at, bpf, io_uring, perf, cgroup files",
    15: "shared open file descriptions",
    16: "set-user-ID programs",
    17: "the parent's heap and environment",
    18: "files of the caller and of other users, argv, /proc",
    19: "core dumps and their handlers",
    20: "stale bytes in shared memory outside any tensor",
    21: "sparse segments",
    22: "memory outside RLIMIT_AS: memory files, tmpfs, pipes, descriptors in flight",
    23: "fork bombs, daemons, and a parent killed in the middle of a load",
    24: "floods of descriptors",
    25: "floods of bytes, lengths of 2^63, trailing bytes, two replies",
    26: "slow replies, and a worker that stops itself",
    27: "decoder bombs",
    28: "CPU time by forking",
    29: "a worker that will not die",
    30: "terminal escapes and megabytes in error text",
    31: "exception names that mean something, such as SystemExit",
    32: "writes to stdout and stderr",
    33: "exit without a reply, a crash after it, pid reuse",
    34: "forged weights: not detectable",
    36: "a thousand hostile loads",
}
