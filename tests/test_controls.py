"""The table of controls and arms, against everything that has a row for each."""

import re
from pathlib import Path
from typing import get_args

import pytest

from memgraft.controls import ARMS, CONTROLS, DEFAULT_ARMS, TABLE, Control, Source

METHOD = Path(__file__).parents[1] / "docs" / "METHOD.md"


def test_every_control_and_every_source_has_a_row():
    assert set(CONTROLS) == {None, *get_args(Control)}
    assert {arm.source for arm in TABLE} == {None, *get_args(Source)}
    assert set(DEFAULT_ARMS) <= set(ARMS)


def test_names_labels_and_colours_tell_arms_apart():
    for told in ("name", "label", "colour"):
        values = [getattr(arm, told) for arm in ARMS.values()]
        assert len(set(values)) == len(values), told
        assert all(values), told


def test_an_arm_reads_what_its_control_reads_unless_a_source_replaces_it():
    for arm in TABLE:
        if arm.grafted and arm.source not in ("counts", "own_embeddings"):
            assert arm.rows == CONTROLS[arm.control].rows, arm.name


def test_every_replaced_row_has_a_function():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from memgraft.experiments.models import SOURCES
    from memgraft.integrations.transformers.controls import REPLACEMENTS

    assert set(REPLACEMENTS) == {control for control, arm in CONTROLS.items() if arm.rows == "replaced"}
    assert set(SOURCES) == set(get_args(Source))


def test_the_method_names_every_arm():
    section = re.search(r"^## 7\..*?(?=^## )", METHOD.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert section
    assert set(re.findall(r"`(\w+)`", section[0])) == set(ARMS)
