"""The network for text: tiny random models and tokenizers made here, fine-tuned, kept and read back offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from crossent import cross_entropy
from crossent.errors import DataError
from crossent.minimise.networks.text import TextNetwork, column_of_text

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'crossent[text]'")

WORDS = ["oak", "ash", "elm", "fir", "carp", "pike", "eel", "cod", "a", "the", "old", "big", "##s", "in", "and"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,  # at the usual 0.02 every text would get nearly the same logits
}
CLASSES = ("fish", "tree")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity(transformers.logging.WARNING)  # so that what a test has to see is said


def model_folder(folder: Path, head: str = "BertModel", **options: Any) -> Path:
    """A BERT with random weights and a WordPiece tokenizer of a few words, as a user would have it."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    getattr(transformers, head)(transformers.BertConfig(**{**SMALL, **options})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("text") / "bert")


def texts(rows: int = 120, seed: int = 0) -> tuple[pd.DataFrame, Tensor]:
    """Sentences of unequal length; a word in the middle tells the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    names = [random.choice(WORDS[4:8] if label == 0 else WORDS[:4]) for label in labels]
    fill = [" ".join(random.choice(WORDS[8:12], random.integers(1, 9))) for _ in range(2 * rows)]
    said = [f"{before} {name}s {after}" for before, name, after in zip(fill[:rows], names, fill[rows:], strict=True)]
    return pd.DataFrame({"id": range(rows), "note": said}), torch.from_numpy(labels)


def fresh(folder: Path, **options: Any) -> TextNetwork:
    torch.manual_seed(1)
    return TextNetwork.from_folder(folder, "note", CLASSES, **options)


def logits(network: TextNetwork, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(tokens)


def test_fine_tuning_lowers_the_cross_entropy(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "bert", initializer_range=0.02)
    (table, labels), (others, theirs) = texts(), texts(60, seed=1)
    network = fresh(folder)
    seen, held_out = network.tokens(table, "notes"), network.tokens(others, "others")
    assert (seen.dtype, network(seen[:5]).shape) == (torch.int64, (5, 2))

    def loss() -> float:
        return float(cross_entropy(logits(network, held_out), theirs))

    before = loss()
    assert before == pytest.approx(np.log(2), abs=0.2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(12):
        network.train()
        for rows in torch.randperm(len(labels)).split(20):
            optimizer.zero_grad()
            cross_entropy(network(seen[rows]), labels[rows]).backward()
            optimizer.step()
    assert loss() < 0.1 < before
    changed = {name for name, value in fresh(folder).named_parameters() if not value.equal(network.get_parameter(name))}
    assert {"model.bert.embeddings.word_embeddings.weight", "model.classifier.weight"} <= changed  # not the head alone


def test_it_starts_from_the_user_s_weights(folder: Path) -> None:
    kept = transformers.BertModel.from_pretrained(folder)
    network = fresh(folder)
    for name, value in kept.named_parameters():
        assert value.equal(network.model.bert.get_parameter(name)), name
    assert fresh(folder).model.classifier.weight.equal(network.model.classifier.weight)
    torch.manual_seed(2)
    again = TextNetwork.from_folder(folder, "note", CLASSES)
    assert not again.model.classifier.weight.equal(network.model.classifier.weight)


def test_tokens_are_those_of_the_tokenizer(folder: Path) -> None:
    network = fresh(folder)
    tokens = network.tokens(pd.DataFrame({"note": ["The old oaks", None, "zebra"]}), "three")
    names = [network.tokenizer.convert_ids_to_tokens(row) for row in tokens.tolist()]
    assert names[0] == ["[CLS]", "the", "old", "oak", "##s", "[SEP]"]
    assert names[1] == ["[CLS]", "[SEP]", *["[PAD]"] * 4]
    assert names[2][:3] == ["[CLS]", "[UNK]", "[SEP]"]


def test_a_row_does_not_depend_on_how_far_it_is_filled_up(folder: Path) -> None:
    network = fresh(folder)
    table, _ = texts(30)
    tokens = network.tokens(table, "notes")
    alone = torch.cat([logits(network, row[None]) for row in tokens])
    wider = torch.nn.functional.pad(tokens, (0, 0 if tokens.shape[1] == 20 else 20 - tokens.shape[1]))
    # Products of float32 with other neighbours are added up in another order.
    torch.testing.assert_close(logits(network, tokens), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(network, wider), alone, rtol=0, atol=1e-5)
    shortest = (tokens != 0).sum(1).argmin()
    unmasked = network.model(input_ids=tokens).logits.detach()
    assert (unmasked - alone)[shortest].abs().max() > 1e-3  # padding that is read is seen


def test_long_texts_are_cut_and_it_is_said(folder: Path) -> None:
    network = fresh(folder)
    assert network.longest == 20  # the model has no more places
    table = pd.DataFrame({"note": ["oak " * 30, "elm", "fir " * 18, "old " * 19]})
    tokens = network.tokens(table, "notes.csv")
    assert tokens.shape == (4, 20)
    assert logits(network, tokens).isfinite().all()
    assert network.notes == ["notes.csv: 2 of 4 texts are longer than 20 tokens; the rest was cut."]
    assert network.tokenizer.convert_ids_to_tokens(tokens[0].tolist())[-1] == "[SEP]"
    short = fresh(folder, longest=4)
    assert short.tokens(table, "notes").shape == (4, 4)
    assert fresh(folder).notes == []


@pytest.mark.parametrize("written_before", [False, True])
def test_saved_and_read_back_it_gives_the_same_bits(folder: Path, tmp_path: Path, written_before: bool) -> None:
    network = fresh(folder, longest=9)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.01 * torch.randn_like(value)
    table, _ = texts(20)
    place = tmp_path / "run" / "text"
    if written_before:
        fresh(folder).save(place)
    network.save(place)
    again = TextNetwork.load(place)
    tokens = again.tokens(table, "notes")
    assert tokens.equal(network.tokens(table, "notes"))
    assert tokens.shape[1] == 9
    assert logits(again, tokens).equal(logits(network, tokens))
    assert not logits(fresh(folder), tokens).equal(logits(network, tokens))
    assert (again.column, again.classes, again.training) == ("note", CLASSES, False)
    assert [file.name for file in place.parent.iterdir()] == ["text"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "text.json"} <= {f.name for f in place.iterdir()}
    # It is a model folder for anybody else too.
    theirs = transformers.pipeline("text-classification", model=str(place), device="cpu")(table["note"][0])[0]
    p = logits(network, network.tokens(table[:1], "notes")).softmax(1)[0]
    if len(tokens[0]) < 9:
        assert (theirs["label"], theirs["score"]) == (CLASSES[p.argmax()], pytest.approx(float(p.max()), abs=1e-5))
    assert theirs["label"] in CLASSES


def test_what_fails_while_it_is_saved_leaves_what_was_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, place = fresh(folder), tmp_path / "text"
    network.save(place)
    before = {file.name: file.read_bytes() for file in place.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with torch.no_grad():
        network.model.classifier.weight += 1
    monkeypatch.setattr(network.tokenizer, "save_pretrained", full)
    with pytest.raises(DataError, match="the disk is full"):
        network.save(place)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["text"]


def test_a_model_without_padding_reads_its_last_token(tmp_path: Path) -> None:
    """GPT-2 has no padding token, and looks at the last token that is none."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {name: place for place, name in enumerate(["<end>", *WORDS])}
    rules = Tokenizer(models.WordLevel(words, unk_token="a"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<end>")
    tokenizer.save_pretrained(tmp_path / "gpt")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=12, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2Model(config).save_pretrained(tmp_path / "gpt")
    network = fresh(tmp_path / "gpt")
    assert network.longest == 12
    tokens = network.tokens(pd.DataFrame({"note": ["oak ash elm", "", "<end> oak", "cod"]}), "few")
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 0], [0, 1, 0], [8, 0, 0]]
    alone = torch.cat([logits(network, row[: max(1, n)][None]) for row, n in zip(tokens, (3, 0, 2, 1), strict=True)])
    torch.testing.assert_close(logits(network, tokens), alone, rtol=0, atol=1e-5)
    assert (alone[0] - alone[3]).abs().max() > 1e-3
    network.save(tmp_path / "kept")
    assert logits(TextNetwork.load(tmp_path / "kept"), tokens).equal(logits(network, tokens))


