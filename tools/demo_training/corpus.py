"""Text of the interpreter's standard library: files, tokenizer, streams of token ids and prompts."""

import hashlib
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo_training.stages import MAX_POSITIONS, Budget

END_OF_TEXT = "<|endoftext|>"
EXCLUDED_PARTS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
HELD_OUT_PER_MILLE = 60
VOCAB_SIZE = 2048
PROMPT_TOKENS = 96


def library_files() -> tuple[list[Path], list[Path]]:
    """Return the standard library's sources as (training, held out), divided by a hash of the relative name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    training: list[Path] = []
    held_out: list[Path] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if EXCLUDED_PARTS.isdisjoint(name.parts):
            digest = hashlib.sha256(name.as_posix().encode()).digest()
            per_mille = int.from_bytes(digest[:4], "big") * 1000 >> 32
            (held_out if per_mille < HELD_OUT_PER_MILLE else training).append(path)
    return training, held_out


def read_sources(paths: list[Path]) -> list[str]:
    """Return the texts of the files that are not empty."""
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return [text for text in texts if text.strip()]


def train_tokenizer(texts: list[str], out: Path) -> PreTrainedTokenizerFast:
    """Train and save a byte-level BPE with one special token, which begins and ends every file."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=MAX_POSITIONS
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Return one stream of token ids, END_OF_TEXT before each text and after the last."""
    end = tokenizer.eos_token_id
    stream: list[int] = [end]
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        stream += encoding.ids
        stream.append(end)
    return torch.tensor(stream)


def batches(stream: Tensor, budget: Budget, rng: random.Random) -> Iterator[Tensor]:
    """Yield endless shuffled epochs of [sequences, tokens + 1] windows; each epoch has another offset."""
    width = budget.sequence_tokens
    while True:
        starts = list(range(rng.randrange(width), len(stream) - width - 1, width))
        rng.shuffle(starts)
        for i in range(0, len(starts) - budget.batch_sequences + 1, budget.batch_sequences):
            chosen = starts[i : i + budget.batch_sequences]
            yield torch.stack([stream[s : s + width + 1] for s in chosen])


def windows(stream: Tensor, count: int, width: int, rng: random.Random) -> Tensor:
    """Return `count` windows of the stream at random offsets: [count, width]."""
    starts = [rng.randrange(len(stream) - width) for _ in range(count)]
    return torch.stack([stream[s : s + width] for s in starts])


def held_out_prompts(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Return a prompt of each held-out file that is long enough, from a third of its length on."""
    encodings = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts)]
    starts = [(ids, len(ids) // 3) for ids in encodings]
    return [ids[s : s + PROMPT_TOKENS] for ids, s in starts if len(ids) >= s + PROMPT_TOKENS]
