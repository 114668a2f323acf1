"""Layer "network": there is none, and the worker proves it from inside before it may say READY.

A new network namespace has one link, `lo`, down (network_namespaces(7)). pyroute2's message
classes ask the kernel for links, addresses and routes over a plain netlink socket; its IPRoute
would start an event loop for the same three questions. Policy rules are never empty: not asked.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, ClassVar

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE
from pyroute2.netlink.rtnl import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from sandbox import kernel
from sandbox.layers import Place

try:
    from pyroute2.netlink.marshal import Marshal
except ImportError:  # before pyroute2 0.9
    from pyroute2.netlink.nlsocket import Marshal

_ANSWER_SECONDS = 2.0
_VSOCK_CAVEAT = (
    "this host has a transport for AF_VSOCK, which no network namespace holds back: "
    "a service that listens on it could be reached"
)


def prove_there_is_none(place: Place) -> str:
    """Raises OSError unless the only link is `lo`, down, with no address and no route."""
    links, addresses, routes = _answers()
    names = socket.if_nameindex()
    if names != [(link["index"], "lo") for link in links] or len(links) != 1:
        raise kernel.refused(f"links other than lo: {names}", errno.ENOTUNIQ)
    if links[0]["flags"] & IFF_UP:
        raise kernel.refused("lo is up", errno.ENOTUNIQ)
    if addresses or routes:
        raise kernel.refused("addresses or routes are there", errno.ENOTUNIQ)
    if place.plan.vsock:
        place.record["network"].caveats.append(_VSOCK_CAVEAT)
    return "only lo, down, without address or route (proved by pyroute2)"


def vsock_transport() -> bool:
    """Could a process of this host reach anything by AF_VSOCK? vsock(7)

    Asked by a connect to a port of the host on which nothing listens: ENODEV means no transport.
    """
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as vsock:
            vsock.connect((socket.VMADDR_CID_HOST, 0xFFFFFFFE))
    except OSError as error:
        return error.errno not in {errno.ENODEV, errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES}
    return True


def _request(message: Any, kind: int) -> bytes:
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
    message.encode()
    return bytes(message.data)


_REQUESTS = (
    _request(ifinfmsg(), RTM_GETLINK),
    _request(ifaddrmsg(), RTM_GETADDR),
    _request(rtmsg(), RTM_GETROUTE),
)


class _Link(ifinfmsg):  # type: ignore[misc]  # pyroute2 has no types
    """A link without its forty attributes: to decode them takes a fresh fork a millisecond."""

    nla_map = ()


class _Marshal(Marshal):  # type: ignore[misc]  # the same
    msg_map: ClassVar[dict[int, Any]] = {
        RTM_NEWLINK: _Link,
        RTM_NEWADDR: ifaddrmsg,
        RTM_NEWROUTE: rtmsg,
    }


_MARSHAL = _Marshal()


def _answers() -> list[list[Any]]:
    """The kernel's answers to each of the requests."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_ANSWER_SECONDS)
        netlink.bind((0, 0))
        return [_ask(netlink, request) for request in _REQUESTS]


def _ask(netlink: socket.socket, request: bytes) -> list[Any]:
    netlink.send(request)
    answers: list[Any] = []
    while True:
        for answer in _MARSHAL.parse(netlink.recv(1 << 16)):
            if answer["header"]["type"] == NLMSG_DONE:
                return answers
            if answer["header"]["error"] is not None:
                raise answer["header"]["error"]
            answers.append(answer)


def warm_up() -> None:
    """In the zygote: pyroute2 prepares its message classes at their first use."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_ANSWER_SECONDS)
        _ask(netlink, _REQUESTS[0])
