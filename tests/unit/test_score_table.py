"""The table of an evaluation, as text and as JSON."""

import json

import pytest

from trainer.sampling.score_table import Column, Table


def test_the_table_shows_changes_in_points():
    columns = Column("base", {"objects": 90.0, "tjtoy": 4.0}), Column("demo", {"objects": 87.5, "tjtoy": 81.26})
    table = Table(columns, {"objects": 200, "tjtoy": 32})
    lines = [line.split() for line in table.text().splitlines()]
    assert lines[0] == ["base", "demo"]
    assert lines[1] == ["right", "object", "(200", "prompts)", "90.0", "87.5", "(-2.5)"]
    assert lines[2][-4:] == ["prompts)", "4.0", "81.3", "(+77.3)"]
    assert len({len(line) for line in table.text().splitlines()[:3]}) == 1
    written = json.loads(json.dumps(table.as_json()))
    assert written["columns"][1]["changes"] == {"objects": -2.5, "tjtoy": pytest.approx(77.26)}


def test_the_table_counts_pictures_of_each_relation_and_names_companions():
    scores = {"companion of tjtoy": 75.0, "both": 50.0}
    columns = Column("base", scores, {"holding": (0, 16)}), Column("demo", scores, {"holding": (13, 16)})
    table = Table(columns, {"companion of tjtoy": 12, "both": 32})
    lines = [line.split("  ") for line in table.text().splitlines()]
    assert lines[1][0] == "right thing next to tjtoy (12 prompts)"
    assert lines[3][0] == "both, holding: images" and [cell.strip() for cell in lines[3] if "of 16" in cell] == [
        "0 of 16",
        "13 of 16",
    ]
    assert table.as_json()["columns"][1]["relations"] == {"holding": {"images": 13, "prompts": 16}}
