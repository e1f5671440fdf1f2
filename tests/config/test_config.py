"""Configurations reject invalid values, name the field, and survive JSON."""

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import basic_net

from dmnn_convert import ArgumentError, DynamizeConfig, GateConfig, dynamize

counts = st.integers(1, 10_000)
gate_configs = st.builds(
    GateConfig,
    hidden=counts,
    tau=st.floats(0, 1e6, exclude_min=True),
    init_rate=st.floats(0, 1, exclude_min=True, exclude_max=True),
    chained=st.booleans(),
    certainty=st.just(0) | st.floats(0.5, 1, exclude_min=True, exclude_max=True),
)
configs = st.builds(
    DynamizeConfig,
    N=counts | st.dictionaries(st.text(), counts, min_size=1, max_size=4),
    split=st.sampled_from(["matched", "exact"]),
    gate=gate_configs,
    input_size=st.lists(counts, min_size=1, max_size=4).map(tuple),
    blocks=st.none() | st.lists(st.text(), max_size=4).map(tuple),
    num_categories=st.none() | counts,
    tail_norm=st.sampled_from(["per-sub-block", "shared"]),
    order=st.sampled_from(["source", "importance"]),
)


def test_defaults_are_the_papers():
    assert GateConfig() == GateConfig(hidden=32, tau=1.0, init_rate=0.9, chained=True)
    config = DynamizeConfig()
    assert (config.N, config.split, config.input_size) == (2, "matched", (3, 224, 224))
    assert config.blocks is None
    assert config.num_categories is None
    assert (config.order, config.gate.certainty) == ("source", 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("hidden", value) for value in (0, -1, 1.5, "32", None, True)),
        *(("tau", value) for value in (0, -1.0, float("nan"), float("inf"), "1", None, True)),
        *(("init_rate", value) for value in (0, 1, -0.1, 1.1, float("nan"), "0.9", None, True)),
        *(("chained", value) for value in (1, 0, "yes", None)),
        *(("certainty", value) for value in (0.5, 0.1, 1, -0.9, 1.5, float("nan"), "0.9", None)),
    ],
)
def test_bad_gate_fields_are_named(field, value):
    with pytest.raises(ArgumentError, match=f"{field}={value!r}"):
        GateConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("N", value) for value in (0, -2, 2.0, "2", None, True)),
        *(("N", value) for value in ({}, {"*": 0}, {"*": -1}, {"*": True}, {"*": "2"}, {1: 2})),
        *(("split", value) for value in ("paper", "", None, 1)),
        *(("gate", value) for value in (None, {"hidden": 32})),
        *(("input_size", value) for value in ((), (3, 0, 4), (3, 2.0), 224, "abc", None)),
        *(("blocks", value) for value in ("layer1.0", (1, 2), 3)),
        *(("num_categories", value) for value in (0, -1, 1.5, "20", True)),
        *(("tail_norm", value) for value in ("own", "", None, True)),
        *(("order", value) for value in ("random", "", None, True)),
    ],
)
def test_bad_conversion_fields_are_named(field, value):
    with pytest.raises(ArgumentError, match=rf"{field}="):
        DynamizeConfig(**{field: value})


@pytest.mark.parametrize(
    "options",
    [{"N": 0}, {"split": "paper"}, {"input_size": 224}, {"tail_norm": "own"}, {"order": "random"}],
)
def test_dynamize_rejects_what_the_configuration_rejects(options):
    with pytest.raises(ArgumentError, match=rf"{next(iter(options))}="):
        dynamize(basic_net(), **options)


def test_without_a_word_on_tail_norms_each_sub_block_has_its_own():
    older = {k: v for k, v in DynamizeConfig(N=3).to_dict().items() if k != "tail_norm"}
    assert DynamizeConfig.from_dict(older) == DynamizeConfig(N=3, tail_norm="per-sub-block")


def test_without_a_word_on_order_and_certainty_there_is_none():
    older = DynamizeConfig(N=3).to_dict()
    del older["order"], older["gate"]["certainty"]
    assert DynamizeConfig.from_dict(older) == DynamizeConfig(N=3)


def test_lists_of_sizes_and_names_become_tuples():
    config = DynamizeConfig(input_size=[3, 8, 8], blocks=["a", "b"])
    assert config.input_size == (3, 8, 8)
    assert config.blocks == ("a", "b")


def test_a_mapping_of_numbers_is_copied_and_keeps_its_order():
    given = {"layer2.*": 2, "*": 0, "layer3.*": 4}
    config = DynamizeConfig(N=given)
    given["layer4.*"] = 4
    assert list(config.N.items()) == [("layer2.*", 2), ("*", 0), ("layer3.*", 4)]
    again = DynamizeConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert list(again.N.items()) == list(config.N.items())
    assert len({config, again}) == 1


def test_is_frozen():
    with pytest.raises(FrozenInstanceError):
        DynamizeConfig().N = 3
    with pytest.raises(FrozenInstanceError):
        GateConfig().tau = 2.0


@pytest.mark.slow
@settings(deadline=None)
@given(configs)
def test_survives_json(config):
    assert DynamizeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("values", [{"n": 2}, {"gate": {"temperature": 1.0}}])
def test_unknown_fields_are_named_with_the_known_ones(values):
    with pytest.raises(ArgumentError, match=r"unknown fields \['(n|temperature)'\].*known are"):
        DynamizeConfig.from_dict(values)


@pytest.mark.parametrize(
    "values", [{"N": 0}, {"gate": {"tau": -1}}, {"gate": 3}, {"input_size": 3}, {"blocks": 3}]
)
def test_values_out_of_range_are_rejected_from_json_too(values):
    with pytest.raises(ArgumentError):
        DynamizeConfig.from_dict(values)
