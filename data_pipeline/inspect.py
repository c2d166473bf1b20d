"""mgpt inspect: one tokenised sample by its key: pictures, text, ids trained or not.

Shown are the pictures (decoded with `vq=`, else a map with a colour for each code), the JSON, and
what every task makes of the sample: with `vocabulary=` each id, marked as trained or given, else
text and places of pictures. A key that was rejected is shown with its reason.

Reads: tokenised shards; a VQGAN and a vocabulary if given
Writes: <key>.html

    mgpt inspect input=tokens key=000000012 output=inspected
    mgpt inspect input=tokens key=000000012 vq=scenes_f8 vocabulary=text task=caption output=seen
"""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.tokenizing.decoding import CodeDecoder
from data_pipeline.tokenizing.job_settings import read_settings
from data_pipeline.views.contact_sheet import png
from mgpt.data.dataset import TokenisedDataset, open_dataset
from mgpt.data.shards import TokenisedSample
from mgpt.errors import DataError
from mgpt.evals.page import Section, inline_picture, page
from mgpt.files.storage import Location, locate, write_whole
from mgpt.lifecycle.weights import load_vocabulary
from mgpt.tasks.registry import READINGS, SampleView, can_serve, task
from mgpt.tokens.chat import Conversation, Document, ImageSlot, Part, tokenise
from mgpt.tokens.vocab import Vocabulary

_MAP_PX = 8  # pixels of a code in the map of codes
_CODES_SHOWN = 4  # of a row; the others are counted
_MOST_RUNS = 80  # of a task, on the console; the page has all


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which sample to show."""

    input: str
    """Output folder of `mgpt tokenize`."""
    key: str
    """The sample's key in its raw shard."""
    output: str
    """Folder of the page, `<key>.html`."""
    shard: str | None = None
    """The raw shard, where several hold the key; null: all of them."""
    resolution: int | None = None
    """One resolution; null: all."""
    vq: str | None = None
    """The VQ model that decodes the pictures; null shows a map of the codes."""
    vocabulary: str | None = None
    """A vocabulary, or weights that have one; null shows text and places instead of ids."""
    task: str | None = None
    """A task, or a pretraining document; null: all that the sample can serve."""


@dataclass(frozen=True)
class Run:
    """Tokens in a row of one kind: `words` to show, and whether they are trained."""

    words: str
    trained: bool


@dataclass(frozen=True)
class Reading:
    """What a task makes of a sample; the counts are None without a vocabulary."""

    task: str
    runs: list[Run]
    tokens: int | None = None
    trained: int | None = None


@dataclass(frozen=True)
class Found:
    """A sample at one resolution."""

    resolution_px: int
    raw_shard: str
    sample: TokenisedSample
    readings: list[Reading]


def main(cfg: Config) -> None:
    vocabulary = None if cfg.vocabulary is None else load_vocabulary(cfg.vocabulary)
    found, path = inspect_sample(cfg, vocabulary)
    for one in found:
        _print(one)
    print(f"page: {path}", flush=True)


def inspect_sample(cfg: Config, vocabulary: Vocabulary | None) -> tuple[list[Found], Location]:
    """Find the sample at every resolution asked and write its page.

    Raises:
        DataError: no such key (with what was said of it where it was rejected), no tokenised
            output, or another VQ model.
    """
    settings = read_settings(locate(cfg.input))
    decoder = None
    if cfg.vq is not None:
        decoder = CodeDecoder(cfg.vq, settings["vq_fingerprint"], cfg.input)
    found, refusals = [], []
    for px in [cfg.resolution] if cfg.resolution else settings["resolution"]:
        dataset = open_dataset(locate(cfg.input) / str(px))
        found += list(_find(dataset, cfg, vocabulary))
        refusals += _refusals(dataset, cfg)
    if not found:
        said = "; ".join(refusals) or "no shard has it; keys are those of the raw shards"
        raise DataError(f"{cfg.input}: no sample {cfg.key!r}: {said}")
    path = locate(cfg.output) / f"{cfg.key.replace('/', '_')}.html"
    sections = [section for one in found for section in _sections(one, decoder)]
    if refusals:
        sections.append(Section("Rejected", "", "; ".join(refusals)))
    lead = f"{cfg.input}, VQ model {settings['vq_fingerprint']}"
    write_whole(path, page(cfg.key, lead, sections).encode())
    return found, path


def _find(dataset: TokenisedDataset, cfg: Config, vocabulary: Vocabulary | None) -> Iterator[Found]:
    for place, manifest in enumerate(dataset.manifests):
        raw_shard = str(manifest.raw["name"])
        if cfg.shard not in (None, raw_shard):
            continue
        shard = dataset.shard(place)
        for number in range(len(shard)):
            if shard.key(number) == cfg.key:
                sample = shard.sample(number)
                readings = list(_readings(sample, dataset.latent_px, cfg.task, vocabulary))
                yield Found(dataset.resolution_px, raw_shard, sample, readings)


def _refusals(dataset: TokenisedDataset, cfg: Config) -> list[str]:
    return [
        f"rejected from {manifest.raw['name']} at {dataset.resolution_px} px: {reason}"
        for manifest in dataset.manifests
        if cfg.shard in (None, manifest.raw["name"])
        for key, reason in manifest.rejected
        if key == cfg.key
    ]


