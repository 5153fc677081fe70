"""Sample files of lm-evaluation-harness against its own figures.

Those in ``lm_eval_samples`` were written by version 0.4.13: its model "dummy", whose log-likelihoods are random, on
local tasks of a few documents, with ``--log_samples``; the figures are those of its table. The others are made up.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from crossent.errors import DataError
from crossent.measure import compare, evaluate
from crossent.measure.sources import batches, read_predictions

LIKELIHOODS = [[-4.0, -2.5, -7.0], [-1.0, -3.0], [-900.0, -901.0, -950.0]]
CHOICES = [[" a fox", " no", " hén"], [" yes", " no"], [" a", " b", " c"]]
TARGETS = [1, 0, 2]


WRITTEN = Path(__file__).parent / "lm_eval_samples"


def written(task: str) -> Path:
    [found] = WRITTEN.glob(f"samples_local_{task}_*.jsonl")
    return found


@pytest.mark.parametrize(
    ("task", "right", "accuracy"),
    [
        ("choice", [1, 2, 0, 1], 0.0),
        ("brier", [1, 0, 1], 1 / 3),
        ("mutual", [1, 2, 0, 1], 0.25),  # six requests for three choices
        ("text_target", [2, 1, 2, 1], 0.0),  # "4", "0", "1" and "2" are texts: of the second choice it is "0"
        ("inputs", [0, 1], 0.5),  # as in WinoGrande: the contexts are chosen among, and no target names one
    ],
)
def test_choices_that_it_wrote(task, right, accuracy):
    found = read_predictions(written(task))
    assert found.labels.tolist() == right
    assert evaluate(written(task))["accuracy"].value == pytest.approx(accuracy)


def test_brier_score_and_choices_per_byte_that_it_wrote():
    assert 2 * evaluate(written("brier"))["brier"].value == pytest.approx(0.4610866082768335, rel=1e-6)
    assert evaluate(written("brier"), form="per-byte")["accuracy"].value == pytest.approx(2 / 3)  # its acc_bytes
    assert evaluate(written("brier"))["accuracy"].value == pytest.approx(1 / 3)


def test_documents_that_it_wrote():
    assert evaluate(written("rolling"))["bits_per_byte"].value == pytest.approx(0.022504135134916035, rel=1e-12)
    of_words = evaluate(written("continuation"))
    assert math.exp(of_words["cross_entropy"].value) == pytest.approx(1.303236648242093, rel=1e-12)  # its perplexity
    with pytest.raises(DataError, match=r"line 1 is no sample.*its text was generated"):
        read_predictions(written("generated"))


def test_a_number_that_is_another_choice_s_text_is_not_guessed(tmp_path):
    """A target "1" among the choices 2, 0, 1: the choice in the middle, or the last one?"""
    scores = [-1.0, -3.0, -2.0]
    plain = choice(0) | {"target": "1", "filtered_resps": [[str(x), "False"] for x in scores]}
    plain["arguments"] = {f"gen_args_{i}": {"arg_0": "Q:", "arg_1": f" {x}"} for i, x in enumerate((2, 0, 1))}
    open_still = plain | {"acc": 0.0}  # the first one was thought right: both agree with that
    with pytest.raises(DataError, match="sample 1 is the number of one choice and the text of another"):
        read_predictions(write(tmp_path / "samples_x.jsonl", [open_still]))
    for target, right in (("0", 2), ("1", 1)):  # of a line that tells, and the other one follows it
        texts = {f"gen_args_{i}": {"arg_0": "Q:", "arg_1": f" {x}"} for i, x in enumerate((1, 3, 0))}
        telling = plain | {"doc_id": 1, "target": target, "acc": 0.0, "arguments": texts}
        found = read_predictions(write(tmp_path / "samples_x.jsonl", [open_still, telling]))
        assert found.labels.tolist() == [right, right]
    noted = open_still | {"brier_score": [2, "[0.6 0.1 0.3]"]}
    assert read_predictions(write(tmp_path / "samples_x.jsonl", [noted])).labels.tolist() == [2]
    with pytest.raises(DataError, match=r"noted as \[0, 2\], and there are 3 choices"):
        read_predictions(write(tmp_path / "samples_x.jsonl", [open_still | {"brier_score": [[0, 2], "[…]"]}]))


def choice(doc: int) -> dict:
    scores, texts = LIKELIHOODS[doc], CHOICES[doc]
    return {
        "doc_id": doc,
        "doc": {"question": "…"},
        "target": str(TARGETS[doc]),
        "arguments": {f"gen_args_{i}": {"arg_0": "Q:", "arg_1": text} for i, text in enumerate(texts)},
        "resps": [[[str(score), "False"]] for score in scores],
        "filtered_resps": [[str(score), "False"] for score in scores],
        "filter": "none",
        "acc": 1.0,
    }


def document(doc: int, text: str, score: float, **noted) -> dict:
    return {
        "doc_id": doc,
        "target": text,
        "arguments": {"gen_args_0": {"arg_0": text}},
        "resps": [[str(score)]],
        "filtered_resps": [str(score)],
        **noted,
    }


def write(path, samples):
    path.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), encoding="utf-8")
    return path


def test_choices_become_classes_by_softmax(tmp_path):
    path = write(tmp_path / "samples_arc_easy_2026-01-02T03-04-05.678.jsonl", [choice(doc) for doc in range(3)])
    found = read_predictions(path)
    assert (found.task, found.classes, found.rows.tolist()) == ("multi-class", ["0", "1", "2"], [0, 1, 2])
    assert found.labels.tolist() == TARGETS
    for i, scores in enumerate(LIKELIHOODS):
        assert found.probabilities[i, : len(scores)] == pytest.approx(softmax(scores), rel=1e-14)
    assert found.probabilities[1, 2] == 0  # a choice that was not there
    assert found.log_probabilities[2, 2] == pytest.approx(-50 - math.log(1 + math.exp(-1) + math.exp(-50)))
    assert "softmax of the choices' log-likelihoods" in found.notes[0]
    assert found.slices == {}


def test_the_right_choice_may_be_named_by_its_text(tmp_path):
    named = [choice(doc) | {"target": CHOICES[doc][TARGETS[doc]].strip()} for doc in range(3)]
    assert read_predictions(write(tmp_path / "samples_x.jsonl", named)).labels.tolist() == TARGETS


def test_choices_per_byte(tmp_path):
    path = write(tmp_path / "samples_x.jsonl", [choice(0)])
    found = read_predictions(path, form="per-byte")
    lengths = [len(text[1:].encode()) for text in CHOICES[0]]  # the space was put between
    assert lengths == [5, 2, 4]
    assert found.probabilities[0] == pytest.approx(softmax(np.array(LIKELIHOODS[0]) / lengths), rel=1e-14)
    assert "per byte" in found.notes[0]


def test_documents_have_bytes_and_are_groups(tmp_path):
    noted = {"bits_per_byte": [-1234.5, 777]}
    path = write(
        tmp_path / "samples_wikitext.jsonl", [document(0, "né, a text", -30.0), document(1, "…", -1234.5, **noted)]
    )
    found = read_predictions(path)
    assert (found.task, found.bytes.tolist()) == ("text", [11, 777])
    assert found.groups.tolist() == found.rows.tolist() == [0, 1]
    assert found.probabilities[1, 1] == 0.0  # underflows, and its logarithm does not
    assert found.log_probabilities[:, 1].tolist() == [-30.0, -1234.5]
    bits = -found.log_probabilities[:, 1].sum() / found.bytes.sum() / math.log(2)
    assert bits == pytest.approx((30 + 1234.5) / 788 / math.log(2))


def test_a_continuation_is_a_document(tmp_path):
    sample = document(0, " dark", -2.5)
    sample["arguments"] = {"gen_args_0": {"arg_0": "It was", "arg_1": " dark"}}
    sample["filtered_resps"], sample["resps"] = [["-2.5", "True"]], [[["-2.5", "True"]]]
    found = read_predictions(write(tmp_path / "samples_lambada.jsonl", [sample]))
    assert (found.task, found.bytes.tolist(), found.log_probabilities[0, 1]) == ("text", [5], -2.5)


def test_several_tasks_are_slices(tmp_path):
    for name in ("mmlu_law", "mmlu_art"):
        write(tmp_path / f"samples_{name}_2026-01-02T03-04-05.678.jsonl", [choice(0), choice(2)])
    found = read_predictions(tmp_path / "samples_mmlu_*.jsonl")
    assert found.rows.tolist() == ["mmlu_art/0", "mmlu_art/2", "mmlu_law/0", "mmlu_law/2"]
    assert found.slices["task"].tolist() == ["mmlu_art"] * 2 + ["mmlu_law"] * 2
    assert sum(len(part) for part in batches(tmp_path, batch_rows=3)) == 4


GENERATED = {"doc_id": 0, "arguments": {"gen_args_0": {"arg_0": "Q:"}}, "target": "7", "filtered_resps": ["seven"]}
REFUSED = [
    ([choice(0), GENERATED | {"resps": [["seven"]]}], "line 2 is no sample with log-likelihoods.*generated text"),
    # What was generated is a number here, and no log-likelihood.
    (
        [
            choice(0),
            document(1, "Q:", -3.0) | {"arguments": {"gen_args_0": {"arg_0": "Q:", "arg_1": {"until": ["#"]}}}},
        ],
        "line 2 is no sample.*its text was generated",
    ),
    ([choice(0), choice(1) | {"target": "maybe"}], "line 2.*'maybe', neither the number of a choice nor the text of"),
    ([choice(0), choice(0)], "document 0 comes twice"),
    ([choice(0), document(1, "a", -1.0)], "some samples are multiple choice and some are documents"),
    ([choice(0), choice(1) | {"target": "2"}], "line 2.*target is '2', and there are 2 choices, neither the number"),
    ([choice(0), choice(1) | {"filtered_resps": [["nan"], ["-1"]]}], "line 2.*a log-likelihood is 0 or less"),
    ([document(0, "", -1.0)], "the document has no bytes"),
]


@pytest.mark.parametrize(("samples", "sentence"), REFUSED)
def test_samples_that_cannot_be_read_get_a_sentence(tmp_path, samples, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_predictions(write(tmp_path / "samples_x.jsonl", samples))
    assert str(caught.value).endswith(".")


def test_what_samples_say_themselves_cannot_be_said_again(tmp_path):
    path = write(tmp_path / "samples_x.jsonl", [choice(0)])
    with pytest.raises(DataError, match="label= cannot be said"):
        read_predictions(path, label="target")
    with pytest.raises(DataError, match="form=None or 'per-byte'"):
        read_predictions(path, form="probabilities")


def test_runs_of_unequally_many_documents_meet_by_their_numbers(tmp_path):
    long, short = (
        [document(doc, "a text", -30.0 - scale * doc) for doc in range(n)] for n, scale in ((40, 1), (30, 2))
    )
    a, b = write(tmp_path / "samples_a.jsonl", long), write(tmp_path / "samples_b.jsonl", short[::-1])
    found = compare(a, b)
    assert found["difference"].value == pytest.approx(np.mean(np.arange(30)))
    assert "30 rows were compared: samples_b lacks 10 of samples_a's (30, 31" in found.facts["notes"][0]
    both = compare(a, write(tmp_path / "samples_c.jsonl", long[::-1]))  # equally many, in another order
    assert both.facts["verdict"] == "same"
