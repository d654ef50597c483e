"""Shards that come from elsewhere: fetched once a node, ahead of need, within a limit, and whole."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from streaming import MDSWriter, Stream

from mixkit.errors import UserError, WorldError
from mixkit.stream import MixtureDataset
from mixkit.stream.apportion import quantise_weights
from mixkit.stream.heldout import DEFAULTS
from mixkit.stream.loader import MixtureLoader
from mixkit.stream.lookahead import LookAhead, draws_ahead
from mixkit.stream.order import Order
from mixkit.stream.shards import OPEN_SHARDS, ShardReader
from tests.conftest import ROOT
from tests.stream.worlds import rank_of

PER_SHARD, SHARDS, LENGTH = 16, 12, 64
BATCH = 8


def write(folder: Path, first: int, compression: str | None, shards: int = SHARDS) -> Path:
    """An MDS dataset whose sequences are filled with their own number."""
    with MDSWriter(
        out=str(folder / "train"),
        columns={"tokens": f"ndarray:uint16:{LENGTH}"},
        compression=compression,
        hashes=["xxh3_64"],
        size_limit=1 << 20,
    ) as out:
        for number in range(shards * PER_SHARD):
            out.write({"tokens": np.full(LENGTH, first + number, np.uint16)})
            if number % PER_SHARD == PER_SHARD - 1:
                out.flush_shard()
                out._reset_cache()
    return folder


@pytest.fixture(scope="module", params=[None, "zstd:3"])
def remote(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("remote")
    for number, name in enumerate(("a", "b")):
        write(root / name, 1000 * number, request.param)
    return root


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same, uncompressed, for tests that take two processes."""
    root = tmp_path_factory.mktemp("plain")
    for number, name in enumerate(("a", "b")):
        write(root / name, 1000 * number, None)
    return root


