"""The network for text: a Hugging Face model folder that the user has, fine-tuned to tell classes apart.

Nothing is downloaded. The folder holds a configuration, weights and a tokenizer, as ``save_pretrained`` writes them;
its transformer is kept, and gets a new head if it has none for so many classes. A text becomes tokens once, before the
training, int64 (n, t), shorter ones filled up at the end by the tokenizer's padding token; a batch is cut down to its
own longest text before it is read, so that short texts cost little.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossent.errors import DataError, require, some
from crossent.files import refusal

ABOUT = "text.json"
LONGEST = 512
"""Tokens of a text that are read, unless the model reads fewer: attention costs the square of them."""


class TextNetwork(nn.Module):
    """Tokens (n, t), int64, padding at the end → logits (n, classes).

    ``model`` is the sequence classifier of transformers, ``tokenizer`` its tokenizer, ``column`` the name of the column
    of texts, ``classes`` their names in the order of the logits, ``longest`` how many tokens of a text are read.
    """

    model: Any

    rows_at_once = 64
    """Rows that are read together where no gradient is wanted."""

    def __init__(self, model: nn.Module, tokenizer: Any, column: str, classes: Sequence[str], longest: int) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.column, self.classes, self.longest = column, tuple(classes), longest
        self.notes: list[str] = []

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], column: str, classes: Sequence[str], longest: int = LONGEST
    ) -> TextNetwork:
        """Take a model folder for a column of texts and these classes; a new head draws from torch's own seed.

        Any model that ``AutoModelForSequenceClassification`` knows. Weights are read as float32, whatever they were
        kept in: small steps would be lost in 16 bits. Raises DataError, a sentence, for what is no such folder, and
        MissingExtra without ``crossent[text]``.
        """
        folder = Path(folder)
        transformers = require("transformers", "text", "fine-tuning a model of texts")
        if not (folder / "config.json").is_file():
            raise DataError(
                f"{str(folder)!r} is no model folder: there is no config.json in it. Name a folder with a model and "
                "its tokenizer, as save_pretrained of transformers writes it; crossent downloads none."
            )
        with _quiet(transformers):
            try:
                own = {"local_files_only": True, "trust_remote_code": False}
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **own)
                model = transformers.AutoModelForSequenceClassification.from_pretrained(
                    folder,
                    **own,
                    dtype=torch.float32,
                    num_labels=len(classes),
                    id2label=dict(enumerate(classes)),
                    label2id={name: place for place, name in enumerate(classes)},
                    ignore_mismatched_sizes=True,  # a head for other classes is replaced
                )
            except Exception as trouble:  # transformers, tokenizers, safetensors and JSON each have their own
                raise DataError(
                    f"the model in {str(folder)!r} cannot be read: {' '.join(str(trouble).split())[:500]}"
                ) from trouble
        named = getattr(tokenizer, "vocab_files_names", {})  # of one that reads bytes none
        files = {"tokenizer.json", *named.values()}
        if named and not any((folder / file).is_file() for file in files):
            # transformers would take an empty vocabulary, in which every word is unknown.
            raise DataError(
                f"there is no tokenizer in {str(folder)!r}: it needs {some(sorted(files))}, as save_pretrained of the "
                "model's tokenizer writes them."
            )
        vectors = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > vectors:
            raise DataError(
                f"the tokenizer in {str(folder)!r} has {len(tokenizer):,} tokens, and the model knows {vectors:,}: "
                "they do not belong together."
            )
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise DataError(
                    f"the tokenizer in {str(folder)!r} has neither a padding token nor one for the end of a text, and "
                    "texts of unequal length need one: set tokenizer.pad_token and save it again."
                )
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = (
            tokenizer.pad_token_id
        )  # models without a first token look for the last one that counts
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return cls(model, tokenizer, column, classes, min(longest, _positions(model), tokenizer.model_max_length))

    def tokens(self, table: Any, source: str) -> Tensor:
        """Give the tokens (n, t), int64, of the texts of a pandas table; a missing text has no words.

        Raises DataError, a sentence with the row, for cells that are not text. What was cut is said in ``notes``.
        """
        if self.column not in table.columns:
            raise DataError(
                f"{source} has no column {self.column!r}, whose texts the model reads. Its columns are "
                f"{some(list(table.columns), 12)}."
            )
        cells = table[self.column]
        missing = cells.isna().to_numpy()
        texts = ["" if gone else text for text, gone in zip(cells, missing, strict=True)]
        for row, text in zip(cells.index, texts, strict=True):
            if not isinstance(text, str):
                raise DataError(
                    f"{source}: column {self.column!r} should hold texts, and row {row} has {text!r}, a "
                    f"{type(text).__name__}. Name another column, or turn its cells into text."
                )
        if missing.all():
            raise DataError(f"{source}: column {self.column!r} is empty in every row: there is nothing to read.")
        found = self._encoded(texts, self.longest)
        full = [place for place, row in enumerate(found) if len(row) == self.longest]
        cut = sum(len(row) > self.longest for row in self._encoded([texts[i] for i in full], self.longest + 1))
        if cut:
            note = f"{source}: {cut:,} of {len(texts):,} texts are longer than {self.longest} tokens; the rest was cut."
            self.notes += [note] if note not in self.notes else []
        width = max(1, max(map(len, found)))
        tokens = torch.full((len(found), width), self.tokenizer.pad_token_id)
        for place, row in enumerate(found):
            tokens[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return tokens

    def _encoded(self, texts: list[str], longest: int) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=longest)["input_ids"] if texts else []

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits (n, classes); a row does not depend on how far others made it be filled up."""
        counts = self._counts(tokens)
        if not torch.compiler.is_compiling():
            width = int(counts.any(0).sum())
            tokens, counts = tokens[:, :width], counts[:, :width]
        return self.model(input_ids=tokens, attention_mask=counts.to(tokens.dtype)).logits

    def _counts(self, tokens: Tensor) -> Tensor:
        """Which tokens are read, (n, t): all up to the last that is no padding, and the first in any case.

        Padding tokens inside a text are the text's own, where a model uses its end-of-text token for both.
        """
        text = tokens != self.tokenizer.pad_token_id
        last = torch.where(text, torch.arange(tokens.shape[1], device=tokens.device), 0).amax(1, keepdim=True)
        return torch.arange(tokens.shape[1], device=tokens.device) <= last

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a model folder that transformers reads too, whole or not at all: weights, configuration, tokenizer."""
        transformers = require("transformers", "text", "saving a model of texts")
        folder = Path(folder)
        temporary = folder.with_name(f".unfinished-{uuid.uuid4().hex}")
        about = {"column": self.column, "classes": list(self.classes), "longest": self.longest}
        try:
            temporary.mkdir(parents=True)
            with _quiet(transformers):
                self.model.save_pretrained(temporary)
                self.tokenizer.save_pretrained(temporary)
            (temporary / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            for file in temporary.iterdir():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            if folder.exists():  # two renames: between them the old model stands under a name of its own
                before = folder.with_name(f".before-{uuid.uuid4().hex}")
                os.replace(folder, before)
                os.replace(temporary, folder)
                shutil.rmtree(before)
            else:
                os.replace(temporary, folder)
        except Exception as trouble:
            # The library that writes the weights has an error of its own for a full disk.
            reason = trouble if isinstance(trouble, OSError) else OSError(None, str(trouble))
            raise DataError(refusal(reason, folder)) from trouble
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TextNetwork:
        """Read back what ``save`` wrote, in evaluation mode."""
        place = Path(folder) / ABOUT
        try:
            about = json.loads(place.read_text(encoding="utf-8"))
            column, classes, longest = about["column"], about["classes"], about["longest"]
        except (OSError, ValueError, KeyError, TypeError) as trouble:
            raise DataError(f"{str(place)!r} does not say how texts are read: {trouble}.") from trouble
        network = cls.from_folder(folder, column, classes, longest)
        return network.eval()


def column_of_text(table: Any, source: str) -> str:
    """Give the name of a pandas table's column of texts: the one with the most characters, among those of text.

    >>> import pandas
    >>> column_of_text(pandas.DataFrame({"id": [1, 2], "kind": ["a", "b"], "note": ["an oak", "a birch"]}), "trees")
    'note'
    """
    lengths = {
        name: sum(map(len, texts))
        for name, cells in table.items()
        if len(texts := cells.dropna()) and all(isinstance(text, str) for text in texts)
    }
    if not lengths:
        raise DataError(f"{source} has no column of text. Its columns are {some(list(table.columns), 12)}.")
    return max(lengths, key=lambda name: lengths[name])


def _positions(model: Any) -> int:
    """How many tokens the model has places for. Some (RoBERTa) leave those up to the padding token's number unused."""
    places = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    return min([*places, getattr(model.config, "max_position_embeddings", None) or LONGEST])


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without bars, and without the warning that a head is new, which is why it is trained."""
    log = transformers.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
