"""The node pack's copies of rooms of trainer/, and the tool that makes them."""

from pathlib import Path

from tools.pack_nodes import all_differences, differences, pack


def test_the_copy_in_the_node_pack_is_byte_equal():
    assert not all_differences(), "run make pack"


def test_packing_copies_replaces_and_removes(tmp_path: Path):
    source, copy = tmp_path / "source", tmp_path / "copy"
    for folder in (source, copy):
        folder.mkdir()
    (source / "new.py").write_text("1")
    (source / "same.py").write_text("2")
    (copy / "same.py").write_text("2")
    (copy / "old.py").write_text("3")
    assert pack(source, copy) == ["new.py", "old.py"]
    assert {path.name: path.read_text() for path in copy.iterdir()} == {"new.py": "1", "same.py": "2"}
    assert differences(source, copy) == []
