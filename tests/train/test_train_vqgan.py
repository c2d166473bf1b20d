"""The VQGAN's training loop: it learns, it resumes bit for bit, it refuses what does not fit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mgpt.errors import CheckpointError, ConfigError, DataError, TrainingError
from mgpt.images.pixels import normalise
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokenizers.vqgan import VqganConfig
from mgpt.train import train_vqgan as module
from mgpt.train.train_vqgan import (
    BatchConfig,
    VqTrainConfig,
    picture_batches,
    reconstruction_psnr,
    train_vqgan,
)

MODEL = VqganConfig(
    ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, embed_dim=4, n_embed=16, num_groups=4
)
TRAIN = VqTrainConfig(
    steps=8, warmup_steps=2, quantise_from_step=2, log_every_steps=4, save_every_steps=4
)
BATCH = BatchConfig(batch_pictures=4, sizes_hw=((16, 16), (16, 24)), seed=5)


def pictures(num: int = 6) -> list[np.ndarray]:
    """Two flat halves of random colours and a random border between them."""
    draw = np.random.default_rng(0)
    made = []
    for _ in range(num):
        picture = np.empty((24, 24, 3), np.uint8)
        border = draw.integers(4, 20)
        picture[:, :border], picture[:, border:] = draw.integers(0, 256, (2, 3))
        made.append(picture)
    return made


def batches(first_step: int) -> Iterator[np.ndarray]:
    return picture_batches(pictures(), BATCH, first_step)


def run(cfg: VqTrainConfig, out_dir: Path, logs: list | None = None, **kwargs: object) -> dict:
    logs = [] if logs is None else logs
    return train_vqgan(
        cfg, MODEL, kwargs.pop("batches", batches), lambda *log: logs.append(log), out_dir, **kwargs
    )


def test_training_learns(tmp_path: Path) -> None:
    logs: list[tuple[int, dict[str, float]]] = []
    cfg = replace(
        TRAIN,
        steps=90,
        learning_rate=1e-2,
        quantise_from_step=30,
        revive_after_steps=20,
        log_every_steps=30,
    )
    held_out = {"halves": [picture[:16, :16] for picture in pictures(3)]}
    figures = run(cfg, tmp_path, logs, held_out=held_out)
    assert [step for step, _ in logs] == [30, 60, 90]
    # A first trial went from 2.4 to 1.3, from 11.9 to 15.1 dB, and gave 17.0 dB held out.
    assert logs[-1][1]["reconstruction_loss"] < 0.75 * logs[0][1]["reconstruction_loss"]
    assert logs[-1][1]["psnr_db"] > logs[0][1]["psnr_db"] + 1.5
    assert {"psnr_db", "codes_used_percent", "codes_perplexity", "pictures_per_s"} <= set(
        logs[-1][1]
    )
    assert figures["psnr_db/halves"] > 14.0
    model = load_tokenizer(tmp_path / "model")
    assert reconstruction_psnr(model, held_out) == figures


@pytest.mark.parametrize("quantizer", ["ibq", "fsq", "lfq"])
def test_other_quantizers_learn_and_resume_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    """The model folder has the quantizer; what it codes with is what it was trained with."""
    sizes = replace(MODEL, n_embed=64).with_quantizer(quantizer)
    logs: list[tuple[int, dict[str, float]]] = []
    cfg = replace(TRAIN, steps=120, learning_rate=1e-2, quantise_from_step=30, log_every_steps=30)
    cfg = replace(cfg, save_every_steps=45, entropy_weight=0.2)
    held_out = {"halves": [picture[:16, :16] for picture in pictures(3)]}

    def train(folder: Path) -> dict[str, float]:
        return train_vqgan(
            cfg, sizes, batches, lambda *log: logs.append(log), folder, held_out=held_out
        )

    figures = train(tmp_path / "whole")
    assert figures["psnr_db/halves"] > 11.0 and figures["codes_used_percent"] > 5.0
    # Of the windows that quantise, a first trial's last was 0.4 to 3.7 dB above the first.
    assert logs[-1][1]["psnr_db"] > logs[1][1]["psnr_db"] + 0.2
    model = load_tokenizer(tmp_path / "whole/model")
    assert model.cfg == sizes and reconstruction_psnr(model, held_out) == figures

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        save = module._Run.save

        def save_and_stop(run: module._Run, path: Path, step: int) -> None:
            save(run, path, step)
            raise KeyboardInterrupt

        patched.setattr(module._Run, "save", save_and_stop)
        train(tmp_path / "cut")
    assert train(tmp_path / "cut") == figures
    assert load_tokenizer(tmp_path / "cut/model").fingerprint() == model.fingerprint()


@pytest.mark.parametrize("extra", [{}, {"discriminator_start_step": 2}, {"codebook_decay": None}])
def test_a_cut_run_ends_like_an_uncut_one(tmp_path: Path, extra: dict) -> None:
    cfg = replace(TRAIN, **extra)
    run(cfg, tmp_path / "uncut")

    class Cut(Exception):
        pass

    def cut_batches(first_step: int) -> Iterator[np.ndarray]:
        for step, batch in enumerate(batches(first_step), start=first_step):
            if step == 6:
                raise Cut
            yield batch

    with pytest.raises(Cut):
        run(cfg, tmp_path / "cut", batches=cut_batches)
    seen = []

    def seen_batches(first_step: int) -> Iterator[np.ndarray]:
        seen.append(first_step)
        return batches(first_step)

    run(cfg, tmp_path / "cut", batches=seen_batches)
    assert seen == [4]
    for name in ("checkpoint.safetensors", "model/model.safetensors", "figures.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "uncut" / name).read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run(TRAIN, tmp_path)
    before = load_tokenizer(tmp_path / "model").fingerprint()
    logs: list = []
    run(TRAIN, tmp_path, logs)
    assert not logs
    assert load_tokenizer(tmp_path / "model").fingerprint() == before


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(TRAIN, tmp_path)
    run(replace(TRAIN, log_every_steps=2), tmp_path)
    with pytest.raises(CheckpointError, match="other settings"):
        run(replace(TRAIN, learning_rate=1e-4), tmp_path)


def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        run(TRAIN, tmp_path)


def test_a_trained_model_is_gone_on_from(tmp_path: Path) -> None:
    run(TRAIN, tmp_path / "first")
    first = load_tokenizer(tmp_path / "first/model")
    before = first.fingerprint()
    cfg = replace(TRAIN, steps=1, quantise_from_step=0, learning_rate=1e-12, codebook_decay=0.999)
    run(cfg, tmp_path / "second", start=first)
    assert first.fingerprint() == before
    second = load_tokenizer(tmp_path / "second/model")
    # One step at next to no learning rate: the weights and the codebook are where they were.
    for name, tensor in first.state_dict().items():
        assert torch.allclose(second.state_dict()[name], tensor, atol=0.02), name
    with pytest.raises(CheckpointError, match="other settings"):
        run(cfg, tmp_path / "second")
    with pytest.raises(ConfigError, match="same sizes"):
        train_vqgan(cfg, replace(MODEL, n_embed=8), batches, print, tmp_path / "x", start=first)


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run(TRAIN, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    cfg = replace(TRAIN, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        run(cfg, tmp_path)


def test_bf16_training_leaves_an_fp32_model(tmp_path: Path) -> None:
    run(replace(TRAIN, dtype="bfloat16"), tmp_path)
    model = load_tokenizer(tmp_path / "model")
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}


def test_batches_are_a_pure_function_of_the_step() -> None:
    from_start = picture_batches(pictures(), BATCH, 0)
    skipped = [next(from_start) for _ in range(6)]
    assert np.array_equal(next(picture_batches(pictures(), BATCH, 5)), skipped[5])
    assert {batch.shape for batch in skipped} == {(4, 16, 16, 3), (4, 16, 24, 3)}
    assert {batch.dtype for batch in skipped} == {np.dtype(np.uint8)}


def test_windows_without_resizing_are_parts_of_the_picture() -> None:
    picture = np.arange(24 * 24, dtype=np.uint16).reshape(24, 24)
    rows = np.stack([picture // 24, picture % 24, picture * 0], -1).astype(np.uint8)
    cfg = BatchConfig(batch_pictures=3, sizes_hw=((8, 16),), resize=False)
    for window in next(picture_batches([rows], cfg, 0)):
        top, left = window[0, 0, :2]
        assert np.array_equal(window, rows[top : top + 8, left : left + 16])


def test_smaller_pictures_are_enlarged_to_cover_a_window() -> None:
    cfg = BatchConfig(batch_pictures=2, sizes_hw=((32, 64),), resize=False)
    assert next(picture_batches(pictures(), cfg, 0)).shape == (2, 32, 64, 3)


def test_no_pictures_are_named() -> None:
    with pytest.raises(DataError, match="holds none"):
        next(picture_batches([], BATCH, 0))


def test_settings_out_of_range_are_named_together() -> None:
    with pytest.raises(ConfigError, match=r"steps=0.*codebook_decay=2"):
        VqTrainConfig(steps=0, codebook_decay=2.0)


def test_levels_are_those_of_the_images_room() -> None:
    levels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    ours = module._to_pixels(levels[None], "cpu")[0].numpy()
    assert np.array_equal(ours, np.asarray(normalise(levels)))
