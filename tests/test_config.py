import pytest

from mixkit.config import Schema, load_config
from mixkit.errors import UserError


class Inner(Schema):
    rate: float = 1.0


class Outer(Schema):
    name: str
    inner: Inner = Inner()
    table: dict[str, float] = {}


def load(tmp_path, text, *words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, words, Outer)


def test_overrides_win_over_the_file_and_the_file_over_its_includes(tmp_path):
    (tmp_path / "base.yaml").write_text("name: base\ninner: {rate: 2}\ntable: {a: 1}\n")
    config = load(tmp_path, "include: base.yaml\nname: own ${inner.rate}\n", "inner.rate=3", "table.Wikipedia (en)=4")
    assert config == Outer(name="own 3", inner=Inner(rate=3), table={"a": 1, "Wikipedia (en)": 4})


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("name: x\ninner: {rat: 2}\n", (), r"c\.yaml: inner\.rat: unknown key \(did you mean rate\?\)"),
        ("name: x\n", ("inner.rat=2",), r"c\.yaml: inner\.rat: unknown key"),
        ("inner: {rate: 2}\n", (), r"c\.yaml: name: is missing"),
        ("name: x\ninner: {rate: fast}\n", (), r"c\.yaml: inner\.rate: .*number.*\(found 'fast'\)"),
        ("name: x\nname: y\n", (), "duplicate key"),
        ("name: [\n", (), "is not readable as YAML"),
        ("name: ${nowhere}\n", (), "nowhere"),
        ("name: x\n", ("rate",), "an override is written key=value"),
        ("- 1\n", (), "a table of keys is wanted at the top"),
        ("include: c.yaml\nname: x\n", (), "includes itself"),
        ("include: gone.yaml\nname: x\n", (), r"gone\.yaml: no such file"),
        ("name: !!python/object/apply:os.system [true]\n", (), "is not readable as YAML"),
    ],
)
def test_mistakes_are_named_with_file_and_key(tmp_path, text, words, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, text, *words)
