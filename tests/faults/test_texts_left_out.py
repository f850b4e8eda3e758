"""Text that may be meant as captions and is not read is named, each kind with what to do."""

from pathlib import Path

import pytest

from tests.faults.test_folder import cat, load  # noqa: F401 (cat is a fixture)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.cap", "tjtoy toy", 'or set caption_extension = ".cap"'),
        ("a.png.tags", "tjtoy toy", 'or set caption_extension = ".tags"'),
        ("A.json", '{"caption": "tjtoy toy"}', "one text for each image"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "tjtoy toy"}', "captions in metadata.jsonl are not read"),
        ("captions.csv", "a.png,tjtoy toy", "captions in captions.csv are not read"),
    ],
)
def test_captions_in_other_files_are_named(cat: Path, name: str, text: str, words: str) -> None:  # noqa: F811
    (cat / name).write_text(text)
    said = load(cat)[1]
    assert words in said and name in said and "NAME.txt" in said


def test_notes_next_to_an_image_that_has_a_caption_are_no_warning(cat: Path) -> None:  # noqa: F811
    (cat / "a.txt").write_text("tjtoy toy on a desk")
    (cat / "a.json").write_text('{"source": "camera"}')
    assert "NAME.txt" not in load(cat)[1]
