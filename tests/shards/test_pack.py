import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixkit.shards.pack import Packer, Tally, end_document

documents = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), max_size=30)


@given(documents, st.integers(2, 17))
def test_packing_keeps_every_token_in_order_but_the_incomplete_rest(documents, seq_len):
    packer = Packer(seq_len, np.dtype(np.uint16))
    rows = [packer.add(np.array(ids)) for ids in documents]
    assert all(row.shape[1] == seq_len and row.dtype == np.uint16 for row in rows)
    packed = np.concatenate([row.ravel() for row in rows]).tolist() if rows else []
    everything = [token for ids in documents for token in ids]
    assert packed == everything[: len(everything) // seq_len * seq_len]
    assert packer.pending == len(everything) % seq_len < seq_len


@given(documents, st.integers(2, 17))
def test_the_counts_are_those_of_the_literature(documents, seq_len):
    tally = Tally(seq_len)
    for ids in documents:
        tally.add(text_bytes=3, tokens=len(ids))
    tokens = sum(map(len, documents))
    assert (tally.documents, tally.text_bytes, tally.tokens) == (len(documents), 3 * len(documents), tokens)
    assert tally.sequences * seq_len + tally.dropped_tokens == tokens
    assert 0 <= tally.dropped_tokens < seq_len
    assert tally.nopack == sum((len(ids) + seq_len - 1) // seq_len for ids in documents) >= tally.sequences


def test_a_row_does_not_change_when_later_documents_come():
    packer = Packer(4, np.dtype(np.uint16))
    first = packer.add(np.arange(6))
    packer.add(np.arange(6, 12))
    assert first.tolist() == [[0, 1, 2, 3]]


def test_documents_end_once():
    assert end_document(np.array([5, 6], np.uint16), 0).tolist() == [5, 6, 0]
    assert end_document(np.array([5, 0], np.uint16), 0).tolist() == [5, 0]
    assert end_document(np.array([5], np.uint16), 0).dtype == np.uint16
