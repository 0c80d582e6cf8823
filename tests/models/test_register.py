"""The table of methods: what is read from signatures, and a method of one's own from training to loading."""

from __future__ import annotations

import json

import pytest

import simco_zoo
from simco_zoo.models.methods import METHODS, argument_help, method_arguments

# method_config as JSON before it was read from the signatures; published configurations have these bytes
GOLDEN = {
    "simco": '{"temperature": 0.1, "symmetric": true, "joint_bn": true, "proj_hidden_dim": 128, "proj_dim": 128, '
    '"dt_m": 10.0}',
    "simmoco": '{"temperature": 0.1, "symmetric": false, "joint_bn": true, "proj_hidden_dim": 128, "proj_dim": 128, '
    '"momentum": 0.99, "dt_m": 10.0}',
    "mocov1": '{"temperature": 0.07, "symmetric": false, "joint_bn": true, "proj_hidden_dim": null, "proj_dim": 128, '
    '"momentum": 0.99, "queue_size": 4096, "bn_splits": 1}',
    "mocov2": '{"temperature": 0.1, "symmetric": false, "joint_bn": true, "proj_hidden_dim": 128, "proj_dim": 128, '
    '"momentum": 0.99, "queue_size": 4096, "bn_splits": 1}',
}


@pytest.mark.parametrize("method", GOLDEN)
def test_method_config_keeps_its_bytes(method):
    model = simco_zoo.create_model(method, backbone="test_resnet")
    assert json.dumps(model.method_config()) == GOLDEN[method]


def test_method_config_has_the_arguments_that_were_given():
    model = simco_zoo.create_model("mocov1", backbone="test_resnet", queue_size=7, temperature=0.5)
    config = model.method_config()
    assert (config["queue_size"], config["temperature"], config["proj_hidden_dim"]) == (7, 0.5, None)


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_is_documented_and_typed(method):
    arguments, texts = method_arguments(METHODS[method].cls), argument_help(METHODS[method].cls)
    for name, parameter in arguments.items():
        assert texts.get(name), f"{method} does not document {name}"
        assert not isinstance(parameter.annotation, str)
    assert method_arguments(METHODS["mocov1"].cls)["temperature"].default == 0.07


def test_an_argument_of_another_method():
    with pytest.raises(
        ValueError, match=r"mocov2 has no argument dt_m \(simco and simmoco have it\); its arguments are"
    ):
        simco_zoo.create_model("mocov2", backbone="test_resnet", dt_m=5.0)
    with pytest.raises(ValueError, match=r"simco has no argument queue_size \(mocov1 and mocov2 have it"):
        simco_zoo.create_model("simco_r18_025", queue_size=5)