def open_cached(remote, local, ranks=1, proportions=(1.0, 1.0), **settings):
    streams = {
        name: Stream(remote=str(remote / name), local=str(local / name), split="train", proportion=share)
        for name, share in zip(("a", "b"), proportions, strict=True)
    }
    given = {"num_canonical_nodes": 2, "shuffle_block_size": 1, **settings}
    return MixtureDataset(streams=streams, batch_size=BATCH // ranks, **given)


def shards_in(local: Path) -> set[tuple[str, str]]:
    found = (path for path in local.glob("*/train/shard.*") if not path.name.endswith(".tmp"))
    return {(path.parent.parent.name, path.name) for path in found}


def raw_shards_in(local: Path) -> set[tuple[str, str]]:
    return {(domain, name) for domain, name in shards_in(local) if name.endswith(".mds")}


def eventually(what, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def numbers(dataset, batches, **loader):
    taken = []
    for batch in MixtureLoader(dataset, **{"num_workers": 0, **loader}):
        taken.append(batch["input_ids"][:, 0].tolist())
        if len(taken) == batches:
            dataset.close()
            return taken


def test_the_same_batches_from_elsewhere_as_in_place(remote, tmp_path):
    in_place = open_cached(remote, remote, predownload=0)
    assert not in_place._tokens[0].fetched
    expected = numbers(in_place, 30)
    shutil.rmtree(tmp_path, ignore_errors=True)
    assert numbers(open_cached(remote, tmp_path / "cache"), 30, num_workers=2) == expected
    assert numbers(open_cached(remote, tmp_path / "none", predownload=0), 30) == expected


def test_shards_are_fetched_ahead_in_proportion_to_the_weights(remote, tmp_path):
    dataset = open_cached(remote, tmp_path, predownload=4 * PER_SHARD, shuffle=False, lag=2)
    for weights in ([1, 0], [1, 0]):
        dataset.publish(weights)
    loader = iter(MixtureLoader(dataset, num_workers=0))
    next(loader)
    # Two canonical nodes begin in two places and look 32 draws ahead each.
    ahead = {("a", f"shard.{number:05}.mds") for number in (0, 1, SHARDS // 2, SHARDS // 2 + 1)}
    eventually(lambda: raw_shards_in(tmp_path) == ahead)
    time.sleep(0.2)
    assert raw_shards_in(tmp_path) == ahead
    # The weights of a batch that is still to come are enough for its shards to be fetched.
    dataset.publish([0.5, 0.5])
    next(loader)
    eventually(lambda: {domain for domain, _ in shards_in(tmp_path)} == {"a", "b"})
    dataset.close()


def test_how_far_ahead():
    weights = quantise_weights(np.array([0.5, 0.25, 0.25 - 1e-4, 1e-4, 0.0]))
    assert draws_ahead(weights, 64, 2).tolist() == [16, 8, 8, 1, 0]


def test_workers_share_the_looking_ahead(remote, tmp_path):
    """Together they fetch what one alone would, each a part."""

    def readers(folder):
        streams = [Stream(remote=str(remote / n), local=str(folder / n), split="train") for n in ("a", "b")]
        return [[ShardReader(stream, DEFAULTS)] for stream in streams]

    weights, draws = quantise_weights(np.array([0.7, 0.3])), np.zeros((2, 2), np.int64)
    found = []
    for name, parts in (("one", [(0, 1)]), ("three", [(0, 3), (1, 3), (2, 3)])):
        of_world = readers(tmp_path / name)
        order = Order([kinds[0].samples_per_shard for kinds in of_world], 2, 3, 4, True)
        for part in parts:
            ahead = LookAhead(of_world, order, range(2), 160, part)
            ahead.tell(draws, weights)
            time.sleep(0.6)
            ahead.stop()
        found.append(shards_in(tmp_path / name))
    assert found[0] == found[1] and len(found[0]) > 4


def test_a_node_fetches_only_its_share(remote, tmp_path):
    for node in range(2):
        with rank_of(2, 1, node):
            dataset = open_cached(remote, tmp_path / str(node), ranks=2, shuffle_block_size=64)
            numbers(dataset, 60)
            dataset.close()
    eventually(lambda: all(len(raw_shards_in(tmp_path / str(node))) >= SHARDS for node in range(2)))
    first, second = (raw_shards_in(tmp_path / str(node)) for node in range(2))
    assert len(first | second) == 2 * SHARDS
    assert len(first & second) <= 2  # at most the shard at the border of each domain


def disk(local: Path) -> int:
    total = 0
    for path in local.glob("*/train/shard.*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass
    return total


def test_a_cache_limit_holds_and_changes_no_batch(remote, tmp_path):
    free = open_cached(remote, tmp_path / "free")
    expected = numbers(free, 120)
    limit = 8 * free._tokens[0].shards[0].get_max_size()
    dataset = open_cached(remote, tmp_path / "small", cache_limit=limit, predownload=BATCH)
    seen, taken = [], []
    for batch in MixtureLoader(dataset, num_workers=2):
        taken.append(batch["input_ids"][:, 0].tolist())
        with FileLock(tmp_path / "small" / "a" / "train" / ".mixkit" / "room.lock", mode=0o666):
            seen.append(disk(tmp_path / "small"))  # while nobody deletes, else a shard and its successor both count
        if len(taken) == 120:
            break
    dataset.close()
    assert taken == expected
    assert max(seen) <= limit
    assert disk(tmp_path / "free") > limit  # it did have to delete


def test_a_cache_limit_below_four_shards_is_refused(remote, tmp_path):
    with pytest.raises(UserError, match="cache_limit: 1024 bytes"):
        open_cached(remote, tmp_path, cache_limit="1kb")


def test_the_source_is_never_deleted(remote):
    """Neither where shards are read in place nor where the remote is the folder itself."""
    before = {path.name: path.stat().st_size for path in (remote / "a" / "train").iterdir() if "shard" in path.name}
    size = max(before.values())
    numbers(open_cached(remote, remote, cache_limit=12 * size), 60)
    after = {path.name: path.stat().st_size for path in (remote / "a" / "train").iterdir() if "shard" in path.name}
    assert before.items() <= after.items()


SECOND_RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.stream.test_cache import numbers, open_cached
dataset = open_cached(Path(sys.argv[2]), Path(sys.argv[3]), cache_limit=int(sys.argv[4]), predownload=8)
print(len(numbers(dataset, 100)))
"""


def test_two_runs_on_one_cache_do_not_delete_each_others_shards(plain, tmp_path):
    first = open_cached(plain, tmp_path, proportions=(1.0, 0.0), predownload=BATCH)
    size = first._tokens[0].shards[0].get_max_size()
    loader = iter(MixtureLoader(first, num_workers=0))
    for _ in range(8):
        next(loader)
    time.sleep(0.3)
    mine = shards_in(tmp_path)
    assert 4 <= len(mine)
    words = [sys.executable, "-W", "always", "-c", SECOND_RUN, ROOT, plain, tmp_path, 8 * size]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["100"]
    assert mine <= shards_in(tmp_path)  # the other run made do with the rest
    # Not used for two hours, they may go.
    for reader in first._tokens:
        reader.use.notes[:, 0] -= 7200 * 10**9
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not mine <= shards_in(tmp_path)
    assert disk(tmp_path) <= 8 * size


def test_a_damaged_shard_is_found_and_fetched_again(remote, tmp_path):
    """The hash is of the download; one that was damaged on the way is not kept."""
    copy = tmp_path / "remote"
    shutil.copytree(remote / "a", copy, ignore=shutil.ignore_patterns(".mixkit"))
    victim = max((copy / "train").glob("shard.00000.mds*"))  # .mds.zstd where there is one
    whole = victim.read_bytes()
    middle = len(whole) // 2
    victim.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    stream = Stream(remote=str(copy), local=str(tmp_path / "cache"), split="train", validate_hash="xxh3_64")
    reader = ShardReader(stream, DEFAULTS)
    with pytest.raises(WorldError, match=r"shard.00000.mds: Checksum failure"):
        reader[0]
    assert not list((tmp_path / "cache" / "train").glob("shard.00000*"))  # it was never to be seen
    assert reader[PER_SHARD]["tokens"][0] == reader[PER_SHARD]["tokens"][-1]  # the next one is well
    victim.write_bytes(whole)
    assert reader[0]["tokens"].tolist() == [reader[0]["tokens"][0]] * LENGTH


def test_what_a_killed_download_left_is_not_taken_for_a_shard(remote, tmp_path):
    folder = tmp_path / "a" / "train"
    folder.mkdir(parents=True)
    for path in (remote / "a" / "train").glob("shard.*"):
        (folder / path.name).write_bytes(path.read_bytes()[:100])
    (folder / "index.json.tmp").write_text('{"version": 2, "sha')
    reader = ShardReader(Stream(remote=str(remote / "a"), local=str(tmp_path / "a"), split="train"), DEFAULTS)
    assert [reader[number]["tokens"][5] for number in range(len(reader))] == list(range(len(reader)))


def test_a_download_that_fails_is_tried_again(plain, tmp_path):
    stream = Stream(remote=str(plain / "a"), local=str(tmp_path), split="train", download_retry=2)
    fetch, failed = stream._downloader.download, set()

    def flaky(source, *rest):
        if source not in failed:
            failed.add(source)
            raise ConnectionError("reset by peer")
        return fetch(source, *rest)

    stream._downloader.download = flaky
    reader = ShardReader(stream, DEFAULTS)
    assert reader[0]["tokens"][0] == 0  # streaming waits seconds between tries
    assert len(failed) == 2


def test_a_local_source_without_its_zip_is_left_alone(remote, tmp_path):
    if not list((remote / "a" / "train").glob("*.zstd")):
        pytest.skip("of compressed shards")
    shutil.copytree(remote / "a", tmp_path / "a")
    reader = ShardReader(Stream(local=str(tmp_path / "a"), split="train"), DEFAULTS)
    raw, zipped = (tmp_path / "a" / "train" / f"shard.00000.mds{end}" for end in ("", ".zstd"))
    reader.prepare(0)
    zipped.unlink()
    raw.write_bytes(raw.read_bytes() + b"x")
    with pytest.raises(WorldError, match="is missing or not of the size"):
        reader[0]
    assert raw.exists()


@pytest.mark.parametrize("remote_of", [lambda folder: None, lambda folder: f"{folder}/", lambda folder: str(folder)])
def test_a_source_that_is_not_what_its_index_says_is_left_alone(plain, tmp_path, remote_of):
    copy = tmp_path / "only"
    shutil.copytree(plain / "a", copy, ignore=shutil.ignore_patterns(".mixkit"))
    victim = copy / "train" / "shard.00001.mds"
    victim.write_bytes(victim.read_bytes() + b"x")
    reader = ShardReader(Stream(remote=remote_of(copy), local=str(copy), split="train"), DEFAULTS)
    with pytest.raises(WorldError, match=r"shard.00001.mds: is missing or not of the size"):
        reader[PER_SHARD]
    assert len(list((copy / "train").glob("shard.*"))) == SHARDS


def test_a_zip_that_is_here_already_is_not_fetched_again(remote, tmp_path):
    if not list((remote / "a" / "train").glob("*.zstd")):
        pytest.skip("of compressed shards")
    folder = tmp_path / "a" / "train"
    folder.mkdir(parents=True)
    for path in [*(remote / "a" / "train").glob("*.zstd"), remote / "a" / "train" / "index.json"]:
        shutil.copy(path, folder)
    reader = ShardReader(Stream(remote=str(tmp_path / "gone"), local=str(tmp_path / "a"), split="train"), DEFAULTS)
    assert [reader[number]["tokens"][5] for number in range(len(reader))] == list(range(len(reader)))


def test_a_shard_that_is_nowhere_is_named(remote, tmp_path):
    copy = tmp_path / "remote"
    shutil.copytree(remote / "a", copy, ignore=shutil.ignore_patterns(".mixkit", "shard.00003*"))
    reader = ShardReader(Stream(remote=str(copy), local=str(tmp_path / "cache"), split="train"), DEFAULTS)
    with pytest.raises(WorldError, match=r"shard.00003.mds"):
        reader[3 * PER_SHARD]


def _read_all(remote, local, fetches):
    stream = Stream(remote=str(remote), local=str(local), split="train")
    fetch = stream._downloader.download

    def counted(source, *rest):
        with open(fetches, "a") as log:
            log.write(os.path.basename(source) + "\n")
        time.sleep(0.01)
        return fetch(source, *rest)

    stream._downloader.download = counted
    reader = ShardReader(stream, DEFAULTS)
    assert [reader[number]["tokens"][0] for number in range(len(reader))] == list(range(len(reader)))


def test_processes_of_a_node_fetch_a_shard_once(remote, tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read_all, args=(remote / "a", tmp_path / "a", log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    fetched = log.read_text().split()
    assert len(fetched) == len(set(fetched)) == SHARDS + 1  # and the index


def test_a_cache_that_may_only_be_read_is_read(remote, tmp_path):
    if os.getuid() != 0:
        pytest.skip("becoming another user takes root")
    numbers(open_cached(remote, tmp_path), 100)
    dataset = open_cached(remote, tmp_path)
    eventually(lambda: len(raw_shards_in(tmp_path)) == 2 * SHARDS)
    for folder in (remote, tmp_path, *remote.parents, *tmp_path.parents):
        os.chmod(folder, folder.stat().st_mode | 0o055)
    reader = dataset._tokens[0]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_as_nobody, args=(remote / "a", tmp_path / "a", answers))
    process.start()
    assert answers.get(timeout=60) == [reader[n]["tokens"][0] for n in range(len(reader))]
    (missing,) = (path for path in (tmp_path / "a" / "train").glob("shard.00002.mds"))
    missing.unlink()
    process.join(30)
    process = context.Process(target=_as_nobody, args=(remote / "a", tmp_path / "a", answers))
    process.start()
    assert "Permission denied" in answers.get(timeout=60)
    process.join(30)


def _as_nobody(remote, local, answers):
    os.setgid(65534)
    os.setuid(65534)
    OPEN_SHARDS.let_go_of_evicted()  # mapped before the fork
    try:
        reader = ShardReader(Stream(remote=str(remote), local=str(local), split="train"), DEFAULTS)
        answers.put([reader[number]["tokens"][0] for number in range(len(reader))])
    except WorldError as error:
        answers.put(str(error))


def test_what_ended_runs_left_is_removed(remote, tmp_path):
    dataset = open_cached(remote, tmp_path)
    left = tmp_path / "a" / "train" / ".mixkit" / "used-ffff"
    left.parent.mkdir(exist_ok=True)
    np.full((SHARDS, 2), 10**18).tofile(left)
    numbers(dataset, 2)
    assert not left.exists()
    left.write_bytes(b"of another kind")
    assert not dataset._tokens[0].use.used_by_others().any()


def test_looking_ahead_ends_with_the_iteration(remote, tmp_path):
    def looking():
        return {thread for thread in threading.enumerate() if thread.name == "look ahead"}

    before = looking()
    dataset = open_cached(remote, tmp_path)
    loader = iter(MixtureLoader(dataset, num_workers=0))
    next(loader)
    assert looking() - before
    dataset.close()
    with pytest.raises(StopIteration):
        next(loader)
    eventually(lambda: not looking() - before)
