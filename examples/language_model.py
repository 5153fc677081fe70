"""Train a small Llama on Python's own standard library twice, and see that a lazy head changes nothing but the memory.

pip install 'crossent[cli,models]'
python examples/language_model.py                 # two or three minutes on two cores
python examples/language_model.py --quick         # half a minute, and a model that has hardly learnt
python examples/language_model.py --device cuda --width 1024 --layers 8 --sequences 32 --length 512 --steps 2000

The first model is transformers' own; the second is the same after ``crossent.lazy_head(model)``. Both have the same
seed and see the same text. Each is a process of its own, so that its memory is its own, and the two take turns step by
step, so that whatever else the machine does slows both. A tokenizer with 32,768 tokens is trained first, on the same
text. At the end the two curves of the loss are compared: unless they coincide, the program ends with status 1.

Written: language_model.html, a page for a person, and language_model.json, a crossent.Record of all its figures.
"""

import argparse
import contextlib
import ctypes
import importlib.resources
import math
import multiprocessing
import os
import random
import statistics
import sys
import sysconfig
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import jinja2
import tokenizers
import torch
import transformers
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import crossent
from crossent.record import Curve, Number, Record
from crossent.report import digits
from crossent.report.svg import ACCENT, INK, MUTED, drawing, inline

HEADS = ("eager", "lazy")
END = "<|endoftext|>"

# Two trainings that only round differently drift apart. In sixty steps of two sequences: the two heads up to 7e-5 nats;
# two eager heads, when one weight of one of them has another last bit, 4e-5; with a learning rate that is larger by a
# thousandth, 4e-2. In thousands of steps a last bit grows to more than that, so that only these are compared.
CLOSE, COMPARED = 1e-3, 60


def arguments() -> argparse.Namespace:
    """Sizes, steps and where to write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps of few tokens, unless they are given")
    parser.add_argument("--steps", type=int, help="optimiser steps (default 60; quick 6)")
    parser.add_argument("--sequences", type=int, help="sequences in a step (default 8; quick 2)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence (default 128)")
    parser.add_argument("--width", type=int, default=64, help="size of a hidden state, a multiple of 32 (default 64)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the trunk (default 2)")
    parser.add_argument("--vocabulary", type=int, default=32768, help="tokens that the head can tell (default 32768)")
    parser.add_argument("--megabytes", type=float, default=5.0, help="how much text to read (default 5)")
    parser.add_argument("--learning-rate", type=float, default=1e-2, help="of AdamW, at its highest (default 0.01)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches, for both (default 0)")
    parser.add_argument("--page", type=Path, default=Path("language_model.html"), help="the page; the record beside it")
    told = parser.parse_args()
    told.steps = told.steps or (6 if told.quick else 60)
    told.sequences = told.sequences or (2 if told.quick else 8)
    if told.width % 32 or told.steps < 2:
        parser.error("--width must be a multiple of 32, and --steps at least 2: the first one is not timed")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        parser.error(
            "this program trains in two processes of its own, one for each head: start it with python. "
            "examples/parallel_language_model.py is the one for torchrun."
        )
    return told


# --- the text, and a tokenizer for it --------------------------------------------------------------------------------


def sources(megabytes: float) -> tuple[list[str], list[str]]:
    """Files of the standard library in a random order that is always the same: nine in ten to learn, one to measure."""
    library = Path(sysconfig.get_path("stdlib"))
    elsewhere = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
    files = [file for file in sorted(library.rglob("*.py")) if elsewhere.isdisjoint(file.relative_to(library).parts)]
    random.Random(0).shuffle(files)
    texts, room = [], megabytes * 1e6
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        room -= len(text.encode())
        if room < 0:
            break
        texts.append(text)
    return [text for i, text in enumerate(texts) if i % 10], texts[::10]


def tokenizer_for(texts: list[str], vocabulary: int) -> tokenizers.Tokenizer:
    """A byte-level BPE: it has a token for every byte, so that it can write any text."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    if made.get_vocab_size() < vocabulary:
        sys.exit(
            f"{sum(map(len, texts)) / 1e6:.1f} MB of text gave a tokenizer of {made.get_vocab_size():,} tokens, and "
            f"{vocabulary:,} were asked for: take more text (--megabytes) or fewer tokens (--vocabulary)."
        )
    return made


