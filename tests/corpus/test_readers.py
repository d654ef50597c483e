"""The readers against every kind of damage: kinds made here, the same kinds from ../shared, and random bytes."""

import gzip
import hashlib
import json
import os

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mixkit.corpus.files import Source, _format_of
from mixkit.corpus.lines import Fault, read_lines
from mixkit.corpus.readers import Document, Fields, Rejected, read
from mixkit.errors import UserError

GOOD = b'{"text": "good"}'


def texts(documents):
    return [document.text for document in documents]


def faults(rejected):
    return [(item.line, item.reason) for item in rejected]


KINDS = {
    b'{"text": "cut': "malformed JSON",
    b"not JSON": "malformed JSON",
    b'{"text": "a",}': "malformed JSON",
    b'{"text": "a"} {"text": "b"}': "malformed JSON",
    b"[" * 100_000: "malformed JSON",
    b'["text", "a"]': "not an object",
    b'"text"': "not an object",
    b"17": "not an object",
    b"null": "not an object",
    b"": "blank line",
    b" \t\r": "blank line",
    b'{"content": "a"}': "no text key",
    b'{"text": null}': "text is null",
    b'{"text": 12345}': "text is not a string",
    b'{"text": ["a"]}': "text is not a string",
    b'{"text": ""}': "empty text",
    b'{"text": " \\n\\t\\u00a0"}': "whitespace-only text",
    b'{"text": "caf\xe9"}': "invalid UTF-8",
    b'{"text": "\xed\xa0\xbd"}': "invalid UTF-8",
    b'{"text": "\xc0\xaf"}': "invalid UTF-8",
    b'{"text": "lone \\ud83d surrogate"}': "invalid UTF-8",
}


@pytest.mark.parametrize("line", KINDS, ids=lambda line: repr(line[:24]))
def test_a_bad_line_is_named_and_its_neighbours_survive(tmp_path, read_file, line):
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    documents, rejected = read_file(path, "jsonl")
    assert texts(documents) == ["good", "good"]
    assert [document.line for document in documents] == [1, 3]
    assert faults(rejected) == [(2, KINDS[line])]
    assert (rejected[0].file, rejected[0].domain, rejected[0].whole_file) == ("x.jsonl", "D", False)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "good", "meta": {"score": NaN}}',
        b'{"text": "good", "meta": "lone \\ud83d surrogate"}',
        b'{"text": "good", "n": 123456789012345678901234567890}',
        b'  {"text": "good"}\r',
        b'{"text": "bad", "text": "good"}',
    ],
)
def test_what_is_odd_outside_the_text_does_not_cost_a_document(tmp_path, read_file, line):
    path = tmp_path / "x.jsonl"
    path.write_bytes(line + b"\n")
    documents, rejected = read_file(path, "jsonl")
    assert (texts(documents), rejected) == (["good"], [])


def test_byte_order_mark_crlf_and_a_last_line_without_newline(tmp_path, read_file):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b\\r\\nc"}\r\n{"text": "d"}')
    documents, rejected = read_file(path, "jsonl")
    assert (texts(documents), rejected) == (["a", "b\r\nc", "d"], [])


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst"])
def test_an_empty_file_has_no_documents_and_no_fault(tmp_path, read_file, form):
    path = tmp_path / "x"
    path.write_bytes(b"")
    assert read_file(path, form) == ([], [])


def test_dotted_keys(tmp_path, read_file):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"a": {"b": "x"}, "m": {"d": "One"}}\n{"a.b": "y", "m.d": "Two"}\n{"a": "no table", "m": {"d": "One"}}\n'
    )
    documents, rejected = read_file(path, "jsonl", text="a.b", key="m.d")
    assert [(document.text, document.domain) for document in documents] == [("x", "One"), ("y", "Two")]
    assert [(item.line, item.reason, item.domain) for item in rejected] == [(3, "no text key", "One")]


@pytest.mark.parametrize("meta", [None, {}, "text", {"set": ["list"]}, {"set": 7}, {"set": ""}, {"set": None}])
def test_a_document_without_a_usable_domain_is_set_aside(tmp_path, read_file, meta):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "a", "meta": meta}) + "\n" + json.dumps({"text": "b"}) + "\n")
    documents, rejected = read_file(path, "jsonl", key="meta.set")
    assert documents == []
    assert [(item.line, item.reason, item.domain) for item in rejected] == [
        (1, "no domain", None),
        (2, "no domain", None),
    ]


