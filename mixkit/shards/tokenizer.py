"""The tokenizer of a recipe: found, checked for its end-of-text token, or trained on the corpus itself.

The idea: a tokenizer is the bytes of one `tokenizer.json`. Those bytes are what is written beside the shards and what
is hashed, so whoever reads the shards can tell that it has the same one. Special ids appear only where mixkit puts
them: the literal `<|endoftext|>` in a text is encoded as the ordinary characters it consists of, and a tokenizer that
cannot do that is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from mixkit.corpus.hub import ASK_SECONDS, reason
from mixkit.corpus.recipe import Recipe
from mixkit.errors import UserError

# End-of-text tokens of common tokenizers, in the order in which they are looked for.
KNOWN_EOS = (
    "<|endoftext|>",
    "</s>",
    "<|end_of_text|>",
    "<eos>",
    "<|im_end|>",
    "<｜end▁of▁sentence｜>",
    "<|eot_id|>",
    "[EOS]",
    "[SEP]",
)

TRAINING_BYTES = 64_000_000  # of text that `train:N` looks at; more hardly moves the merges


@dataclass(frozen=True)
class Encoder:
    """A tokenizer ready for documents. `data` is its `tokenizer.json`; ids lie in [0, vocab_size)."""

    tokenizer: Tokenizer
    data: bytes
    vocab_size: int
    eos_token: str
    eos_id: int

    @property
    def sha256(self) -> str:
        """Of the bytes of `tokenizer.json`, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def dtype(self) -> np.dtype:
        """What token ids are stored as: uint16, or uint32 for a vocabulary of 65,536 or more."""
        return np.dtype(np.uint16 if self.vocab_size < 65_536 else np.uint32)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, without an end-of-text id."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]


def open_encoder(recipe: Recipe, training_texts: Callable[[], Iterable[str]]) -> Encoder:
    """The tokenizer that `recipe` names; `training_texts` is called only for `train:N`.

    Raises:
        UserError: no such file, a hub that cannot be reached, no end-of-text token, too little text to train on.
    """
    if recipe.trained_vocabulary is not None:
        data = train(training_texts(), recipe.trained_vocabulary)
    else:
        path = tokenizer_file(recipe.tokenizer)
        try:
            data = (path or _from_hub(recipe.tokenizer)).read_bytes()
        except OSError as error:
            raise UserError(f"tokenizer: {recipe.tokenizer} cannot be read ({error.strerror})") from None
    return load_encoder(data, recipe.tokenizer, recipe.eos)


def load_encoder(data: bytes, name: str, eos: str | None = None) -> Encoder:
    """An `Encoder` from the bytes of a `tokenizer.json`; `name` is what messages call it.

    Raises:
        UserError: broken bytes, no end-of-text token, a special token that text can produce.
    """
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception for anything it does not like
        raise UserError(f"tokenizer: {name} is no tokenizer.json ({error})") from None
    tokenizer.no_truncation()  # files from the hub often come with both switched on
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    eos_token = eos or next((token for token in KNOWN_EOS if tokenizer.token_to_id(token) is not None), None)
    if eos_token is None:
        raise UserError(f"eos: {name} has none of the known end-of-text tokens; name its own, for example eos='<end>'")
    eos_id = tokenizer.token_to_id(eos_token)
    if eos_id is None:
        raise UserError(f"eos: {name} has no token {eos_token!r}")
    _check_literals(tokenizer, name, eos_token)
    return Encoder(tokenizer, data, vocab_size, eos_token, eos_id)


def tokenizer_file(name: str) -> Path | None:
    """The local file that `tokenizer: name` means, or None for a name on the hub (or `train:N`).

    Raises:
        UserError: it is written like a path, and nothing is there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"tokenizer: the folder {name} holds no tokenizer.json")
        return path
    if path.is_file():
        return path
    if name.endswith(".json") or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"tokenizer: no such file: {name}")
    return None


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a byte-level BPE of exactly `vocab_size` entries, `<|endoftext|>` among them (id 0); its tokenizer.json.

    Text is split before merging as GPT-2 splits it. The same texts give the same bytes, whatever their order.

    Raises:
        UserError: the texts have too few different pieces for so many entries.
    """
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[KNOWN_EOS[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise UserError(f"tokenizer: train:{vocab_size} needs more text; this corpus gives at most train:{found}")
    return tokenizer.to_str(pretty=True).encode("utf-8")


def shared_budget(texts_of: Sequence[Callable[[], Iterator[str]]], budget: int) -> Iterator[str]:
    """About `budget` bytes of text out of several inputs, shared evenly; what a short input leaves, later ones get.

    Give the shortest inputs first. A text is never cut: an input stops after the one that uses up its share.
    """
    for position, texts in enumerate(texts_of):
        share = budget // (len(texts_of) - position)
        used = 0
        for text in texts():
            yield text
            used += len(text.encode("utf-8"))
            if used >= share:
                break
        budget = max(budget - used, 0)


def _check_literals(tokenizer: Tokenizer, name: str, eos_token: str) -> None:
    """Refuse a tokenizer that makes a special token out of text that merely spells it."""
    unknown = getattr(tokenizer.model, "unk_token", None)  # stands for unknown text by right
    special = {
        token.content: number
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and token.content != unknown
    }
    special[eos_token] = tokenizer.token_to_id(eos_token)
    for token, number in special.items():
        for text in (token, f"a {token} b", f"a{token}b"):
            if number in tokenizer.encode(text, add_special_tokens=False).ids:
                raise UserError(
                    f"tokenizer: {name} turns the text {token!r} into its special token, so a document could end "
                    "itself; choose another tokenizer" + (" or eos" if token == eos_token else "")
                )


def _from_hub(name: str) -> Path:
    """The tokenizer.json of a hub repository: from the hub, else from the local cache of it.

    Raises:
        UserError: quickly, where there is neither; the hub's own client would try again for minutes.
    """
    import huggingface_hub

    trouble = None
    try:
        huggingface_hub.HfApi().model_info(name, timeout=ASK_SECONDS)
    except (OSError, ValueError) as error:
        trouble = error
    try:
        return Path(huggingface_hub.hf_hub_download(name, "tokenizer.json", local_files_only=trouble is not None))
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenizer: {name} cannot be had from the Hugging Face hub ({reason(trouble or error)}); the other ways "
            "are the path of a tokenizer.json (tokenizer=path/to/tokenizer.json) or one trained on this corpus "
            "(tokenizer=train:8192)"
        ) from None
