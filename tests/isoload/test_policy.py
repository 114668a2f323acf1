from __future__ import annotations

import dataclasses
from collections import OrderedDict

import pytest

from isoload import Limits, Policy
from sandbox import DEFAULT_REQUIRED


def test_the_default_policy_is_third_party():
    assert Policy() == Policy.third_party()
    assert Policy().fallback == "full"
    assert Policy().require == DEFAULT_REQUIRED


def test_the_trust_levels_differ_in_their_last_reader():
    assert Policy.strict().fallback == "none"
    assert Policy.upload().fallback == "inert"


def test_a_policy_cannot_be_changed_but_replaced():
    policy = Policy.strict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.fallback = "full"
    assert policy.replace(max_source=5).max_source == 5
    assert policy.replace(limits=Limits(wall=2)).limits.wall == 2


def test_a_layer_is_given_up_only_by_name():
    assert "network" not in Policy(require=DEFAULT_REQUIRED - {"network"}).require
    with pytest.raises(ValueError, match="no such layer: netwrok"):
        Policy(require={"netwrok"})
    with pytest.raises(TypeError, match="collection of layer names"):
        Policy(require="network")


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("fallback", "fully", ValueError),
        ("limits", {"memory": 1}, TypeError),
        ("allow", {"collections.OrderedDict"}, TypeError),
        ("max_source", 0, ValueError),
        ("max_source", 1.5, ValueError),
    ],
)
def test_a_wrong_value_is_refused_when_the_policy_is_made(field, value, error):
    with pytest.raises(error):
        Policy(**{field: value})


def test_allow_takes_classes():
    assert Policy(allow=[OrderedDict]).allow == {OrderedDict}