def test_roberta_has_fewer_places_than_it_says(tmp_path: Path) -> None:
    options = {**SMALL, "pad_token_id": 1}
    transformers.BertTokenizer(
        vocab={name: place for place, name in enumerate([*SPECIAL, *WORDS])}, pad_token="[UNK]", unk_token="[PAD]"
    ).save_pretrained(tmp_path / "roberta")
    transformers.RobertaModel(transformers.RobertaConfig(**options)).save_pretrained(tmp_path / "roberta")
    network = fresh(tmp_path / "roberta")
    assert network.longest == 18
    assert logits(network, network.tokens(pd.DataFrame({"note": ["oak " * 40]}), "long")).isfinite().all()


def test_a_head_for_other_classes_is_replaced_and_weights_are_float32(tmp_path: Path) -> None:
    place = model_folder(tmp_path / "bert", "BertForSequenceClassification", num_labels=5)
    half = transformers.BertForSequenceClassification.from_pretrained(place).to(torch.bfloat16)
    half.save_pretrained(place)
    network = fresh(place)
    assert network.model.classifier.weight.shape == (2, 24)
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert network.model.config.id2label == {0: "fish", 1: "tree"}
    five = TextNetwork.from_folder(place, "note", list("abcde"))
    assert five.model.classifier.weight.equal(half.classifier.weight.float())  # a head that fits is kept


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGE = {
    "no folder": (shutil.rmtree, "is no model folder: there is no config.json in it.*crossent downloads none"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "cannot be read"),
    "no tokenizer": (lambda f: [file.unlink() for file in f.iterdir() if "token" in file.name or "vocab" in file.name],
                     "there is no tokenizer in .*: it needs tokenizer.json, vocab.txt"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    "another kind": (lambda f: change(f / "config.json", model_type="clap"), "cannot be read"),
    "a foreign tokenizer": (lambda f: transformers.BertTokenizer(
        vocab={name: place for place, name in enumerate([*SPECIAL, *WORDS, *"αβγ"])}).save_pretrained(f),
        "has 23 tokens, and the model knows 20: they do not belong together"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_a_sentence(folder: Path, tmp_path: Path, case: str) -> None:
    damage, sentence = DAMAGE[case]
    place = tmp_path / "bert"
    shutil.copytree(folder, place)
    fresh(place)
    damage(place)
    with pytest.raises(DataError, match=sentence):
        fresh(place)


def test_the_name_of_a_model_on_the_net_is_refused() -> None:
    with pytest.raises(DataError, match="'bert-base-uncased' is no model folder"):
        fresh(Path("bert-base-uncased"))


BAD = {
    "another column": (pd.DataFrame({"text": ["a"]}), "x.csv has no column 'note', whose texts the model reads"),
    "numbers": (pd.DataFrame({"note": ["a", 7]}, index=[3, 9], dtype=object), "row 9 has 7, a int"),
    "nothing": (pd.DataFrame({"note": [None, None]}), "column 'note' is empty in every row"),
}


@pytest.mark.parametrize("case", BAD)
def test_cells_that_are_no_text_are_refused(folder: Path, case: str) -> None:
    table, sentence = BAD[case]
    with pytest.raises(DataError, match=sentence):
        fresh(folder).tokens(table, "x.csv")


def test_the_column_of_text_is_the_one_with_the_most() -> None:
    table, _ = texts(10)
    assert column_of_text(table.assign(kind="a", day=pd.Timestamp("2020-01-01")), "notes") == "note"
    assert column_of_text(table.assign(note=[None, *table["note"][1:]]), "notes") == "note"
    with pytest.raises(DataError, match=r"notes has no column of text. Its columns are id"):
        column_of_text(table[["id"]], "notes")


def test_what_is_not_text_json_is_said(folder: Path) -> None:
    with pytest.raises(DataError, match=r"text.json' does not say how texts are read"):
        TextNetwork.load(folder)
