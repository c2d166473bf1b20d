"""Evaluation alone and on two ranks. As a script it is one of the ranks."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import start_ranks

from data_pipeline.scenes.scorers import SCENE_SCORERS
from mgpt.data.dataset import open_dataset
from mgpt.data.shards import ShardWriter, TokenisedSample
from mgpt.errors import ConfigError, DataError
from mgpt.evals import evaluate as evaluation
from mgpt.evals.cases import build_cases
from mgpt.evals.evaluate import EvaluateConfig, _sampling, evaluate
from mgpt.evals.metrics import MEASURES
from mgpt.evals.scorers import SCORERS
from mgpt.images.pixels import to_uint8
from mgpt.infer.engine import Engine
from mgpt.infer.pipeline import Pipeline
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer
from mgpt.parallel.dist import World, init_distributed
from mgpt.stages.evaluate import choose_scorers
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import scratch_vocabulary

NUM_CODES = 64
TASKS = ("caption", "text_to_image", "depth")
CFG = EvaluateConfig(
    TASKS, samples=3, samples_of={"text_to_image": 5}, gallery=2, max_new_tokens=24,
    image_candidates=2,
)  # fmt: skip


def make_held_out(folder: Path, are_scenes: bool = True) -> None:
    """Twelve scenes of one object, with random codes; without truths, just pictures."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "32", "00000") as writer:
        for index in range(12):
            shape, colour = ("cube", "sphere", "cone")[index % 3], ("red", "blue")[index % 2]
            meta = {
                "caption": f"a large {colour} matte {shape}",
                "kind": "objects",
            }
            if are_scenes:
                meta["truth"] = {"objects": [{"shape": shape, "colour": colour}]}
            fields = ("image", "depth")
            codes = {name: rng.integers(0, NUM_CODES, (4, 4), np.uint16) for name in fields}
            writer.add(TokenisedSample(f"{index:06d}", meta, codes))
        writer.close(
            {
                "raw": {"name": "00000.tar", "sha256": "0" * 64},
                "rejected": [],
                "resolution_px": 32,
                "latent_px": 8,
                "num_codes": NUM_CODES,
                "vq_fingerprint": "0" * 16,
                "settings_fingerprint": "0" * 16,
            }
        )
    words = [f"a large {colour} matte cube sphere cone" for colour in ("red", "blue")]
    train_sentencepiece(words, folder / SentencePieceText.FILE, num_pieces=280)


def evaluate_here(folder: Path, output: Path, world: World) -> list[str]:
    """Evaluates an untrained model; what this rank did, in order."""
    torch.manual_seed(0)
    dataset = open_dataset(folder / "32")
    text = SentencePieceText((folder / SentencePieceText.FILE).read_bytes())
    vocab = scratch_vocabulary(text, NUM_CODES, max_grids=4)
    model = Transformer(replace(SIZES["debug"], vocab_size=vocab.size))
    model.init_weights(0)
    # All in fp64, so that the other cases of a batch turn no near tie and round no pixel.
    sizes = VqganConfig(
        ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=8, embed_dim=8,
        n_embed=NUM_CODES, num_groups=4,
    )  # fmt: skip
    vqgan = Vqgan(sizes).double().eval()

    def truth_picture(index: int, field: str) -> np.ndarray:
        codes_1HW = torch.from_numpy(dataset.sample(index).codes[field].astype(np.int64))[None]
        with torch.inference_mode():
            return to_uint8(vqgan.decode(codes_1HW)[0].numpy())

    pipeline = Pipeline(Engine(model.double().eval(), vocab), vqgan, vocab)
    did: list[str] = []
    measure, write = evaluation._measure, evaluation.atomic_write
    with pytest.MonkeyPatch.context() as patch:

        def counted_measure(cfg, scorer, cases, *rest):
            did.append(f"measure {cases[0].task}")
            return measure(cfg, scorer, cases, *rest)

        def counted_write(path, data):
            did.append(f"write {path.parent.name}/{path.name}")
            write(path, data)

        patch.setattr(evaluation, "_measure", counted_measure)
        patch.setattr(evaluation, "atomic_write", counted_write)
        found = evaluate(
            CFG, SCENE_SCORERS, dataset, pipeline, output, truth_picture, world,
            on_task=lambda name, _: did.append(f"on_task {name}"),
        )  # fmt: skip
    (output / f"returned_{world.rank}.json").write_text(json.dumps(found))
    return did


