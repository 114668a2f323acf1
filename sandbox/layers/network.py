"""Layer "network": there is none, and the worker proves it from inside before it may say READY.

A new network namespace has one link, `lo`, down (network_namespaces(7)). pyroute2's message
classes ask the kernel for links, addresses and routes over a plain netlink socket; its IPRoute
would start an event loop for the same three questions. Policy rules are never empty: not asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE
from pyroute2.netlink.rtnl import RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from sandbox import kernel
from sandbox.layers import Place

_ANSWER_SECONDS = 2.0
_VSOCK_CAVEAT = (
    "this host has a transport for AF_VSOCK, which no network namespace holds back: "
    "a service that listens on it could be reached"
)


def prove_there_is_none(place: Place) -> str:
    """Raises OSError unless the only link is `lo`, down, with no address and no route."""
    with _netlink() as netlink:
        links = _dump(netlink, ifinfmsg(), RTM_GETLINK)
        addresses = _dump(netlink, ifaddrmsg(), RTM_GETADDR)
        routes = _dump(netlink, rtmsg(), RTM_GETROUTE)
    names = [link.get_attr("IFLA_IFNAME") for link in links]
    if names != ["lo"] or socket.if_nameindex() != [(links[0]["index"], "lo")]:
        raise kernel.refused(f"links other than lo: {names}", errno.ENOTUNIQ)
    if links[0]["flags"] & IFF_UP:
        raise kernel.refused("lo is up", errno.ENOTUNIQ)
    if addresses or routes:
        raise kernel.refused("addresses or routes are there", errno.ENOTUNIQ)
    if place.plan.vsock:
        place.record["network"].caveats.append(_VSOCK_CAVEAT)
    return "only lo, down, without address or route (proved by pyroute2)"


def warm_up() -> None:
    """In the zygote: pyroute2 prepares its message classes at their first use."""
    with _netlink() as netlink:
        for request, kind in ((ifinfmsg(), RTM_GETLINK), (ifaddrmsg(), RTM_GETADDR)):
            _dump(netlink, request, kind)
        rtmsg().encode()


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


@contextlib.contextmanager
def _netlink() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_ANSWER_SECONDS)
        netlink.bind((0, 0))
        yield netlink


def _dump(netlink: socket.socket, request: Any, kind: int) -> list[Any]:
    request["header"]["type"] = kind
    request["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
    request["header"]["pid"] = os.getpid()
    request.encode()
    netlink.send(request.data)
    answers: list[Any] = []
    while True:
        for answer in MarshalRtnl().parse(netlink.recv(1 << 16)):
            if answer["header"]["type"] == NLMSG_DONE:
                return answers
            if answer["header"]["error"] is not None:
                raise answer["header"]["error"]
            answers.append(answer)
