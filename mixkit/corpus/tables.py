"""Documents out of tables: parquet files, datasets saved to disk, datasets streamed from the Hugging Face hub.

The idea: all of them come as Arrow batches or rows, so they share one way from a row to a record; only the columns
that a recipe names are read. Rows count from 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mixkit.corpus.files import Source
from mixkit.corpus.hub import ASK_SECONDS, reason
from mixkit.corpus.readers import BadText, Document, Fields, Rejected, to_document
from mixkit.errors import UserError, WorldError

_ROWS = 256  # rows in memory at a time


def read_table(source: Source, fields: Fields, advance: Callable[[int], None]) -> Iterator[Document | Rejected]:
    """The documents of a parquet file, of a `save_to_disk` folder or of a hub dataset's split.

    Raises:
        UserError: no such column (the message names those there are), or the hub cannot be reached.
    """
    reader = {"parquet": _parquet_batches, "hf_disk": _disk_batches, "hf": _hub_batches}[source.format]
    row = 0
    try:
        for records in reader(source, fields, advance):
            for record in records:
                yield to_document(record, fields, source, row)
                row += 1
    except (pa.ArrowException, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None  # Arrow's own OSErrors have none
        fault = f"unreadable file ({os.strerror(number)})" if number else "corrupt file"
        yield Rejected(source.name, row, fault, source.domain, whole_file=True)


def check_columns(source: Source, fields: Fields) -> None:
    """Complain at once, before any work, about a table that lacks the columns; a damaged one is the reader's matter.

    Raises:
        UserError: names the column and those there are.
    """
    if source.format == "parquet":
        try:
            names = pq.read_schema(source.path).names
        except (pa.ArrowException, OSError):
            return
        _columns(names, source, fields)


def _columns(names: Sequence[str], source: Source, fields: Fields) -> list[str]:
    """The top-level columns that `fields` needs, out of `names`."""
    needed = []
    for key, what in ((fields.content, "tokens" if fields.tokenised else "text"), (fields.domain, "domain")):
        if key is None:
            continue
        column = key if key in names else key.partition(".")[0]
        if column not in names:
            raise UserError(f"{what}: {source.name} has no column {column}; its columns are {', '.join(names)}")
        if column not in needed:
            needed.append(column)
    return needed


def _parquet_batches(source: Source, fields: Fields, advance: Callable[[int], None]) -> Iterator[list[dict[str, Any]]]:
    with pq.ParquetFile(source.path) as file:
        columns = _columns(file.schema_arrow.names, source, fields)
        rows = file.metadata.num_rows
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            yield _records(batch)
            advance(source.size * batch.num_rows // max(rows, 1))


def _disk_batches(source: Source, fields: Fields, advance: Callable[[int], None]) -> Iterator[list[dict[str, Any]]]:
    import datasets

    dataset = datasets.load_from_disk(str(source.path))
    if isinstance(dataset, datasets.DatasetDict):
        dataset = dataset[source.split]
    dataset = dataset.select_columns(_columns(dataset.column_names, source, fields))
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS):
        yield _records(table)
        advance(source.size * table.num_rows // max(len(dataset), 1))


def _hub_batches(source: Source, fields: Fields, advance: Callable[[int], None]) -> Iterator[list[dict[str, Any]]]:
    split = source.name.rpartition("/")[2]
    dataset = _open_hub(str(source.path), split)
    if dataset.column_names is not None:
        _columns(dataset.column_names, source, fields)
    try:
        for record in dataset:
            yield [record]
    except OSError as error:
        raise WorldError(f"{source.name}: the hub stopped answering ({reason(error)}); run it again") from error


def _open_hub(name: str, split: str) -> Any:
    """The streamed split of a hub dataset (or of a local folder that `datasets` can load).

    Raises:
        UserError: quickly; the hub's own client would try again for minutes.
    """
    import datasets
    import huggingface_hub

    if not os.path.exists(name):
        try:
            huggingface_hub.HfApi().dataset_info(name, timeout=ASK_SECONDS)
        except (OSError, ValueError) as error:
            raise UserError(
                f"input: the dataset {name} cannot be had from the Hugging Face hub ({reason(error)}); the other "
                "ways are a folder of local files (format: auto) or one written by save_to_disk (format: hf_disk)"
            ) from None
    try:
        return datasets.load_dataset(name, split=split, streaming=True)
    except ValueError as error:  # no such split, a configuration's name missing
        raise UserError(f"files: {name} has no split {split} to stream: {reason(error)}") from None


def _records(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Python values of a column; a list of integers comes as a NumPy array, a string that is no UTF-8 as BadText."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_integer(kind.value_type):
            return [_integers(value) for value in column]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(value) for value in column]


def _integers(value: pa.Scalar) -> Any:
    if not value.is_valid:
        return None
    if value.values.null_count:
        return value.as_py()
    return value.values.to_numpy(zero_copy_only=False)


def _value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return BadText()
