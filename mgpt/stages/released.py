"""Released weights with all that belongs to them: transformer, VQGAN and tokenizer.

`plan_import` looks at a folder (transformers' Chameleon or Lumina-mGPT, Meta's checkpoint, or a
picture tokenizer alone) and says what it will become without reading a model's tensors;
`Import.write` reads them one by one into a model folder. The way back is
`mgpt.stages.transformers_export`.

    planned = plan_import(Path("chameleon-7b"))
    print("\\n".join(planned.lines()))
    planned.write(Path("models/chameleon-7b"))
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mgpt.errors import CheckpointError, ConfigError, VocabularyError
from mgpt.files.atomic import atomic_write
from mgpt.files.file_sums import SUMS, check_sums, sums_list
from mgpt.lifecycle.folder import RECORD
from mgpt.lifecycle.weights import TOKENIZER_FILES, VOCABULARY, released_vocabulary, tokenizer_file
from mgpt.models.folder import split_by_size, write_model
from mgpt.models.tensor_files import LazyTensor
from mgpt.tokenizers.folder import load_tokenizer, open_tokenizer, save_tokenizer
from mgpt.tokenizers.protocol import PictureTokenizer
from mgpt.tokenizers.released_files import NoTokenizerError
from mgpt.tokenizers.vqgan import Vqgan
from mgpt.tokenizers.vqgan_convert import is_released_folder
from mgpt.tokens.vocab import FILE as VOCABULARY_FILE
from mgpt.tokens.vocab import Vocabulary
from mgpt.weights.meta import is_meta_folder, plan_meta
from mgpt.weights.plan import ModelPlan
from mgpt.weights.transformers_config import CONFIG, is_chameleon_config
from mgpt.weights.transformers_folder import plan_transformers
from mgpt.weights.vq_encoder import ENCODER_FOLDER, VqEncoder, check_same_encoder

VQ = "vq"
# Meta's download keeps these two levels above a model: data/models/7b and data/tokenizer.
_TOKENIZER_FOLDER = "tokenizer"
# The token that transformers puts a picture's place with; Meta's file calls the same id reserved.
_IMAGE_PLACE, _IMAGE_PLACE_AT_META = "<image>", "<reserved08707>"
_UNUSED_ID = 3  # of the from-scratch layout
_COST_PX = 512  # side of the picture whose cost is named
_LICENCE = re.compile(r"(licen[cs]e|copying|notice|use_policy)", re.IGNORECASE)


def is_released(folder: str | Path) -> bool:
    """Whether a released transformer stands in the folder."""
    folder = Path(folder)
    return is_chameleon_config(folder) or is_meta_folder(folder)


@dataclass(frozen=True)
class Import:
    """What an import will write, before any tensor is read."""

    source: Path
    plan: ModelPlan | None
    """None where the folder holds a picture tokenizer alone."""
    vocabulary: Vocabulary | None
    vq: PictureTokenizer | None
    notes: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        if self.plan is not None:
            return self.plan.num_bytes
        return sum(t.nbytes for t in self.vq.state_dict().values()) if self.vq else 0

    def figures(self) -> dict[str, int]:
        """What the stage reports."""
        if self.plan is None:
            return {"parameters": sum(p.numel() for p in self.vq.parameters()) if self.vq else 0}
        return {
            "parameters": self.plan.num_parameters,
            "tensors": len(self.plan.tensors),
            "bytes": self.plan.num_bytes,
            "files": len(split_by_size(self.plan.tensors)),
        }

    def lines(self) -> list[str]:
        """The plan for a person."""
        title = self.vq.title if self.vq is not None else ""
        lines = [f"{self.source}: {self.plan.layout if self.plan else title}"]
        if self.plan is not None:
            lines += _model_lines(self.plan)
        if self.vq is not None:
            lines.append(f"{title}: {self.vq.num_codes:,} codes, {self.vq.downsample} px a latent")
        if self.vq is not None and self.plan is None:
            cost = self.vq.cost(_COST_PX, _COST_PX)
            lines.append(
                f"{cost.parameters:,} parameters; a picture of {_COST_PX}x{_COST_PX} px takes "
                f"{cost.encode_flops / 1e9:,.1f} GFLOP to encode, {cost.decode_flops / 1e9:,.1f} "
                "to decode"
            )
        if self.vq is None and self.plan is not None and self.plan.vq is not None:
            lines.append(f"VQGAN: the encoder only, {self.plan.vq.cfg.n_embed:,} codes; no decoder")
        if self.vocabulary is not None:
            lines.append(f"vocabulary: {self.vocabulary.layout}, {self.vocabulary.fingerprint}")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def write(self, folder: Path, on_tensor: Callable[[], None] = lambda: None) -> None:
        """Writes the model folder; where that fails, no part of it stays.

        Raises CheckpointError for a file that is not as its list of hashes has it or a tensor that
        cannot be read, MachineError for the disk's part.
        """
        if self.plan is None:
            assert self.vq is not None
            save_tokenizer(self.vq, folder)
            _copy_licences(self.source, folder)
            return
        check_sums(self.plan.files)
        with removed_on_failure(folder, VOCABULARY, VQ, ENCODER_FOLDER):
            if self.vocabulary is not None:
                self.vocabulary.save(folder / VOCABULARY)
            if self.vq is not None:
                save_tokenizer(self.vq, folder / VQ)
            elif self.plan.vq is not None:
                self.plan.vq.save(folder / ENCODER_FOLDER)
            fingerprint = None if self.vocabulary is None else self.vocabulary.fingerprint
            vq = self.plan.vq_fingerprint
            if not self.plan.states_vq and self.vq is not None:
                vq = self.vq.fingerprint()
            _copy_licences(self.source, folder)
            tensors = counted(self.plan.tensors, on_tensor)
            write_model(folder, self.plan.cfg, tensors, fingerprint, vq)


def plan_import(source: Path, vq: str | None = None, tokenizer: str | None = None) -> Import:
    """What a released folder will become.

    Args:
        source: the folder.
        vq: a whole VQGAN for it, as `vq=` of any stage; None looks beside the weights.
        tokenizer: a tokenizer.json, or a folder with one; None looks beside the weights.

    Raises:
        CheckpointError: files, configuration and tensors do not agree, or the folder is no release.
        VocabularyError: the tokenizer is not that of these weights.
        ConfigError: the VQGAN given is of another kind than the folder's.
    """
    if not is_released(source):
        return _plan_tokenizer(source)
    plan = plan_model(source)
    beside = [source]
    if is_meta_folder(source):
        beside += [source / _TOKENIZER_FOLDER, _tokenizer_of_download(source)]
    notes = [*plan.notes, _checked_by(source)]
    vocabulary = _vocabulary(plan, source, tokenizer, beside)
    if vocabulary is None:
        notes.append(
            f"no tokenizer in {source}: the model folder has no vocabulary; give tokenizer=FILE "
            "here, or vocabulary= when training from it"
        )
    model = vqgan_beside(source, vq, beside)
    if model is not None and plan.vq_fingerprint not in (None, model.fingerprint()):
        raise ConfigError(
            f"vq_mismatch: the weights in {source} know the codes of VQGAN {plan.vq_fingerprint}, "
            f"vq={vq or VQ} is {model.fingerprint()}; give the VQGAN that tokenized their "
            "training data"
        )
    if type(model) is Vqgan and plan.vq is not None:
        check_same_encoder(plan.vq, model, str(source), vq or VQ)
    if plan.vq is not None and model is None:
        notes.append("the VQGAN's decoder is not here; give vq=DIR with Meta's VQGAN to draw")
    check_codes(vocabulary, model or plan.vq, source)
    return Import(source, plan, vocabulary, model, notes + _licence_notes(source))


def _plan_tokenizer(source: Path) -> Import:
    """A folder without a model: a picture tokenizer, or none that is known."""
    try:
        opened = open_tokenizer(source)
    except NoTokenizerError as error:
        raise CheckpointError(
            f"{source} is no released folder: expected config.json of transformers' Chameleon with "
            "safetensors, params.json with consolidated*.pth, or a picture tokenizer: "
            f"{str(error).rpartition(': ')[2]}"
        ) from error
    return Import(source, None, None, opened.tokenizer, opened.notes + _licence_notes(source))


def plan_model(source: Path) -> ModelPlan:
    """The transformer in a released folder, from its headers.

    Raises CheckpointError as `plan_import`.
    """
    if is_chameleon_config(source):
        return plan_transformers(source)
    if is_meta_folder(source):
        return plan_meta(source)
    raise CheckpointError(
        f"{source} is no released folder: expected config.json of transformers' Chameleon with "
        "safetensors, or params.json with consolidated*.pth"
    )


def check_output(output: str) -> None:
    """Raises ConfigError where a model stands in the folder that no stage wrote there: an import
    or export would take its place."""
    folder = Path(output)
    found = [*folder.glob(CONFIG), *folder.glob("model*.safetensors")]
    if found and not (folder / RECORD).exists():
        raise ConfigError(
            f"output={output} holds a model already ({found[0].name}), which would be replaced; "
            "give another output="
        )


def _model_lines(plan: ModelPlan) -> list[str]:
    cfg = plan.cfg
    norm = f"{cfg.qk_norm_groups} group(s)" if cfg.qk_norm == "group" else f"by {cfg.qk_norm}"
    types = ", ".join(f"{count} {name}" for name, count in plan.dtypes.items())
    files = split_by_size(plan.tensors)
    return [
        f"{plan.num_parameters:,} parameters: hidden {cfg.hidden}, ffn {cfg.ffn}, {cfg.layers} "
        f"layers, {cfg.heads}/{cfg.kv_heads} heads of {cfg.head_dim}, vocabulary "
        f"{cfg.vocab_size:,}, norms {cfg.norm_placement}",
        f"qk-norm: {norm}",
        f"{plan.num_source_tensors} stored tensors become {len(plan.tensors)} ({types})",
        f"writes {plan.num_bytes:,} bytes in {len(files)} file(s): {', '.join(files)}",
    ]


def _checked_by(source: Path) -> str:
    listed = sums_list(source)
    if listed is not None:
        return f"{listed}: the files are held against it before they are read"
    return (
        f"no {SUMS} in {source}: files that are cut short, do not fit together or hold values that "
        "are not finite are refused; other alterations cannot be seen"
    )


def _tokenizer_of_download(source: Path) -> Path:
    return source.absolute().parent.parent / _TOKENIZER_FOLDER


def _vocabulary(
    plan: ModelPlan, source: Path, tokenizer: str | None, beside: Sequence[Path]
) -> Vocabulary | None:
    """The vocabulary of these weights, checked against them; None where there is none."""
    if tokenizer is None and (source / VOCABULARY / VOCABULARY_FILE).exists():
        vocabulary, where = Vocabulary.load(source / VOCABULARY), source / VOCABULARY
    else:
        file = tokenizer_file([Path(tokenizer)] if tokenizer else beside)
        if file is None and tokenizer is not None:
            raise VocabularyError(
                f"tokenizer={tokenizer}: neither a file nor a folder with "
                f"{' or '.join(TOKENIZER_FILES)}"
            )
        if file is None:
            return None
        check_sums([file])
        vocabulary, where = released_vocabulary(file), file
    if vocabulary.size != plan.cfg.vocab_size:
        raise VocabularyError(
            f"{where} has {vocabulary.size} ids, the weights in {source} {plan.cfg.vocab_size}; "
            "give the tokenizer that came with these weights"
        )
    ids: Mapping[str, int] = vocabulary_map(vocabulary)
    moved = [n for n, i in plan.vocabulary_map.items() if n in ids and ids[n] != i]
    if moved:
        name = moved[0]
        raise VocabularyError(
            f"{where} gives {name} the id {ids[name]}, vocabulary_map in {source}/config.json "
            f"{plan.vocabulary_map[name]} ({len(moved)} such names); they are of two models"
        )
    return vocabulary


def vqgan_beside(
    source: Path, vq: str | None, beside: Sequence[Path] = ()
) -> PictureTokenizer | None:
    """The tokenizer of some weights: the one that is given, theirs in `vq/`, or the first of
    Meta's in some folders beside them."""
    if vq is not None:
        return load_tokenizer(vq)
    if (source / VQ / "config.json").exists():
        return load_tokenizer(source / VQ)
    return next((load_tokenizer(place) for place in beside if is_released_folder(place)), None)