def done_by(task: str) -> list[str]:
    return [
        f"measure {task}",
        f"write {task}/gallery.json",
        f"write {task}/{MEASURES}",
        f"on_task {task}",
    ]


def files_of(output: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(output)): file.read_bytes()
        for task in TASKS
        for file in (output / task).iterdir()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("evaluate")
    make_held_out(folder)
    output = folder / "alone"
    assert evaluate_here(folder, output, World()) == [d for task in TASKS for d in done_by(task)]
    return folder, output


def test_two_ranks_measure_as_one_and_write_once(alone: tuple[Path, Path]) -> None:
    folder, output = alone
    codes, logs = start_ranks([__file__, str(folder), str(folder / "two")], 2)
    assert codes == [0, 0], "\n".join(logs)
    assert files_of(folder / "two") == files_of(output)
    expected = (output / "returned_0.json").read_text()
    assert list(json.loads(expected)) == list(TASKS)
    for rank, did in ((0, [d for task in TASKS for d in done_by(task)]), (1, [])):
        assert (folder / "two" / f"returned_{rank}.json").read_text() == expected
        assert json.loads((folder / "two" / f"did_{rank}.json").read_text()) == did


def test_a_finished_task_is_taken_as_it_is(alone: tuple[Path, Path]) -> None:
    folder, output = alone
    whole = (output / "returned_0.json").read_text()
    (output / "text_to_image" / MEASURES).unlink()
    assert evaluate_here(folder, output, World()) == done_by("text_to_image")
    assert (output / "returned_0.json").read_text() == whole


def test_other_samples_are_measured_by_each_task_s_own_scorer(tmp_path: Path) -> None:
    make_held_out(tmp_path, are_scenes=False)
    dataset = open_dataset(tmp_path / "32")
    chosen = choose_scorers(EvaluateConfig(), dataset)
    assert chosen == {
        "text_to_image": SCORERS["free_picture"],
        "caption": SCORERS["edit_distance"],
        "depth": SCORERS["depth_error"],
        "depth_to_image": SCORERS["picture"],
    }, "tasks that no sample serves are left out"
    cfg = EvaluateConfig(tasks=("caption", "edit"), scorers={"caption": "exact_match"})
    assert choose_scorers(cfg, dataset)["caption"] is SCORERS["exact_match"]
    with pytest.raises(DataError, match="no held-out sample serves the task 'edit'"):
        build_cases(dataset, "edit", 5, 0, lambda index, field: np.zeros(1))
    cases = build_cases(dataset, "caption", 5, 0, lambda index, field: np.zeros((32, 32, 3)))
    assert len(cases) == 5


def test_scenes_are_measured_by_their_own_checker(tmp_path: Path) -> None:
    make_held_out(tmp_path)
    dataset = open_dataset(tmp_path / "32")
    cfg = EvaluateConfig(tasks=TASKS, scorers={"depth": "psnr"})
    chosen = choose_scorers(cfg, dataset)
    assert chosen["caption"] is SCENE_SCORERS["caption"] and chosen["depth"] is SCORERS["psnr"]
    with pytest.raises(ConfigError, match=r"scorers: \['captoin'\] unknown"):
        EvaluateConfig(scorers={"captoin": "psnr"})


if __name__ == "__main__":
    here = init_distributed("cpu", timeout_s=60.0)
    done = evaluate_here(Path(sys.argv[1]), Path(sys.argv[2]), here)
    (Path(sys.argv[2]) / f"did_{here.rank}.json").write_text(json.dumps(done))
    here.shutdown()


def test_guidance_is_for_scenes_and_not_for_maps_of_one() -> None:
    cfg = EvaluateConfig(guided_tasks=("edit", "depth_to_image"))
    scales = {
        name: _sampling(cfg, name, [SimpleNamespace(answer_fields=("image",))]).guidance.scale
        for name in ("text_to_image", "depth_to_image", "edit", "normals_to_image", "depth")
    }
    assert scales == {
        "text_to_image": 3.0,
        "depth_to_image": 3.0,
        "edit": 3.0,
        "normals_to_image": 1.0,
        "depth": 1.0,
    }
    with pytest.raises(ConfigError, match=r"guided_tasks: \['edits'\] unknown"):
        EvaluateConfig(guided_tasks=("edits",))