def test_token_ids(tmp_path, read_file):
    path = tmp_path / "x.jsonl"
    rows = [[1, 2, 3], [], None, [1, "2"], [1.5], [True], [[1], [2]], [[1], [2, 3]], "123", [2**70]]
    path.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows) + "{}\n")
    documents, rejected = read_file(path, "jsonl", tokens="ids")
    assert [document.tokens.tolist() for document in documents] == [[1, 2, 3]]
    wrong = "tokens is not a list of integers"
    assert faults(rejected) == [
        (2, "empty tokens"), (3, "tokens is null"), *((line, wrong) for line in range(4, 11)), (11, "no tokens key")
    ]  # fmt: skip


def test_a_text_file_is_one_document(tmp_path, read_file):
    for name, data in {"a": b"\xef\xbb\xbfone\r\ntwo\n", "b": b"\xff\xfe", "c": b" \n"}.items():
        (tmp_path / name).write_bytes(data)
    assert texts(read_file(tmp_path / "a", "text")[0]) == ["one\r\ntwo\n"]
    assert faults(read_file(tmp_path / "b", "text")[1]) == [(1, "invalid UTF-8")]
    assert faults(read_file(tmp_path / "c", "text")[1]) == [(1, "whitespace-only text")]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst", "jsonl.gz", "text", "parquet"])
def test_a_file_that_cannot_be_opened_is_a_fault_of_the_file(tmp_path, read_file, form):
    documents, rejected = read_file(tmp_path / "gone", form)
    assert documents == []
    assert rejected[0].whole_file and rejected[0].reason.startswith("unreadable file (No such file")


# -- compressed files ---------------------------------------------------------------------------------------------

LINES = [json.dumps({"text": f"document {number} " + "x" * (number % 7)}).encode() for number in range(60)]
DATA = b"\n".join(LINES) + b"\n"


def zst(data, **options):
    return zstandard.ZstdCompressor(write_checksum=True, **options).compress(data)


def skippable(data):
    return (0x184D2A50).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data


