"""Token ids in, token ids out: many prompts decoded together, by grammar and with guidance.

Every step is one forward over all sequences that are not finished, both branches of guidance in
it. A finished sequence leaves at once and a waiting one takes its place. Draws are keyed by
(seed, key, position), so an answer does not depend on its neighbours. The engine knows ids and the
vocabulary's ranges; text and pictures are `mgpt.infer.pipeline`'s.

    >>> engine = Engine(model, vocab)
    >>> cfg = SamplingConfig(modality="image", guidance=Guidance(4.0), seed=0)
    >>> [answer] = engine.generate([prompt_ids], cfg, keys=["cat"], image_grids=[(4, 4)])
    >>> decode_grid(answer[:-1], vocab).shape
    (8, 8)

Guidance (arXiv 2408.02657 and its code): the unconditional branch is the image by itself, from
begin-of-image on, without `<s>`, positions from 0; the two size tokens are drawn without it.

Shape suffixes: N sequences of one draw, R rows of the cache, D hidden, V candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mgpt.errors import DataError, MgptError, VocabularyError
from mgpt.infer.branches import Branch, BranchTable
from mgpt.infer.grammar import AnswerGrammar, Choice
from mgpt.infer.noise import draw_keys, gumbel_noise
from mgpt.infer.sampling import SamplingConfig, draw, guided
from mgpt.models.head_loss import IGNORED
from mgpt.models.table import DecoderModel
from mgpt.tokens.chat import Tokens
from mgpt.tokens.unirep import Allowed, allowed_mask
from mgpt.tokens.vocab import Vocabulary

__all__ = ["Engine"]


@dataclass(eq=False)
class _Sequence:
    """One prompt and its answer so far."""

    key: str
    cfg: SamplingConfig
    ids: list[int]
    num_prompt: int
    grammar: AnswerGrammar
    draw_key_2: Tensor
    """Two words that the noise of its draws is keyed by."""
    main: Branch = field(init=False)
    free: Branch | None = None
    """The unconditional branch, while an image is under way and guidance is on."""

    @property
    def is_guided(self) -> bool:
        return self.cfg.guidance.code_scale != 1.0 and self.cfg.modality != "text"

    @property
    def num_rows(self) -> int:
        """Rows of the cache it may need at once."""
        return 2 if self.is_guided else 1


class Engine:
    """A model, its vocabulary, and the room for decoding many sequences at once.

    Args:
        max_rows: most sequences in one forward; a guided one counts twice.
        cache_bytes: memory that keys and values may take; fewer rows where they are long.
    """

    def __init__(
        self,
        model: DecoderModel,
        vocab: Vocabulary,
        max_rows: int = 128,
        cache_bytes: int = 8 << 30,
    ):
        if model.cfg.vocab_size != vocab.size:
            raise VocabularyError(
                f"the model has {model.cfg.vocab_size} token ids and the vocabulary {vocab.size};"
                " use the vocabulary that lies in the model's folder"
            )
        self._model = model.eval()
        self._vocab = vocab
        self._max_rows = max_rows
        self._cache_bytes = cache_bytes
        open_mask = torch.from_numpy(allowed_mask(Allowed("text"), vocab))
        text_mask = open_mask.clone()
        text_mask[vocab.begin_image] = False
        device = model.embed.weight.device
        self._masks = {"open": open_mask.to(device), "text": text_mask.to(device)}

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        cfg: SamplingConfig | Sequence[SamplingConfig],
        keys: Sequence[str],
        image_grids: Sequence[tuple[int, int] | None] | None = None,
    ) -> list[list[int]]:
        """The answer to each prompt: new ids, end-of-turn included unless the tokens ran out.

        Args:
            prompts: ids up to where the answer begins.
            cfg: for all prompts, or one each.
            keys: what the draws of each prompt are keyed by; equal keys give equal draws.
            image_grids: the size (height, width) in grids of two latents that each prompt's images
                must have; None leaves it to the model.

        Raises:
            DataError: a prompt that is empty, too long or holds a broken image.
            ConfigError: an image is asked for that cannot fit.
        """
        sequences = self._sequences(prompts, cfg, keys, image_grids)
        # Those of similar length run together; the longest first, so that the end is not one of it.
        waiting = sorted(sequences, key=lambda sequence: len(sequence.ids))
        active: list[_Sequence] = []
        if not sequences:
            return []
        table = BranchTable(self._model, self._num_rows(sequences))
        while waiting or active:
            active += self._admit(waiting, active, table)
            active = self._take_forced(active, table)
            if not active:
                continue
            hidden_RD = table.forward()
            tokens = self._choose(active, hidden_RD)
            for sequence, token in zip(active, tokens, strict=True):
                self._take(sequence, token, table)
            active = [sequence for sequence in active if not sequence.grammar.finished]
        return [sequence.ids[sequence.num_prompt :] for sequence in sequences]

    @torch.inference_mode()
    def log_likelihood(self, sequence: Tokens) -> float:
        """Log-probability, in nats, of the trained tokens of one sequence, each after all before.

        Raises DataError where the sequence is longer than the model takes.
        """
        num_tokens, longest = len(sequence.ids), self._model.cfg.max_positions
        if num_tokens > longest:
            raise DataError(f"a sequence of {num_tokens} tokens; the model takes {longest}")
        device = self._model.embed.weight.device
        ids_1T = torch.from_numpy(sequence.ids.astype(np.int64))[None].to(device)
        trained_1T = torch.from_numpy(sequence.trained)[None].to(device)
        labels_1T = torch.full_like(ids_1T, IGNORED)
        labels_1T[:, :-1] = ids_1T[:, 1:].masked_fill(~trained_1T[:, 1:], IGNORED)
        positions_1T = torch.arange(num_tokens, device=device)[None]
        return -float(self._model.training_sums(ids_1T, positions_1T, labels_1T).nll_sum)

    def _sequences(
        self,
        prompts: Sequence[Sequence[int]],
        cfg: SamplingConfig | Sequence[SamplingConfig],
        keys: Sequence[str],
        image_grids: Sequence[tuple[int, int] | None] | None,
    ) -> list[_Sequence]:
        cfgs = [cfg] * len(prompts) if isinstance(cfg, SamplingConfig) else list(cfg)
        grids = [None] * len(prompts) if image_grids is None else list(image_grids)
        assert len(prompts) == len(keys) == len(cfgs) == len(grids)
        longest = self._model.cfg.max_positions
        sequences = []
        for prompt, one, key, sides in zip(prompts, cfgs, keys, grids, strict=True):
            ids = [int(token) for token in prompt]
            if not 0 < len(ids) < longest:
                raise DataError(
                    f"the prompt of {key!r} has {len(ids)} tokens; the model takes 1 to"
                    f" {longest - 1} and its answer"
                )
            max_tokens = min(one.max_new_tokens, longest - len(ids))
            try:
                grammar = AnswerGrammar(self._vocab, one, ids, max_tokens, sides)
            except MgptError as error:
                raise type(error)(f"the prompt of {key!r}: {error}") from error
            [draw_key_2] = draw_keys(one.seed, [key], self._model.embed.weight.device)
            sequences.append(_Sequence(key, one, ids, len(ids), grammar, draw_key_2))
        return sequences

    def _num_rows(self, sequences: list[_Sequence]) -> int:
        cfg = self._model.cfg
        longest = max(len(s.ids) + min(s.cfg.max_new_tokens, cfg.max_positions) for s in sequences)
        element_bytes = self._model.embed.weight.element_size()
        token_bytes = 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * element_bytes
        fitting = self._cache_bytes // (token_bytes * min(longest, cfg.max_positions))
        wanted = sum(sequence.num_rows for sequence in sequences)
        return min(wanted, max(2, min(self._max_rows, fitting)))

    def _admit(
        self, waiting: list[_Sequence], active: list[_Sequence], table: BranchTable
    ) -> list[_Sequence]:
        """Takes sequences that fit off `waiting` and opens their branches; returns them.

        A guided one is counted with both its rows, so an image never lacks the second. Few free
        rows are left to gather, since prompts are taken in faster together.
        """
        room = table.max_rows - sum(sequence.num_rows for sequence in active)
        admitted: list[_Sequence] = []
        if active and room < table.max_rows // 4:
            return admitted
        while waiting and waiting[-1].num_rows <= room:
            sequence = waiting.pop()
            room -= sequence.num_rows
            sequence.main = table.open(sequence.ids)
            if sequence.is_guided and sequence.grammar.inside:
                sequence.free = table.open(sequence.ids[-sequence.grammar.tokens_in_image :])
            admitted.append(sequence)
        return admitted

    def _take_forced(self, active: list[_Sequence], table: BranchTable) -> list[_Sequence]:
        """Takes tokens that are no choice (ends of lines, of an image, of the turn) without a
        forward of their own, as long as every sequence is at one; returns those not finished.

        Where only some are, they wait: rows that take in one token each are the fastest together.
        """
        while active:
            choices = [sequence.grammar.next() for sequence in active]
            if any(choice.kind != "forced" for choice in choices):
                break
            for sequence, choice in zip(active, choices, strict=True):
                self._take(sequence, choice.start, table)
            active = [sequence for sequence in active if not sequence.grammar.finished]
        return active

    def _take(self, sequence: _Sequence, token: int, table: BranchTable) -> None:
        """Appends a chosen token and makes it pending in every branch it belongs to."""
        grammar = sequence.grammar
        sequence.ids.append(token)
        grammar.advance(token)
        if sequence.free is not None and (grammar.finished or not grammar.inside):
            table.close(sequence.free)
            sequence.free = None
        if grammar.finished:
            table.close(sequence.main)
            return
        sequence.main.pending.append(token)
        if sequence.free is not None:
            sequence.free.pending.append(token)
        elif sequence.is_guided and grammar.inside:
            sequence.free = table.open([token])

    def _choose(self, active: list[_Sequence], hidden_RD: Tensor) -> list[int]:
        """The next token of every active sequence."""
        choices = [sequence.grammar.next() for sequence in active]
        tokens = [choice.start for choice in choices]
        groups: dict[tuple[Choice, int, float], list[int]] = {}
        for index, (sequence, choice) in enumerate(zip(active, choices, strict=True)):
            if choice.kind != "forced":
                cfg = sequence.cfg
                is_text = choice.kind in ("text", "open")
                top_k = cfg.text_top_k if is_text else cfg.image_top_k
                groups.setdefault((choice, top_k, cfg.temperature), []).append(index)
        for (choice, top_k, temperature), members in groups.items():
            sequences = [active[index] for index in members]
            logits_NV = self._logits(sequences, choice, hidden_RD)
            positions_N = torch.tensor([len(s.ids) for s in sequences], device=logits_NV.device)
            keys_N2 = torch.stack([sequence.draw_key_2 for sequence in sequences])
            noise_NV = gumbel_noise(keys_N2, positions_N, choice.start, choice.stop)
            drawn_N = draw(logits_NV, top_k, temperature, noise_NV)
            for index, candidate in zip(members, drawn_N.tolist(), strict=True):
                tokens[index] = choice.start + candidate
        return tokens

    def _logits(self, sequences: list[_Sequence], choice: Choice, hidden_RD: Tensor) -> Tensor:
        """Logits [N, V] of the choice's candidates, guided where it is an image code."""
        head = self._model.head
        main = [sequence.main.row for sequence in sequences]
        logits_NV = head.logits(hidden_RD[main], choice.start, choice.stop)
        if choice.kind in self._masks:
            return logits_NV.masked_fill(~self._masks[choice.kind], -torch.inf)
        if choice.kind == "code" and any(sequence.free for sequence in sequences):
            # Without a branch of its own a sequence is guided by itself, which changes nothing.
            free = [(sequence.free or sequence.main).row for sequence in sequences]
            scale_N1 = logits_NV.new_tensor([[s.cfg.guidance.code_scale] for s in sequences])
            free_NV = head.logits(hidden_RD[free], choice.start, choice.stop)
            logits_NV = guided(logits_NV, free_NV, scale_N1)
        return logits_NV
