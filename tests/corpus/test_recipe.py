from pathlib import Path

import pytest

from mixkit.corpus.recipe import Recipe, load_recipe
from mixkit.errors import UserError

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
SMALL = """
input: corpus
files: {train: "*.jsonl"}
domain_from: key
domain: meta.set
tokenizer: train:512
seq_len: 64
output: out
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_defaults(recipe_file):
    recipe = load_recipe(recipe_file)
    assert (recipe.field, recipe.tokens, recipe.format, recipe.eos) == ("text", None, "auto", None)
    assert (recipe.on_error, recipe.max_bad, recipe.overwrite, recipe.passes) == ("skip", 0.01, False, {})
    assert recipe.trained_vocabulary == 512


def test_every_key_can_be_overridden_by_a_word(recipe_file):
    words = ["input=other", "seq_len=32", "files.val=[a.jsonl,b.jsonl]", "passes.Wikipedia (en)=3", "tokenizer=x/y"]
    recipe = load_recipe(recipe_file, words)
    assert (recipe.input, recipe.seq_len, recipe.globs("val")) == ("other", 32, ["a.jsonl", "b.jsonl"])
    assert recipe.globs("train") == ["*.jsonl"]
    assert recipe.passes == {"Wikipedia (en)": 3.0}
    assert recipe.trained_vocabulary is None


def test_null_takes_a_split_out(recipe_file):
    assert set(load_recipe(recipe_file, ["files.val=x", "files.test=null"]).files) == {"train", "val"}


def test_tokens_take_the_place_of_text(recipe_file):
    assert load_recipe(recipe_file, ["tokens=input_ids", "tokenizer=t.json"]).field == "input_ids"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["seqlen=3"], r"seqlen: unknown key.*seq_len"),
        (["seq_len=1"], "seq_len"),
        (["files.train=null"], "files"),
        (["files.a/b=x"], "no name for a split: 'a/b'"),
        (["format=xml"], "format"),
        (["tokenizer=train:100"], "257 or more"),
        (["tokenizer=train:many"], "257 or more"),
        (["tokens=ids"], "train:N needs text"),
        (["tokens=ids", "text=body", "tokenizer=t"], "excludes text"),
        (["domain=null"], "domain: is missing"),
        (["domain_from=folder"], r"must hold \{domain\} once"),
        (["domain_from=folder", "domain='{domain}/{domain}'"], r"must hold \{domain\} once"),
        (["format=text"], "no keys"),
        (["format=hf", "files.val=[a,b]"], "one split of the hub"),
        (["format=hf", "domain_from=file", "domain=null"], "use key or constant"),
        (["passes.A=-1"], "domain A wants a positive number"),
        (["passes.A=.nan"], "domain A wants a positive number"),
        (["max_bad=1.5"], "max_bad"),
        (["on_error=stop"], "on_error"),
    ],
)
def test_mistakes_are_named_with_file_and_key(recipe_file, words, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        load_recipe(recipe_file, words)
    assert str(caught.value).startswith(str(recipe_file))


def test_a_recipe_without_train_files(recipe_file):
    recipe_file.write_text(SMALL.replace("{train:", "{val:"))
    with pytest.raises(UserError, match="files: a glob for the split train is missing"):
        load_recipe(recipe_file)


@pytest.mark.parametrize("name", ["pile", "redpajama", "slimpajama", "local", "demo"])
def test_the_recipes_that_come_with_mixkit_are_valid(name):
    assert isinstance(load_recipe(PIPELINES / f"{name}.yaml"), Recipe)


def test_the_piles_passes():
    passes = load_recipe(PIPELINES / "pile.yaml").passes
    assert len(passes) == 22
    assert (passes["Pile-CC"], passes["Books3"], passes["Wikipedia (en)"], passes["ArXiv"]) == (1.0, 1.5, 3.0, 2.0)
