"""`mixkit shards`: a recipe's corpus to a folder of per-domain MDS shards.

The idea: one pass over the documents in one order. Batches of documents are tokenised together (the tokenizer library
uses all cores), each document then goes down the lane of its domain: end-of-text id, packing, shards. Nothing carries
a final name before everything is done, so a run that is stopped leaves nothing half made, and the same corpus and
recipe give the same bytes.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from mixkit.corpus.domains import folder_name
from mixkit.corpus.files import Source, find_sources
from mixkit.corpus.readers import BLANK_LINE, Document, Fields, Rejected, read
from mixkit.corpus.recipe import Recipe
from mixkit.errors import UserError, WorldError
from mixkit.shards.identity import differences, identity, inputs
from mixkit.shards.manifest import (
    REJECTED,
    TOKENIZER,
    DomainShards,
    Manifest,
    RejectedFile,
    SplitStats,
    TokenizerInfo,
    save_manifest,
)
from mixkit.shards.pack import Packer, Tally, end_document
from mixkit.shards.report import Meter, megabytes, print_summary
from mixkit.shards.tokenizer import TRAINING_BYTES, Encoder, open_encoder, shared_budget
from mixkit.shards.write import ShardWriter, only_writer, publish, published, start_over

BATCH_BYTES = 4_000_000  # of text tokenised at a time: enough for every core, little in memory
BATCH_DOCUMENTS = 4096
MOST_DOMAINS = 1000  # each holds an open shard; more than this is a wrong key, not a corpus


def build_shards(recipe: Recipe, console: Console) -> Manifest:
    """Make `recipe.output` out of the recipe's corpus, or find that it is made already.

    Memory: the batch, and per domain up to one shard (64 MiB) that is not full yet.

    Raises:
        UserError: something in the recipe or the corpus does not fit; nothing is published.
        WorldError: too many bad documents, an unreadable file, a full disk; nothing is published.
    """
    sources = find_sources(recipe)
    fields = Fields.of(recipe)
    _check_tables(sources, fields)
    out = Path(recipe.output).expanduser()
    try:
        with only_writer(out):
            done = published(out)
            if done is not None:
                changes = differences(done, recipe, sources)
                if not changes:
                    console.print(f"{escape(str(out))} is finished already: same recipe, same input; nothing to do.")
                    return done
                if not recipe.overwrite:
                    raise UserError(
                        f"output: {out} holds shards of another recipe or input ({'; '.join(changes)}); "
                        "name another output, or overwrite=true to replace them"
                    )
            manifest = _build(recipe, sources, fields, out, console)
    except OSError as error:
        raise WorldError(f"{error.filename or out}: {error.strerror or error}; nothing was published") from error
    _say_what_next(console, manifest, out)
    return manifest


def _build(recipe: Recipe, sources: Sequence[Source], fields: Fields, out: Path, console: Console) -> Manifest:
    partial = start_over(out)
    try:
        encoder = _open_encoder(recipe, sources, fields, console)
        (partial / TOKENIZER).write_bytes(encoder.data)
        with Meter(console, "shards", sum(source.size for source in sources)) as meter:
            run = _Run(recipe, encoder, partial, meter)
            with open(partial / REJECTED, "w", encoding="utf-8") as log:
                for _, of_split in itertools.groupby(sources, key=lambda source: source.split):
                    for source in of_split:
                        run.take(source, fields, log.write)
                    run.finish()
        run.check_rejected()
        _check_domains(run, recipe, console)
    except UserError:
        shutil.rmtree(partial)
        raise
    manifest = run.manifest(sources)
    save_manifest(manifest, partial)
    publish(out)
    return manifest


class _Lane:
    """One domain of one split on its way to disk; its folder appears with its first full sequence."""

    def __init__(self, folder: Path, seq_len: int, encoder: Encoder):
        self._folder = folder
        self._packer = Packer(seq_len, encoder.dtype)
        self._writer: ShardWriter | None = None
        self.tally = Tally(seq_len)

    def add(self, ids: Any, text_bytes: int) -> None:
        self.tally.add(text_bytes, len(ids))
        rows = self._packer.add(ids)
        if len(rows):
            if self._writer is None:
                self._writer = ShardWriter(self._folder, self._packer.seq_len, self._packer.dtype)
            self._writer.write(rows)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.finish()
            self._writer = None


class _Run:
    """The pass over the corpus: lanes by (domain, split), and what was set aside."""

    def __init__(self, recipe: Recipe, encoder: Encoder, folder: Path, meter: Meter):
        self.recipe = recipe
        self.encoder = encoder
        self.lanes: dict[tuple[str, str], _Lane] = {}
        self.no_domain: dict[str, Counter[str]] = {}
        self.rejected_files: list[RejectedFile] = []
        self._folder = folder
        self._meter = meter
        self._names: set[str] = set()

    def take(self, source: Source, fields: Fields, log: Callable[[str], Any]) -> None:
        """Read, tokenise and pack one input to its end."""
        batch: list[Document] = []
        size = documents = 0
        for item in read(source, fields, self._meter.advance):
            if isinstance(item, Rejected):
                self._set_aside(item, source.split, documents, log)
                continue
            documents += 1
            batch.append(item)
            size += len(item.text) if item.text is not None else 4 * len(item.tokens)
            if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
                self._pack(batch, source.split)
                batch, size = [], 0
        self._pack(batch, source.split)

    def finish(self) -> None:
        """Write what the lanes hold back, and free their memory; called when the inputs of a split are read."""
        for lane in self.lanes.values():
            lane.finish()

    def check_rejected(self) -> None:
        """Fail the run where too much of the corpus was set aside.

        Raises:
            WorldError: names the share, the reasons and the list of all.
        """
        where = f"all are listed in {self._folder / REJECTED}; nothing was published"
        unread = [f"{entry.file} ({entry.reason})" for entry in self.rejected_files if not entry.documents]
        if unread:
            raise WorldError(f"{len(unread)} input file(s) could not be read: {', '.join(unread[:5])}; {where}")
        reasons = sum((Counter(lane.tally.rejected) for lane in self.lanes.values()), Counter())
        reasons += sum(self.no_domain.values(), Counter())
        del reasons[BLANK_LINE]
        bad, good = reasons.total(), sum(lane.tally.documents for lane in self.lanes.values())
        if bad > self.recipe.max_bad * (bad + good):
            shown = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5))
            raise WorldError(
                f"{bad:,} of {bad + good:,} documents are bad ({shown}), more than max_bad={self.recipe.max_bad:g} "
                f"allows; {where}"
            )

    def manifest(self, sources: Sequence[Source]) -> Manifest:
        """What `shards.json` says of this run."""
        domains: dict[str, DomainShards] = {}
        for (domain, split), lane in sorted(self.lanes.items()):
            tally = lane.tally
            entry = domains.setdefault(domain, DomainShards(folder_name(domain), {}))
            entry.splits[split] = SplitStats(
                documents=tally.documents,
                text_bytes=tally.text_bytes,
                tokens=tally.tokens,
                sequences=tally.sequences,
                pack=tally.sequences,
                nopack=tally.nopack,
                dropped_tokens=tally.dropped_tokens,
                rejected=dict(sorted(tally.rejected.items())),
            )
        encoder = self.encoder
        return Manifest(
            recipe=identity(self.recipe),
            tokenizer=TokenizerInfo(encoder.sha256, encoder.vocab_size, encoder.eos_token, encoder.eos_id),
            seq_len=self.recipe.seq_len,
            domains=domains,
            inputs=inputs(sources),
            no_domain={split: dict(sorted(reasons.items())) for split, reasons in sorted(self.no_domain.items())},
            rejected_files=self.rejected_files,
        )

    def _pack(self, batch: list[Document], split: str) -> None:
        texts = [document.text for document in batch if document.text is not None]
        encoded = iter(self.encoder.encode(texts))
        for document in batch:
            if document.text is not None:
                ids, text_bytes = next(encoded), len(document.text.encode("utf-8"))
            else:
                ids, text_bytes = self._checked(document), 0
            self._lane(document.domain, split).add(end_document(ids, self.encoder.eos_id), text_bytes)
            self._meter.text(text_bytes)

    def _checked(self, document: Document) -> Any:
        ids = document.tokens
        if ids.min() < 0 or ids.max() >= self.encoder.vocab_size:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise UserError(
                f"tokens: {document.file}:{document.line}: token id {wrong} is outside the vocabulary "
                f"(0 to {self.encoder.vocab_size - 1}) of {self.recipe.tokenizer}; name the one that made the data"
            )
        return ids.astype(self.encoder.dtype)

    def _lane(self, domain: str, split: str) -> _Lane:
        lane = self.lanes.get((domain, split))
        if lane is None:
            self._names.add(domain)
            if len(self._names) > MOST_DOMAINS:
                some = ", ".join(repr(name) for name in sorted(self._names)[:3])
                raise UserError(f"domain: {self.recipe.domain} gives more than {MOST_DOMAINS} domains ({some}, …)")
            lane = _Lane(self._folder / folder_name(domain) / split, self.recipe.seq_len, self.encoder)
            self.lanes[domain, split] = lane
        return lane

    def _set_aside(self, item: Rejected, split: str, documents: int, log: Callable[[str], Any]) -> None:
        if item.domain is None:
            self.no_domain.setdefault(split, Counter())[item.reason] += 1
        else:
            self._lane(item.domain, split).tally.rejected[item.reason] += 1
        if item.reason == BLANK_LINE:
            return
        entry = {"file": item.file, "line": item.line, "reason": item.reason}
        if item.domain is not None:
            entry["domain"] = item.domain
        log(json.dumps(entry, ensure_ascii=False) + "\n")
        if self.recipe.on_error == "fail":
            raise WorldError(f"{item.file}:{item.line}: {item.reason} (on_error: fail); nothing was published")
        if item.whole_file:
            self.rejected_files.append(RejectedFile(split, item.file, item.reason, documents))


def _open_encoder(recipe: Recipe, sources: Sequence[Source], fields: Fields, console: Console) -> Encoder:
    """The recipe's tokenizer; `train:N` reads the beginning of every train file, shortest first, and nothing else."""
    train = sorted((source for source in sources if source.split == "train"), key=lambda s: (s.size, s.name))

    def training_texts() -> Iterator[str]:
        console.print(
            f"Training the tokenizer ({recipe.tokenizer}) on up to {megabytes(TRAINING_BYTES)} of train text …"
        )
        return shared_budget([bind(_texts, source, fields) for source in train], TRAINING_BYTES)

    return open_encoder(recipe, training_texts)


