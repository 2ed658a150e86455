"""Configs validate at the door and survive JSON."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from memgraft import _core
from memgraft.config import CONTROLS, MAX_ORDER, MAX_VOCAB_SIZE, Control, FallbackConfig, GraftConfig
from memgraft.errors import ConfigError


@pytest.mark.parametrize(
    "config",
    [
        GraftConfig(sites=(1,)),
        GraftConfig(
            sites=[0, 4], taps=[8, 8], gate="signed_sqrt", conv=False, fallback=None, control="shuffled", seed=9
        ),
        GraftConfig(
            sites=(1, 12),
            fallback=FallbackConfig(orders=[1, 4], table_size=[10, 20], dim=8, num_heads=2, compress=False),
            eos_token_id=(1, 2),
            init="scratch",
        ),
    ],
)
def test_round_trip(config: GraftConfig) -> None:
    assert GraftConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["format_version"] == 1
    assert hash(config) == hash(GraftConfig.from_json(config.to_json()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sites": ()}, "sites must be"),
        ({"sites": (3, 1)}, "ascending"),
        ({"sites": (-1,)}, "block numbers"),
        ({"sites": (1,), "taps": (1, 2)}, "each of the 1 sites"),
        ({"sites": (1,), "gate": "relu"}, "gate must be one of"),
        ({"sites": (1,), "init": "ones"}, "init must be one of"),
        ({"sites": (1,), "control": "none"}, "control must be"),
        ({"sites": (1,), "conv": 1}, "conv must be a bool"),
        ({"sites": (1,), "conv_kernel": 1}, "conv_kernel"),
        ({"sites": (1,), "seed": -1}, "seed"),
        ({"sites": (1,), "init_std": 0}, "init_std"),
        ({"sites": (1,), "streams": 0}, "streams"),
        ({"sites": (1,), "fallback": {"dim": 8}}, "FallbackConfig or None"),
        ({"sites": (1,), "control": "fallback_only", "fallback": None}, "needs a fallback"),
        ({"sites": (1,), "eos_token_id": "eos"}, "eos_token_id"),
        ({"sites": (1,), "eos_token_id": True}, "eos_token_id"),
    ],
)
def test_wrong_graft_config(fields, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GraftConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"orders": ()}, "fallback.orders"),
        ({"orders": (3, 2)}, "ascending"),
        ({"orders": (2, 17)}, "1..16"),
        ({"num_heads": 0}, "num_heads"),
        ({"dim": 10, "num_heads": 4}, "multiple of num_heads=4"),
        ({"table_size": (5,)}, "each of the 2 orders"),
        ({"table_size": 1}, "from 2 up"),
        ({"compress": "yes"}, "compress must be a bool"),
        ({"pad_token_id": -1}, "pad_token_id"),
    ],
)
def test_wrong_fallback_config(fields, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FallbackConfig(**fields)


def test_wrong_json() -> None:
    good = GraftConfig(sites=(1,)).to_dict()
    with pytest.raises(ConfigError, match="format_version must be 1, found 2"):
        GraftConfig.from_dict({**good, "format_version": 2})
    with pytest.raises(ConfigError, match="unknown fields in the graft config: gates"):
        GraftConfig.from_dict({**good, "gates": 1})
    with pytest.raises(ConfigError, match="unknown fields in the fallback config: head"):
        GraftConfig.from_dict({**good, "fallback": {"head": 1}})
    with pytest.raises(ConfigError, match="not JSON"):
        GraftConfig.from_json("{")
    with pytest.raises(ConfigError, match="JSON object"):
        GraftConfig.from_json("[]")
    with pytest.raises(ConfigError, match="incomplete graft config"):
        GraftConfig.from_dict({"format_version": 1})


def test_every_control_has_facts() -> None:
    assert set(CONTROLS) == {None, *get_args(Control)}
    built = {control: GraftConfig(sites=(1,), control=control) for control in get_args(Control)}
    assert [control for control, config in built.items() if config.row_source == "bank"] == ["no_fallback", "no_memory"]


def test_controls_decide_what_is_built() -> None:
    assert GraftConfig(sites=(1,)).active_fallback is not None
    assert GraftConfig(sites=(1,), control="no_fallback").active_fallback is None
    assert GraftConfig(sites=(1,)).conv_reach == 9
    assert GraftConfig(sites=(1,), conv=False).conv_reach == 0


def test_limits_are_the_cores():
    assert (MAX_ORDER, MAX_VOCAB_SIZE) == (_core.MAX_ORDER, _core.MAX_VOCAB_SIZE)