def check_codes(
    vocabulary: Vocabulary | None, vq: PictureTokenizer | VqEncoder | None, where: Path
) -> None:
    """Raises ConfigError where vocabulary and tokenizer have not as many codes as each other."""
    if vocabulary is None or vq is None:
        return
    num_codes = vq.num_codes if isinstance(vq, PictureTokenizer) else vq.cfg.n_embed
    if vocabulary.num_codes != num_codes:
        raise ConfigError(
            f"{where}: the vocabulary has {vocabulary.num_codes} image codes, the VQGAN "
            f"{num_codes}; give the VQGAN that tokenised the pictures"
        )


def _licences(source: Path) -> list[Path]:
    """Files that state the terms of a release."""
    folder = source if source.is_dir() else source.parent
    return sorted(p for p in folder.glob("*") if _LICENCE.match(p.name) and p.is_file())


def _licence_notes(source: Path) -> list[str]:
    names = ", ".join(path.name for path in _licences(source))
    return [f"{names}: the terms of these weights, copied along"] if names else []


def _copy_licences(source: Path, folder: Path) -> None:
    for path in _licences(source):
        atomic_write(folder / path.name, path.read_bytes())


def vocabulary_map(vocabulary: Vocabulary) -> dict[str, int]:
    """Token names and ids as transformers' `vocabulary_map` wants them: a picture's place too."""
    named = vocabulary.names
    if vocabulary.layout != "chameleon":
        named[_IMAGE_PLACE] = _UNUSED_ID
    elif _IMAGE_PLACE not in named and _IMAGE_PLACE_AT_META in named:
        named[_IMAGE_PLACE] = named.pop(_IMAGE_PLACE_AT_META)
    return dict(sorted(named.items(), key=lambda item: item[1]))


def counted(tensors: Sequence[LazyTensor], on_tensor: Callable[[], None]) -> list[LazyTensor]:
    """The same tensors; each calls `on_tensor` once it is read."""

    def ticked(value: Tensor) -> Tensor:
        on_tensor()
        return value

    return [tensor.then(ticked) for tensor in tensors]


@contextmanager
def removed_on_failure(folder: Path, *names: str) -> Iterator[None]:
    """Takes these files and folders away again where what is done meanwhile fails."""
    try:
        yield
    except BaseException:
        for name in names:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name, ignore_errors=True)
            else:
                (folder / name).unlink(missing_ok=True)
        raise