def _print(found: Found) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    sample = found.sample
    console.print(Text(f"{found.raw_shard}/{sample.key} at {found.resolution_px} px", "bold"))
    for name, codes_HW in sample.codes.items():
        console.print(Text(f"  {name}: {codes_HW.shape[1]} x {codes_HW.shape[0]} codes"))
    for name, value in sample.meta.items():
        console.print(Text(f"  {name}: {value}"))
    for reading in found.readings:
        counts = ""
        if reading.tokens is not None:
            counts = f": {reading.tokens:,} tokens, {reading.trained:,} trained"
        words = Text(f"  as {reading.task}{counts}\n    ", "bold")
        for run in reading.runs[:_MOST_RUNS]:
            words.append(run.words, "not bold green" if run.trained else "not bold dim")
            words.append(" ")
        if len(reading.runs) > _MOST_RUNS:
            words.append("…", "not bold")
        console.print(words)


# ------------------------------------------------------------------ what tasks make of it


def _readings(
    sample: TokenisedSample, latent_px: int, wanted: str | None, vocabulary: Vocabulary | None
) -> Iterator[Reading]:
    shapes = {name: codes_HW.shape for name, codes_HW in sample.codes.items()}
    for name in READINGS if wanted is None else [wanted]:
        if not can_serve(name, sample.meta, shapes):
            if wanted is not None:
                raise DataError(f"sample {sample.key!r} cannot serve task {name}")
            continue
        item = task(name).build(SampleView(sample.meta, shapes, latent_px), 0)
        if vocabulary is None:
            yield Reading(name, list(_runs_of_parts(item)))
            continue
        tokens = tokenise(item, sample.codes, vocabulary)
        runs = list(_runs_of_ids(tokens.ids, tokens.trained, vocabulary))
        yield Reading(name, runs, len(tokens.ids), int(tokens.trained.sum()))


def _runs_of_parts(item: Conversation | Document) -> Iterator[Run]:
    if isinstance(item, Document):
        yield from (Run(_words(part), True) for part in item.parts)
        return
    for turn in item.turns:
        yield from (Run(_words(part), False) for part in turn.question)
        yield from (Run(_words(part), True) for part in turn.answer)


def _words(part: Part) -> str:
    return f"[{part.field}]" if isinstance(part, ImageSlot) else part


def _runs_of_ids(
    ids: npt.NDArray[np.integer], trained: npt.NDArray[np.bool_], vocab: Vocabulary
) -> Iterator[Run]:
    """Every id that is not a picture's code, and the first codes of each row."""
    is_code = vocab.is_code(ids)
    in_row = 0
    for position, token in enumerate(ids.tolist()):
        in_row = in_row + 1 if is_code[position] else 0
        if in_row <= _CODES_SHOWN:
            yield Run(f"{token} {id_name(token, vocab)}", bool(trained[position]))
        elif position + 1 == len(ids) or not is_code[position + 1]:
            yield Run(f"… {in_row - _CODES_SHOWN} more codes", bool(trained[position]))


def id_name(token: int, vocab: Vocabulary) -> str:
    """What an id stands for, in a few letters."""
    controls = {
        vocab.bos: "<s>",
        vocab.eos: "</s>",
        vocab.pad: "<pad>",
        vocab.end_of_turn: "end of turn",
        vocab.begin_image: "begin image",
        vocab.end_image: "end image",
        vocab.end_line: "end line",
    }
    if token in controls:
        return controls[token]
    if vocab.is_size(token):
        return f"{vocab.grids(token)} grids"
    if vocab.is_code(token):
        return f"code {token - vocab.image_start}"
    return repr(vocab.decode_text([token])) if vocab.is_text(token) else "?"


# ------------------------------------------------------------------ the page


def _sections(found: Found, decoder: CodeDecoder | None) -> Iterator[Section]:
    sample, px = found.sample, found.resolution_px
    figures = []
    for name, codes_HW in sample.codes.items():
        levels_HWC = code_map(codes_HW) if decoder is None else decoder(codes_HW)
        height, width = codes_HW.shape
        figures.append(inline_picture(png(levels_HWC), f"{name}: {width} x {height} codes"))
    note = "" if decoder else "A colour for each code; vq= decodes them."
    pictures = f"<div class='card plain'><div class='row'>{''.join(figures)}</div></div>"
    title = f"{found.raw_shard}/{sample.key} at {px} px"
    yield Section(title, pictures if figures else "", note if figures else "No pictures.")
    text = html.escape(json.dumps(sample.meta, indent=1, ensure_ascii=False))
    yield Section("Text", f"<div class='card text'>{text}</div>")
    for reading in found.readings:
        marks = {True: "trained", False: "given"}
        spans = " ".join(
            f"<span class='{marks[run.trained]}'>{html.escape(run.words)}</span>"
            for run in reading.runs
        )
        counted = "Green is trained."
        if reading.tokens is not None:
            counted = f"{reading.tokens:,} tokens, {reading.trained:,} of them trained (green)."
        yield Section(f"As {reading.task}", f"<div class='ids text'>{spans}</div>", counted)


def code_map(codes_HW: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
    """Codes as colours, uint8 [H * 8, W * 8, 3]: equal codes have equal colours."""
    colours_HWC = codes_HW.astype(np.int64)[..., None] * np.array([97, 57, 23]) % 256
    return colours_HWC.astype(np.uint8).repeat(_MAP_PX, 0).repeat(_MAP_PX, 1)
