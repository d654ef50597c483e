import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mixkit.errors import UserError
from mixkit.shards.tokenizer import KNOWN_EOS, load_encoder, shared_budget, tokenizer_file, train

TEXTS = [f"the {word} of number {n} is déjà vu 😀 <|endoftext|>" for n in range(200) for word in ("cat", "house", "x")]


@pytest.fixture(scope="module")
def trained():
    return train(TEXTS, 320)


def word_level(vocabulary, special=(), **options):
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer.to_str().encode()


def test_training_gives_exactly_the_size_asked_for_and_the_same_bytes_in_any_order(trained):
    assert Tokenizer.from_str(trained.decode()).get_vocab_size() == 320
    assert train(reversed(TEXTS), 320) == trained


def test_a_corpus_too_small_for_the_vocabulary_is_refused():
    with pytest.raises(UserError, match=r"train:9000 needs more text; .* at most train:\d+"):
        train(["only a few words"], 9000)


def test_text_comes_back_and_special_ids_do_not_come_out_of_text(trained):
    encoder = load_encoder(trained, "t")
    assert (encoder.eos_token, encoder.vocab_size, encoder.dtype) == ("<|endoftext|>", 320, np.uint16)
    texts = ["<|endoftext|>", "a<|endoftext|>b", " \n\tnever seen: ÿ\u2603 <|im_end|></s>"]
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        assert ids.dtype == np.uint16
        assert encoder.eos_id not in ids
        assert encoder.tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text


def test_truncation_and_padding_of_the_file_are_switched_off(trained):
    tokenizer = Tokenizer.from_str(trained.decode())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=10)
    one, long = load_encoder(tokenizer.to_str().encode(), "t").encode(["x", TEXTS[0]])
    assert len(one) == 1 and len(long) > 10


@pytest.mark.parametrize("token", KNOWN_EOS)
def test_known_end_of_text_tokens_are_found(token):
    encoder = load_encoder(word_level(["<unk>", "a"], [token]), "t")
    assert (encoder.eos_token, encoder.eos_id) == (token, 2)


def test_the_end_of_text_token_can_be_named_and_must_be_there():
    data = word_level(["<unk>", "a"], ["<end>"])
    assert load_encoder(data, "t", eos="<end>").eos_id == 2
    with pytest.raises(UserError, match="^eos: t has none of the known"):
        load_encoder(data, "t")
    with pytest.raises(UserError, match="^eos: t has no token '<fin>'"):
        load_encoder(data, "t", eos="<fin>")


def test_a_tokenizer_that_makes_its_end_of_text_out_of_text_is_refused():
    with pytest.raises(UserError, match="turns the text 'end' into its special token"):
        load_encoder(word_level(["<unk>", "a", "end"]), "t", eos="end")


@pytest.mark.parametrize(("size", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_ids_are_stored_in_16_bits_as_long_as_they_fit(size, dtype):
    data = word_level([f"w{n}" for n in range(size - 1)], ["</s>"])
    encoder = load_encoder(data, "t")
    assert (encoder.vocab_size, encoder.dtype) == (size, dtype)
    assert encoder.encode([f"w1 w{size - 2}"])[0].tolist() == [1, size - 2]


def test_holes_in_the_vocabulary_count():
    data = json.loads(word_level(["<unk>", "a"], ["</s>"]))
    data["model"]["vocab"]["far"] = 70_000
    data["added_tokens"][0]["id"] = data["model"]["vocab"]["</s>"] = 2
    encoder = load_encoder(json.dumps(data).encode(), "t")
    assert (encoder.vocab_size, encoder.dtype) == (70_001, np.uint32)


def test_paths(tmp_path, trained):
    (tmp_path / "tokenizer.json").write_bytes(trained)
    (tmp_path / "empty").mkdir()
    assert tokenizer_file(str(tmp_path)) == tokenizer_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer_file("EleutherAI/gpt-neox-20b") is None
    for name in (str(tmp_path / "empty"), str(tmp_path / "gone.json"), "./gone", "gone.json"):
        with pytest.raises(UserError, match="^tokenizer: .*(no such file|holds no tokenizer.json)"):
            tokenizer_file(name)
    with pytest.raises(UserError, match="^tokenizer: t is no tokenizer.json"):
        load_encoder(b"{}", "t")


def test_a_budget_is_shared_evenly_and_what_is_left_goes_on():
    short, long = ["a" * 10], ["b" * 10] * 100
    taken = list(shared_budget([lambda: iter(short), lambda: iter(long), lambda: iter(long)], 300))
    assert [text[0] for text in taken].count("a") == 1
    assert taken[1:16] == ["b" * 10] * 15  # 150, 145 being half of what the first left, no text cut
    assert len(taken) == 1 + 15 + 14


def test_a_hub_that_cannot_be_reached_is_told_at_once_with_the_two_other_ways(tmp_path):
    script = """
from mixkit.corpus.recipe import Recipe
from mixkit.errors import UserError
from mixkit.shards.tokenizer import open_encoder
recipe = Recipe(input="x", files={"train": "x"}, domain_from="constant", domain="D", tokenizer="some/tokenizer",
                seq_len=8, output="out")
try:
    open_encoder(recipe, lambda: 1 / 0)
except UserError as error:
    print(error)
"""
    environment = {
        **os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)
    }  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, cwd=root
    )
    assert run.stdout.startswith("tokenizer: some/tokenizer cannot be had"), run.stderr
    for words in ("the hub cannot be reached", "tokenizer=path/to/tokenizer.json", "tokenizer=train:8192"):
        assert words in run.stdout
    assert "Retrying" not in run.stderr
