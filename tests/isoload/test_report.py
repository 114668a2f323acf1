"""The report and its table, made from nodes: what a hostile worker put into them stays harmless."""

from __future__ import annotations

import json

from isoload import manifest as m
from isoload.listing import list_tensors
from isoload.report import make_report


def graph(nodes, root, storages=1):
    return m.Graph(root, nodes, [m.Storage(m.ABSENT, 0, 64, "cpu")] * storages)


def tensor(*size):
    return m.Tensor(0, m.DTYPES.index("float32"), 0, [*size], [1] * len(size))


def names(graph):
    return [info.name for info in list_tensors(graph)]


def test_a_tensor_is_named_by_the_way_to_it():
    nodes = [tensor(2), "fc", m.Dict([1], [0]), "state_dict", m.Dict([3], [2])]
    (info,) = list_tensors(graph(nodes, 4))
    assert info.to_dict() == {
        "name": "state_dict.fc",
        "dtype": "float32",
        "shape": [2],
        "bytes": 8,
        "location": "cpu",
    }


def test_an_optimizers_numbered_state_reads_as_it_is_numbered():
    nodes = [tensor(2), 7, "exp_avg", m.Dict([2], [0]), m.Dict([1], [3])]
    assert names(graph(nodes, 4)) == ["7.exp_avg"]


def test_the_attributes_of_an_opaque_are_its_own():
    nodes = [tensor(2), "weight", m.Dict([1], [0]), m.Opaque("a.Module", state=2)]
    assert names(graph(nodes, 3)) == ["weight"]


def test_tied_weights_are_listed_under_each_name():
    nodes = [tensor(2), "a", "b", m.Dict([1, 2], [0, 0])]
    assert names(graph(nodes, 3)) == ["a", "b"]


def test_the_parts_of_a_sparse_tensor_are_listed():
    nodes = [tensor(1, 2), tensor(2), m.SparseCoo(0, 1, [3], True)]
    assert names(graph(nodes, 2)) == ["indices", "values"]


def test_a_graph_with_more_paths_than_can_be_walked_makes_a_short_table():
    nodes = [tensor(1)]
    for index in range(60):
        nodes.append(m.List([index, index]))
    assert len(names(graph(nodes, 60))) == 2


def test_a_cycle_ends():
    assert names(graph([m.List([0, 1]), tensor(1)], 0)) == ["1"]


def test_the_workers_text_is_printable_and_short():
    evil = "\x1b]52;c;" + "x" * 100_000 + "\u202e\ud800\r\n"
    reading = m.Reading(
        evil, evil, [m.Attempt(evil, evil, evil, [evil] * 5)] * 5000,
        [evil] * 100_000, [m.Call(evil, evil)] * 5000, [evil] * 5000,
    )  # fmt: skip
    report = make_report(reading, source="model.pt", size=1)
    text = str(report) + json.dumps(report.to_dict(), ensure_ascii=False)
    assert text.replace("\n", "").isprintable()
    assert len(text) < 10_000_000


def test_names_in_the_table_are_printable():
    nodes = [tensor(1), "\x1b[31m\nx", m.Dict([1], [0])]
    (info,) = list_tensors(graph(nodes, 2))
    assert info.name.isprintable()


def test_a_report_of_nothing_still_reads():
    report = make_report(m.Reading("", ""), source="model.pt", size=1)
    assert "none opened it" in str(report)
    assert report.tensors == ()
    assert report.to_dict()["layers"] == {}


def test_globals_are_told_by_kind():
    found = [
        "torch.Size",
        "collections.OrderedDict",
        "numpy.dtype",
        "my.Model",
        "os.system",
    ]
    report = make_report(m.Reading("inert", "zip", globals=found), source="model.pt", size=1)
    assert report.globals_by_kind == {
        "torch": ("torch.Size",),
        "standard library": ("collections.OrderedDict", "os.system"),
        "numpy": ("numpy.dtype",),
        "other": ("my.Model",),
    }
    assert "globals     standard library: collections.OrderedDict, os.system" in str(report)
    assert report.to_dict()["globals_by_kind"]["other"] == ["my.Model"]
