"""TOML files: the line of each key, and messages that say how to fix what is not TOML."""

from pathlib import Path

import pytest

from trainer.common.problems import Problems
from trainer.common.utf8 import read_utf8
from trainer.config.toml_file import read_toml

TEXT = '''
[general]
keep_tokens = 2

[[datasets]]
resolution = 512
note = """
[not.a.header]
fake = 1
"""
  [[datasets.subsets]]  # first
  image_dir = "a"

  [[datasets.subsets]]
  image_dir = "b"
  custom_attributes.diff_output_preservation = true

[[datasets]]
subsets = [
  { image_dir = "c" },
]
'''


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_key_has_its_line(tmp_path: Path) -> None:
    file = read_toml(write(tmp_path, TEXT))
    line_of = {line.strip(): number for number, line in enumerate(TEXT.splitlines(), start=1)}
    second = ("datasets", 0, "subsets", 1)
    assert file.lines["general", "keep_tokens"] == line_of["keep_tokens = 2"]
    assert file.lines["datasets", 0, "resolution"] == line_of["resolution = 512"]
    assert file.lines["datasets", 0, "subsets", 0, "image_dir"] == line_of['image_dir = "a"']
    assert file.lines[*second, "image_dir"] == line_of['image_dir = "b"']
    assert (*second, "custom_attributes", "diff_output_preservation") in file.lines
    assert not any("fake" in place or "not" in place for place in file.lines)


def test_a_key_without_a_line_of_its_own_is_at_its_table(tmp_path: Path) -> None:
    file = read_toml(write(tmp_path, TEXT))
    line = TEXT.splitlines().index("subsets = [") + 1
    assert file.where("datasets", 1, "subsets", 0, "image_dir") == f"{file.path}:{line}"
    assert file.where("absent") == str(file.path)


@pytest.mark.parametrize(
    ("text", "line", "column"), [("a = 1\nb = = 2\n", 2, 5), ("[general\n", 1, 9), ('a = """open', 1, 12)]
)
def test_bad_syntax_names_line_and_column(tmp_path: Path, text: str, line: int, column: int) -> None:
    path = write(tmp_path, text)
    with pytest.raises(Problems) as caught:
        read_toml(path)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:{line}:{column}"


def test_text_that_is_not_utf8_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(Problems, match="not UTF-8"):
        read_toml(write(tmp_path, b"a = '\xff'"))
    with pytest.raises(Problems, match="no such file"):
        read_toml(tmp_path / "absent.toml")


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    assert read_toml(write(tmp_path, b"\xef\xbb\xbfa = 1")).values == {"a": 1}


@pytest.mark.parametrize(
    "line",
    [
        'hf_token = "SECRET',
        "wandb_api_key = SECRET",
        "password: SECRET",
        '"api-key" = = "SECRET"',
        'login = { token = "SECRET", ',
        "key = SECRET",
        "note = = hf_SECRETSECRET",
    ],
)
def test_a_secret_is_not_echoed(tmp_path: Path, line: str) -> None:
    with pytest.raises(Problems) as caught:
        read_toml(write(tmp_path, f"a = 1\n{line}\n"))
    text = str(caught.value)
    assert "SECRET" not in text and "[secret]" in text and line[:3] in text


def test_tokens_that_are_no_secret_are_echoed(tmp_path: Path) -> None:
    with pytest.raises(Problems, match="class_tokens = 'tjtoy'"):
        read_toml(write(tmp_path, "class_tokens = tjtoy\n"))


@pytest.mark.parametrize(
    ("line", "remedies"),
    [
        (r'image_dir = "E:\Upics\cat"', (r"'E:\Upics\cat'", '"E:/Upics/cat"')),
        (r'image_dir = "E:\photos\my cat"', (r"'E:\photos\my cat'", '"E:/photos/my cat"')),
        (r'image_dir = "E:\new\"', (r"'E:\new\'", '"E:/new/"')),
        (r'subsets = [{ image_dir = "\\nas\share" }]', (r"'\\nas\share'", '"//nas/share"')),
        (r'image_dir = "E:\it' + "'" + r's\cat"', ('"E:/it' + "'" + 's/cat"',)),
    ],
)
def test_a_backslash_in_double_quotes_says_how_to_write_the_path(tmp_path: Path, line: str, remedies) -> None:
    with pytest.raises(Problems) as caught:
        read_toml(write(tmp_path, f"[[datasets]]\n{line}\n"))
    (problem,) = caught.value.problems
    assert problem.where.rsplit(":", 2)[1] == "2"
    assert "escape in double quotes" in problem.hint
    assert all(remedy in problem.hint for remedy in remedies), problem.hint


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf16_is_called_by_its_name(tmp_path: Path, encoding: str) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    with pytest.raises(Problems, match=r"is UTF-16.*\n.*save it as UTF-8"):
        read_toml(write(tmp_path, mark + "seed = 1".encode(encoding)))


def test_curly_quotes_are_called_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(Problems, match="straight quotes"):
        read_toml(write(tmp_path, "image_dir = \u201cpics\u201d\n"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r"image_dir = G:\shots\car", r"write text in quotes: image_dir = 'G:\shots\car'"),
        ("class_tokens = red car", "write text in quotes: class_tokens = 'red car'"),
        (r"image_dir = 'G:\it's\car'", "' ends text in single quotes"),
    ],
)
def test_text_that_is_quoted_wrongly(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(Problems) as caught:
        read_toml(write(tmp_path, f"{line}\n"))
    (problem,) = caught.value.problems
    assert words in problem.hint and problem.where.startswith(f"{tmp_path}/data.toml:1:")


def test_only_line_ends_count_as_lines(tmp_path: Path) -> None:
    file = read_toml(write(tmp_path, "note = 'a\u2028b\u0085c'\r\nlast = 1\r\n"))
    assert file.where("last").endswith(":2")


def test_a_missing_file_is_reported_with_what_may_be_meant(in_tmp: Path):
    Path("train.toml").write_text("seed = 1\n")
    for name, hint in (("trian.toml", "did you mean train.toml?"), ("none/x.txt", f"begins in {in_tmp}")):
        with pytest.raises(Problems) as found:
            read_utf8(Path(name))
        (problem,) = found.value.problems
        assert problem.what == "there is no such file" and hint in problem.hint