def tokens_of(texts: list[str], tokenizer: tokenizers.Tokenizer) -> Tensor:
    """All texts one after the other, an end before, between and after them."""
    end = tokenizer.token_to_id(END)
    pieces = [[end], *([*text.ids, end] for text in tokenizer.encode_batch(texts))]
    return torch.tensor([token for piece in pieces for token in piece])


# --- one training, in a process of its own ---------------------------------------------------------------------------


class Memory:
    """``with Memory(device) as memory``: the most that was in use inside, beyond what was in use before."""

    def __init__(self, device: str) -> None:
        self.device, self.bytes = device, math.nan

    def __enter__(self) -> "Memory":
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        with contextlib.suppress(OSError):  # only Linux has this file; elsewhere the figure is not known
            Path("/proc/self/clear_refs").write_text("5")  # 5: forget the high-water mark
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                trim(0)  # what was freed is given back, so that it counts anew
                Path("/proc/self/clear_refs").write_text("5")
            self.before = self._line("VmRSS")
        return self

    def __exit__(self, *trouble: object) -> None:
        if self.device == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        elif hasattr(self, "before"):
            self.bytes = self._line("VmHWM") - self.before

    @staticmethod
    def _line(name: str) -> int:
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status[name].split()[0])


def training(head: str, told: argparse.Namespace, learn: Tensor, measure: Tensor, turn) -> None:
    """Train; wait for a word through the pipe ``turn`` before each step, and answer with its loss and its seconds."""
    torch.manual_seed(told.seed)
    shape = transformers.LlamaConfig(
        vocab_size=told.vocabulary,
        hidden_size=told.width,
        intermediate_size=3 * told.width,
        num_hidden_layers=told.layers,
        num_attention_heads=told.width // 16,
        num_key_value_heads=told.width // 32,
        max_position_embeddings=told.length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.LlamaForCausalLM(shape).to(told.device)
    if head == "lazy":
        crossent.lazy_head(model)  # the only line in which the two differ
    optimizer = torch.optim.AdamW(model.parameters(), lr=told.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, told.learning_rate, told.steps, pct_start=0.2)
    rows = learn[: len(learn) // told.length * told.length].view(-1, told.length).to(told.device)
    batches = torch.Generator().manual_seed(told.seed)

    def batch() -> Tensor:
        return rows[torch.randint(len(rows), (told.sequences,), generator=batches).to(told.device)]

    def step() -> tuple[float, float]:
        x, began = batch(), time.perf_counter()
        loss = model(input_ids=x, labels=x).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()  # waits for the GPU
        schedule.step()
        return value, time.perf_counter() - began

    turn.recv()
    turn.send(step())  # compiles, and makes the optimiser's state
    with Memory(told.device) as whole:
        for _ in range(told.steps - 1):
            turn.recv()
            turn.send(step())
    turn.recv()
    x = batch()
    hidden = model.model(input_ids=x).last_hidden_state.detach().requires_grad_()
    with Memory(told.device) as part:  # the head and the loss alone
        model.loss_function(model.lm_head(hidden), x, told.vocabulary).backward()
    turn.send((part.bytes, whole.bytes, nats_of(model, measure, told), sum(p.numel() for p in model.parameters())))


@torch.no_grad()
def nats_of(model: torch.nn.Module, rows: Tensor, told: argparse.Namespace) -> float:
    """What all tokens of the rows cost, but the first of each, which only is what the others follow."""
    model.eval()
    pieces = rows.to(told.device).split(told.sequences)
    return sum(model(input_ids=x, labels=x).loss.item() * x[:, 1:].numel() for x in pieces)


# --- both trainings, in turns ----------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """What one training left behind."""

    losses: list[float]  # of each step, in nats per token
    seconds: list[float]  # that each step took
    part: float  # bytes of the head and the loss at their most
    whole: float  # bytes of a step at their most
    nats: float  # what the held-out tokens cost together
    parameters: int


def both(told: argparse.Namespace, learn: Tensor, measure: Tensor) -> dict[str, Trained]:
    """Train with either head; the one that goes first in a step goes second in the next."""
    context, turns = multiprocessing.get_context("spawn"), {}
    for head in HEADS:
        turns[head], theirs = context.Pipe()
        context.Process(target=training, args=(head, told, learn, measure, theirs), daemon=True).start()
        theirs.close()  # so that a process that died is noticed, and not waited for

    def ask(head: str) -> tuple:
        try:
            turns[head].send("go")
            return turns[head].recv()
        except (EOFError, OSError):
            sys.exit(f"The training with the {head} head ended early; what it said stands above.")

    steps: dict[str, list] = {head: [] for head in HEADS}
    for step in range(told.steps):
        for head in HEADS if step % 2 else HEADS[::-1]:
            steps[head].append(ask(head))
        if step == 0 or (step + 1) % max(told.steps // 6, 1) == 0:
            losses = ", ".join(f"{head} {steps[head][-1][0]:.6f}" for head in HEADS)
            print(f"step {step + 1:4d}: {losses} nats per token", flush=True)
    return {head: Trained(*map(list, zip(*steps[head], strict=True)), *ask(head)) for head in HEADS}


def apart(one: list[float], other: list[float]) -> list[float]:
    """How far two curves are from one another at each step; infinitely, where one of them is no number."""
    gaps = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return [gap if math.isfinite(gap) else math.inf for gap in gaps]


# --- the record, and the page that is drawn from it ------------------------------------------------------------------


def record_of(told: argparse.Namespace, trained: dict[str, Trained], size: int, facts: dict[str, str]) -> Record:
    """All figures, by name: what is measured, then whose head."""
    tokens = told.sequences * told.length
    steps = list(range(1, told.steps + 1))
    numbers, curves = {}, {}
    for head, it in trained.items():
        rate = tokens / statistics.median(it.seconds[1:])  # the first compiles
        numbers[f"speed_{head}"] = Number(rate, "tokens/s", n=told.steps - 1)
        numbers[f"head_memory_{head}"] = Number(it.part / 2**20, "MiB")
        numbers[f"step_memory_{head}"] = Number(it.whole / 2**20, "MiB")
        numbers[f"bits_per_byte_{head}"] = Number(it.nats / math.log(2) / size, "bits per byte", n=size)
        numbers[f"last_loss_{head}"] = Number(it.losses[-1], "nats per token")
        curves[head] = Curve(steps, it.losses, "step", "nats per token")
    gaps = apart(*(trained[head].losses for head in HEADS))
    curves["apart"] = Curve(steps, gaps, "step", "nats per token")
    numbers["apart"] = Number(max(gaps[:COMPARED]), "nats per token", n=min(told.steps, COMPARED))
    faster = [eager / lazy for eager, lazy in zip(*(trained[head].seconds[1:] for head in HEADS), strict=True)]
    numbers["speed_ratio"] = Number(statistics.median(faster), "×", n=len(faster))
    logits = Number(tokens * told.vocabulary * 4 / 2**20, "MiB")
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return Record("training", "A language model, twice", made, numbers | {"logits": logits}, curves=curves, facts=facts)


def power(value: float) -> str:
    """A small number with one digit: 7.3e-5 is 7 × 10⁻⁵."""
    if not value or not math.isfinite(value):
        return digits.spell(value, 0)
    mantissa, _, exponent = f"{value:.0e}".replace("-", "−").partition("e")
    superscript = exponent.replace("+", "").translate(str.maketrans("−0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{superscript.replace('⁻⁰', '⁻')}".removeprefix("1 × ")


def axes_of(figure: Figure, steps: int) -> Axes:
    """Axes of nats per token against steps."""
    axes = figure.add_axes((0.13, 0.17, 0.85, 0.7))
    axes.set_title("nats per token", loc="left", fontsize=10, color=MUTED, pad=10)
    axes.set(xlim=(0, steps + 1), xlabel="step")
    axes.grid(axis="y", linewidth=0.7)
    axes.tick_params(length=0)
    return axes


def losses_drawn(record: Record) -> str:
    """Both curves: one lies on the other."""
    eager, lazy = (record.curves[head] for head in HEADS)
    with drawing(370, 265) as figure:
        axes = axes_of(figure, len(eager.x))
        axes.plot(eager.x, eager.y, color=MUTED, linewidth=6, alpha=0.35, label="eager head")
        axes.plot(lazy.x, lazy.y, color=ACCENT, linewidth=1.6, label="lazy head")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, handlelength=1.4)
        return inline(figure, "losses", "Training loss with the eager and with the lazy head, by step")


def apart_drawn(record: Record) -> str:
    """Their distance, on a logarithmic scale, below what is allowed."""
    curve, least = record.curves["apart"], 1e-8
    with drawing(370, 265) as figure:
        axes = axes_of(figure, len(curve.x))
        axes.plot(curve.x, [max(gap, least) for gap in curve.y], "o", color=ACCENT, markersize=3.5)
        axes.plot([0, min(len(curve.x) + 1, COMPARED)], [CLOSE, CLOSE], color=INK, linewidth=1, dashes=(4, 3))
        axes.text(0.98, 0.9, f"dashed: no further than {power(CLOSE)}", transform=axes.transAxes, ha="right")
        axes.set(yscale="log", ylim=(least / 2, 1e-1))
        axes.set_yticks([least, 1e-6, 1e-4, 1e-2], ["0", "10⁻⁶", "10⁻⁴", "10⁻²"])
        axes.minorticks_off()
        return inline(figure, "apart", "How far the two losses are from one another, by step")


def memory_drawn(record: Record) -> str:
    """What the head and the loss take, beside the logits themselves."""
    sizes = [record[f"head_memory_{head}"].value for head in HEADS]
    if math.isnan(sum(sizes)):
        return ""
    with drawing(370, 130) as figure:
        axes = figure.add_axes((0.22, 0.34, 0.6, 0.64))
        for row, size in enumerate(sizes):
            axes.barh(row, size, 0.6, color=(MUTED, ACCENT)[row], alpha=(0.45, 1.0)[row])
            axes.text(1.28, row, f"{size:,.0f} MiB", transform=axes.get_yaxis_transform(), ha="right", va="center")
        axes.axvline(record["logits"].value, color=INK, linewidth=1, dashes=(4, 3))
        axes.set_yticks([0, 1], [f"{head} head" for head in HEADS])
        axes.set(ylim=(1.5, -0.5), xlabel="MiB; dashed: the logits, once, in float32")
        axes.locator_params(axis="x", nbins=5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelcolor=INK)
        return inline(figure, "memory", "Peak memory of the head and the loss")


def lines_of(record: Record) -> list[tuple[str, str, str, str]]:
    """The table: what is measured, with the eager head, with the lazy one, one against the other."""

    def line(name: str, key: str, places: int, against: str = "") -> tuple[str, str, str, str]:
        eager, lazy = (record[f"{key}_{head}"].value for head in HEADS)
        against = against or f"{digits.spell(lazy / eager, 2)} ×"
        return name, digits.spell(eager, places), digits.spell(lazy, places), against

    def difference(key: str) -> str:
        eager, lazy = (record[f"{key}_{head}"].value for head in HEADS)
        return f"{'+' if lazy > eager else ''}{power(lazy - eager)}" if lazy != eager else "the same"

    lines = [
        line("Tokens per second", "speed", 0, f"{digits.spell(record['speed_ratio'].value, 2)} ×"),
        line("Peak memory, head and loss, MiB", "head_memory", 0),
        line("Peak memory, a training step, MiB", "step_memory", 0),
        line("Bits per byte of held-out text", "bits_per_byte", 4, difference("bits_per_byte")),
        line("Loss of the last step, nats per token", "last_loss", 6, difference("last_loss")),
    ]
    return [cells for cells in lines if "undefined" not in cells]  # the memory, where it is not known


def write(record: Record, path: Path) -> str:
    """Write the page, and give the sentence at its head."""
    same = record["apart"].value <= CLOSE
    less = record["head_memory_eager"].value / max(record["head_memory_lazy"].value, 1.0)
    distance = power(record["apart"].value)
    headline = (
        f"The two losses coincide: in {record['apart'].n} steps they are never further apart than {distance} nats, "
        f"and the held-out text costs {record['bits_per_byte_lazy'].value:.3f} bits per byte with either head. "
        if same
        else f"The two losses do not coincide: they are up to {distance} nats apart, where {CLOSE:g} is allowed. "
    )
    if math.isfinite(less):
        headline += (
            f"The head and the loss took {record['head_memory_eager'].value:,.0f} MiB with transformers' head and "
            f"{record['head_memory_lazy'].value:,.0f} MiB after crossent.lazy_head(model)."
        )
    hero = (
        (f"{less:.1f}×", "less memory for head and loss") if same and math.isfinite(less) else (distance, "nats apart")
    )
    captions = (
        ("Memory of the head and the loss", memory_drawn, "Forward and backward of one step's tokens through the last "
         "layer and the loss. With the lazy head no logits are stored."),
        ("The two losses", losses_drawn, "The thin line lies on the thick one."),
        ("How far apart they are", apart_drawn, "Both round in float32, each in its own order of additions; a training "
         "carries that on from step to step."),
    )  # fmt: skip
    text = Path(__file__).with_suffix(".html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)
    style = importlib.resources.files("crossent.report").joinpath("page.css").read_text(encoding="utf-8")
    pictures = [(name, Markup(draw(record)), caption) for name, draw, caption in captions]
    path.write_text(
        template.render(record=record, style=Markup(style), same=same, hero=hero, headline=headline,
                    lines=lines_of(record), pictures=pictures),
        encoding="utf-8",
    )  # fmt: skip
    return headline


def main() -> None:
    """Text, tokenizer, both trainings, the page, and whether they coincide."""
    told = arguments()
    kept, held_out = sources(told.megabytes)
    tokenizer = tokenizer_for(kept, told.vocabulary)
    learn, measure = tokens_of(kept, tokenizer), tokens_of(held_out, tokenizer)
    # The last token of a row is the first of the next, so that each but the very first is foretold once.
    rows = measure.unfold(0, told.length, told.length - 1)[: 16 * told.sequences]
    # In a byte-level token every letter stands for a byte; the end of a file is no byte of it, but must be foretold.
    size = sum(len(tokenizer.id_to_token(token)) for token in rows[:, 1:].flatten().tolist() if token)
    print(f"{len(learn):,} tokens of {len(kept)} files to learn, {told.vocabulary:,} in the vocabulary", flush=True)
    trained = both(told, learn, rows)
    facts = {
        "Model": f"transformers' LlamaForCausalLM: {told.layers} layers of width {told.width}, "
        f"{trained['lazy'].parameters:,} parameters, head tied to the embedding",
        "Text": f"{len(kept)} files of Python's standard library, {len(learn):,} tokens",
        "Held out": f"{rows[:, 1:].numel():,} tokens, {size:,} bytes, of {len(held_out)} other files",
        "Tokenizer": f"byte-level BPE of {told.vocabulary:,} tokens, trained on the text",
        "A step": f"{told.sequences} sequences of {told.length} tokens, AdamW in float32, "
        f"learning rate up to {told.learning_rate:g}, {told.steps} steps",
        "On": f"{told.device}, {torch.get_num_threads()} threads",
        "Seed": f"{told.seed}",
        "Versions": f"crossent {crossent.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}",
        "Command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    record = record_of(told, trained, size, facts)
    record.write(told.page.with_suffix(".json"))
    headline = write(record, told.page)
    width = max(len(name) for name, *_ in lines_of(record))
    print(f"\n{'':{width}}  {'eager':>12}  {'lazy':>12}  lazy against eager")
    for name, *cells in lines_of(record):
        print(f"{name:{width}}  {cells[0]:>12}  {cells[1]:>12}  {cells[2]}")
    print(f"\n{headline}\nWritten: {told.page}, {told.page.with_suffix('.json')}")
    if record["apart"].value > CLOSE:
        sys.exit("The losses of the two heads do not coincide.")


if __name__ == "__main__":
    main()