def _texts(source: Source, fields: Fields) -> Iterator[str]:
    for item in read(source, fields, lambda size: None):
        if isinstance(item, Document):
            yield item.text


def _check_tables(sources: Sequence[Source], fields: Fields) -> None:
    if any(source.format == "parquet" for source in sources):
        from mixkit.corpus.tables import check_columns

        for source in sources:
            check_columns(source, fields)


def _check_domains(run: _Run, recipe: Recipe, console: Console) -> None:
    """Refuse domains that cannot be trained on; warn about what cannot be evaluated or was cut short."""
    tallies = {key: lane.tally for key, lane in run.lanes.items()}
    train = sorted(domain for domain, split in tallies if split == "train")
    if not train:
        raise UserError(f"input: no documents in the train files of {recipe.input}")
    empty = [domain for domain in train if not tallies[domain, "train"].sequences]
    if empty:
        domain = empty[0]
        others = f" (so are {', '.join(empty[1:])})" if empty[1:] else ""
        raise UserError(
            f"empty domain: the train text of {domain} fills no sequence of seq_len={recipe.seq_len} "
            f"({tallies[domain, 'train'].tokens} tokens){others}; give it more text, a shorter seq_len, or leave it out"
        )
    for entry in run.rejected_files:
        _warn(console, f"{entry.file}: {entry.reason} after {entry.documents:,} documents; the rest of it is missing")
    for split in recipe.files:
        for domain in train if split != "train" else ():
            if (domain, split) not in tallies or not tallies[domain, split].sequences:
                _warn(console, f"domain {domain} has no sequence in split {split}: nothing to evaluate it on")
    for domain, split in sorted(tallies):
        if (domain, "train") not in tallies:
            _warn(console, f"domain {domain} is in split {split} only: it cannot be trained on")


def _warn(console: Console, message: str) -> None:
    console.print(f"[yellow]warning:[/] {escape(message)}", highlight=False, soft_wrap=True)


def _say_what_next(console: Console, manifest: Manifest, out: Path) -> None:
    print_summary(console, manifest)
    console.print(
        f"Wrote {len(manifest.domains)} domains, {TOKENIZER}, {REJECTED} and shards.json to {out}\n"
        f"Next: composer train yamls/reference.yaml shards={out}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