def recovered(path, form):
    lines = []
    try:
        for line in read_lines(path, form, lambda size: None):
            lines.append(line)
    except Fault as fault:
        return lines, str(fault)
    return lines, None


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=5), form=st.sampled_from(["jsonl.zst", "jsonl.gz"]))
@settings(max_examples=40, deadline=None)
def test_lines_are_joined_over_frames_and_members(tmp_path_factory, cuts, form):
    bounds = [0, *sorted(cuts), len(DATA)]
    pieces = [DATA[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
    if form == "jsonl.gz":
        data = b"".join(gzip.compress(piece) for piece in pieces) + b"\0" * 64  # padding is allowed
    else:
        data = skippable(b"note").join(zst(piece) for piece in pieces) + skippable(b"end")
    path = tmp_path_factory.mktemp("frames") / "x"
    path.write_bytes(data)
    assert recovered(path, form) == (LINES, None)


@given(data=st.data(), form=st.sampled_from(["jsonl.zst", "jsonl.gz"]))
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_never_a_normal_end_nor_gives_half_a_line(tmp_path_factory, data, form):
    whole = zst(DATA) if form == "jsonl.zst" else gzip.compress(DATA)
    cut = data.draw(st.integers(1, len(whole) - 1))
    path = tmp_path_factory.mktemp("cut") / "x"
    path.write_bytes(whole[:cut])
    lines, fault = recovered(path, form)
    assert fault == "truncated file"
    assert lines == LINES[: len(lines)]


def test_truncation_keeps_what_comes_before(tmp_path, read_file):
    compressor = zstandard.ZstdCompressor().compressobj()
    parts = [compressor.compress(line + b"\n") + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for line in LINES]
    path = tmp_path / "x"
    path.write_bytes(b"".join(parts[:40]) + parts[40][:-3])
    documents, rejected = read_file(path, "jsonl.zst")
    assert texts(documents) == [json.loads(line)["text"] for line in LINES[:40]]
    assert [(item.line, item.reason, item.whole_file) for item in rejected] == [(41, "truncated file", True)]


@pytest.mark.parametrize("form", ["jsonl.zst", "jsonl.gz"])
def test_a_corrupt_file_is_reported_after_its_good_frames(tmp_path, form):
    pack = zst if form == "jsonl.zst" else gzip.compress
    noise = os.urandom(300_000).hex().encode() + b"\n"  # larger than what is read at a time
    bad = bytearray(pack(noise))
    bad[len(bad) // 2] ^= 0xFF
    bad[len(bad) // 2 + 1] ^= 0xFF
    path = tmp_path / "x"
    path.write_bytes(pack(DATA) + pack(noise) + bytes(bad) + pack(DATA))
    lines, fault = recovered(path, form)
    assert fault == "corrupt file"
    assert lines[: len(LINES)] == LINES


def test_a_window_of_half_a_gigabyte_is_read(tmp_path):
    options = {"compression_params": zstandard.ZstdCompressionParameters(window_log=29)}
    compressor = zstandard.ZstdCompressor(**options).compressobj()  # of unknown size, so the frame asks for all of it
    path = tmp_path / "x"
    path.write_bytes(compressor.compress(DATA) + compressor.flush())
    assert recovered(path, "jsonl.zst") == (LINES, None)


# -- random bytes -------------------------------------------------------------------------------------------------

records = st.fixed_dictionaries({"text": st.text(min_size=1, max_size=20), "n": st.integers(-9, 9)})


@given(
    good=st.lists(records, min_size=1, max_size=6), junk=st.lists(st.binary(max_size=30), max_size=4), data=st.data()
)
@settings(max_examples=150, deadline=None)
def test_whatever_bytes_stand_between_the_good_lines_survive(tmp_path_factory, good, junk, data):
    lines = [(orjson.dumps(record, option=orjson.OPT_NON_STR_KEYS), True) for record in good]
    for piece in junk:
        mutated = data.draw(st.sampled_from([piece, lines[0][0][: len(piece)] + piece, lines[0][0] + piece]))
        lines.insert(data.draw(st.integers(0, len(lines))), (mutated.replace(b"\n", b""), False))
    path = tmp_path_factory.mktemp("fuzz") / "x.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in lines) + b"\n")
    source = Source("train", "x", path, "jsonl", 0, "D")
    items = list(read(source, Fields("text", False, None), lambda size: None))
    for number, ((line, is_good), item) in enumerate(zip(lines, items, strict=True), start=1):
        assert item.line == number
        if is_good and not (wanted := json.loads(line)["text"]).isspace():
            assert item.text == wanted


@given(data=st.binary(max_size=400), form=st.sampled_from(["jsonl", "jsonl.zst", "jsonl.gz"]))
@settings(max_examples=100, deadline=None)
def test_no_bytes_make_a_reader_raise(tmp_path_factory, data, form):
    path = tmp_path_factory.mktemp("junk") / "x"
    path.write_bytes(data)
    source = Source("train", "x", path, form, len(data), None)
    assert all(
        isinstance(item, (Document, Rejected)) for item in read(source, Fields("text", False, "d"), lambda size: None)
    )


# -- the files of ../shared ---------------------------------------------------------------------------------------


def test_the_hostile_files_give_what_is_expected_of_them(shared, read_file):
    folder = shared / "corpus" / "hostile"
    expected = json.loads((folder / "expected.json").read_text())
    assert len(expected) > 20
    rows = {"null": "text is null", "empty": "empty text"}  # the list's short names for parquet rows
    for name, wanted in expected.items():
        if name == "no_text_column.parquet":
            with pytest.raises(UserError, match="id, body"):
                read_file(folder / name, "parquet")
            continue
        documents, rejected = read_file(folder / name, _format_of(name))
        joined = "\x00\n".join(texts(documents)).encode()
        assert (len(documents), hashlib.sha256(joined).hexdigest()) == (wanted["valid"], wanted["sha256_of_texts"]), (
            name
        )
        bad = [(line, rows.get(reason, reason)) for line, reason in wanted["bad"]]
        assert faults(item for item in rejected if not item.whole_file) == bad, name
        assert any(item.whole_file for item in rejected) == wanted["must_report_error"], name


def test_bad_meta_of_the_hostile_files(shared, read_file):
    documents, rejected = read_file(shared / "corpus" / "hostile" / "bad_meta.jsonl", "jsonl", key="meta.pile_set_name")
    assert [document.domain for document in documents] == ["Pile-CC", "../../etc/Wikipedia (en)", "GradeSchoolMath"]
    assert faults(rejected) == [(line, "no domain") for line in (1, 2, 3, 6, 7)]


def test_minipiles_mixed_file_has_the_documents_that_its_table_promises(shared, read_file):
    documents, rejected = read_file(
        shared / "corpus" / "minipile" / "mixed" / "00.jsonl.zst", "jsonl.zst", key="meta.pile_set_name"
    )
    assert rejected == []
    found = {}
    for document in documents:
        count, size = found.get(document.domain, (0, 0))
        found[document.domain] = (count + 1, size + len(document.text.encode()))
    assert found == {
        "Books": (271, 5_238_728), "TechDocs": (728, 3_334_647), "StacksMath": (326, 2_731_754),
        "PythonCode": (132, 2_241_480), "GermanLaw": (93, 1_388_630), "Dialogue": (261, 613_615),
        "GradeSchoolMath": (955, 483_501), "Wikipedia": (15, 185_536), "PubMedAbstracts": (118, 208_524),
        "Speeches": (6, 86_052),
    }  # fmt: skip
