import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixkit.corpus.domains import RESERVED, PathPattern, folder_name, parent, stem
from mixkit.errors import UserError

nasty = st.text(alphabet=st.sampled_from("aA/\\.%~- \0\n:é\ud83d😀0Fsc"), max_size=12)
names = st.one_of(st.text(max_size=300), nasty, st.sampled_from(sorted(RESERVED)))


@pytest.mark.parametrize("name", ["Books", "Wikipedia (en)", "Pile-CC", "NIH ExPorter", "a.b_c-d"])
def test_ordinary_names_stay_readable(name):
    assert folder_name(name) == name


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("", "%"),
        ("a/b", "a%2Fb"),
        ("C:\\x", "C%3A%5Cx"),
        ("100%", "100%25"),
        ("end. ", "end.%20"),
        ("scores", "%73cores"),
        ("Tokenizer.JSON", "%54okenizer.JSON"),
        ("déjà", "d%C3%A9j%C3%A0"),
    ],
)
def test_odd_names_are_encoded(name, folder):
    assert folder_name(name) == folder


@given(names)
@example("\ud800")
@example("x" * 151)
def test_a_folder_name_is_one_harmless_path_component(name):
    folder = folder_name(name)
    assert os.path.normpath(os.path.join("/out", folder)) == f"/out/{folder}"
    assert folder.isascii() and folder.isprintable()
    assert 0 < len(folder) <= 255
    assert not folder.startswith((".", " ")) and not folder.endswith((".", " "))
    assert not set(folder) & set('/\\:*?"<>|\0')
    assert folder.casefold() not in RESERVED


@given(names, names)
@example("a/b", "a%2Fb")
@example("x" * 151, "x" * 152)
@example("", "%")
@example(".a", "%2Ea")
def test_two_names_never_share_a_folder(one, other):
    assert (folder_name(one) == folder_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("pattern", "path", "domain"),
    [
        ("{domain}/**", "c4/x.jsonl", "c4"),
        ("{domain}/**", "common_crawl/2019-30/en.jsonl.zst", "common_crawl"),
        ("*/{domain}/**", "train/letters/1912/may.txt", "letters"),
        ("{domain}.jsonl.zst", "wiki.en.jsonl.zst", "wiki.en"),
        ("**/{domain}-?.jsonl", "a/b/books-1.jsonl", "books"),
        ("**/{domain}-?.jsonl", "books-1.jsonl", "books"),
        ("x+y/{domain}", "x+y/z", "z"),
    ],
)
def test_a_pattern_finds_the_domain_in_the_path(pattern, path, domain):
    assert PathPattern(pattern).domain_of(path) == domain


def test_a_path_that_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"top\.jsonl.*\{domain\}/\*\*"):
        PathPattern("{domain}/**").domain_of("top.jsonl")


def test_defaults_over_the_path():
    assert stem("train/wiki.en.jsonl.zst") == "wiki.en"
    assert stem("books") == "books"
    assert parent("train/books/1.txt") == "books"
    with pytest.raises(UserError, match=r"1\.txt"):
        parent("1.txt")
