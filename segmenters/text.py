"""Normalise phrases for referring segmenters, and load the tokenizers stored with the weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from maskgym.errors import UserError
from maskgym.segmenters.weights import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SEMANTIC = "[semantic]"
SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # ids 0 to 3
SENTENCEPIECE_NAMES = ("sentencepiece.bpe.model", "beit3.spm")


def split_semantic(phrase: str) -> tuple[bool, str]:
    """Check whether a phrase asks for all regions of a class, and remove that prefix.

    Each run of whitespace becomes one space.

    Example:
        >>> split_semantic("[semantic]  yellow  ducks ")
        (True, 'yellow ducks')
        >>> split_semantic("a duck on the left")
        (False, 'a duck on the left')
    """
    words = " ".join(phrase.split())
    if words.startswith(SEMANTIC):
        return True, words[len(SEMANTIC) :].lstrip()
    return False, words


def uniform_phrase(phrase: str) -> str:
    """Normalise whitespace and put exactly one space after ``[semantic]``.

    The multitask checkpoint was trained with that space, which answers may omit.

    Example:
        >>> uniform_phrase("[semantic]yellow ducks")
        '[semantic] yellow ducks'
    """
    semantic, words = split_semantic(phrase)
    return f"{SEMANTIC} {words}" if semantic else words


def tokenize(
    tokenizer: PreTrainedTokenizerBase, phrases: Sequence[str], max_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenize to ids int64 (P, T) and padding mask bool (P, T), True at padding, of ``<s> … </s>`` sequences.

    Args:
        tokenizer: Tokenizer from `load_tokenizer` or `word_tokenizer`.
        phrases: P strings; the empty string is legal.
        max_tokens: Maximum length; longer phrases are truncated and keep ``</s>``.
    """
    # Tokenizers cannot read a lone surrogate, which JSON may contain.
    readable = [phrase.encode("utf-8", "replace").decode() for phrase in phrases]
    batch = tokenizer(
        readable, padding=True, padding_side="right", truncation=True, max_length=max_tokens, return_tensors="pt"
    )
    return batch["input_ids"], batch["attention_mask"] == 0


def word_tokenizer(words: Iterable[str], special_last: bool = False) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose vocabulary is the given words, for models with a small vocabulary.

    Text is lower-cased and split at whitespace and punctuation, ``[semantic]`` staying whole; ``save_pretrained``
    writes a ``tokenizer.json``.

    Args:
        words: Words or phrases, in any order; the vocabulary is their sorted parts.
        special_last: Whether to number the special tokens last instead of 0 to 3; a CLIP of transformers whose end
            token is 2 takes the largest id as the end.

    Example:
        >>> tokenizer = word_tokenizer(["[semantic] red dog"])
        >>> tokenizer("Red dog!").input_ids
        [0, 6, 5, 3, 2]
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.Split(Regex(r"\[semantic\]|\w+|[^\w\s]"), "removed", invert=True)
    pieces = sorted({piece for text in words for piece, _ in splitter.pre_tokenize_str(text.lower())})
    special = list(SPECIAL_TOKENS.values())
    vocabulary = {
        token: index for index, token in enumerate([*pieces, *special] if special_last else [*special, *pieces])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def find_tokenizer(path: Path) -> Path:
    """Find the tokenizer file at ``path``: the file itself, or the one in that folder.

    Raises:
        UserError: If there is no tokenizer.
    """
    if path.is_file():
        return path
    names = ("tokenizer.json", *SENTENCEPIECE_NAMES)
    for name in names:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: no tokenizer there: expected one of {', '.join(names)}")


def load_tokenizer(file: Path, vocabulary_size: int) -> PreTrainedTokenizerBase:
    """Load a tokenizer: ``tokenizer.json``, or the SentencePiece model of BEiT-3 under any name.

    Args:
        file: Tokenizer file from `find_tokenizer`.
        vocabulary_size: Number of rows of the model's word embedding.

    Raises:
        UserError: If the file cannot be read, its special tokens are not 0 to 3, or it has more ids than rows.
    """
    try:
        tokenizer = _read_json(file) if file.suffix == ".json" else _read_sentencepiece(file)
    # The libraries raise plain Exception for a broken file, so no narrower type works.
    except Exception as error:
        raise UserError(f"{file}: cannot be read as a tokenizer: {first_line(error)}") from error
    special = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values()))
    if special != [0, 1, 2, 3]:
        raise UserError(f"{file}: <s>, <pad>, </s>, <unk> have ids {special}: expected [0, 1, 2, 3]")
    if len(tokenizer) > vocabulary_size:
        raise UserError(f"{file}: has {len(tokenizer)} ids, but the model has rows for {vocabulary_size}")
    return tokenizer


def _read_json(file: Path) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(file)), **SPECIAL_TOKENS)


def _read_sentencepiece(file: Path) -> PreTrainedTokenizerBase:
    # For the file itself, transformers 5 silently builds a tokenizer with an empty vocabulary. It only converts a
    # folder that holds the file under the expected name.
    from transformers import XLMRobertaTokenizer

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SENTENCEPIECE_NAMES[0]).symlink_to(file.resolve())
        return XLMRobertaTokenizer.from_pretrained(folder)
