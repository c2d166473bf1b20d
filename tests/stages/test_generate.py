"""What a prompt becomes before the model sees it, and what the command line says about sampling."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mgpt.cli.stage_table import compose_stage, configure, load_stage
from mgpt.errors import ConfigError
from mgpt.infer.sampling import Guidance, SamplingConfig
from mgpt.stages.generate import Config, Question, _answers, question
from mgpt.tasks.registry import TASKS
from mgpt.tokens.chat import ImageSlot, Turn


def config(*overrides: str) -> Config:
    given = ("ckpt=model", "vq=scenes_f8", "output=out", *overrides)
    module = load_stage("generate")
    made = configure(module, compose_stage("generate", module, given))
    assert isinstance(made, Config)
    return made


def ask(task: str, prompt: str, shown: int = 0, **fields: Any) -> Question:
    """The question about a picture of 6 x 4 grids of 16 px, width first."""
    cfg = Config(ckpt="", vq="", output="", task=task, **fields)
    pipeline: Any = SimpleNamespace(tokenizer=SimpleNamespace(downsample=8))
    codes = [np.full((2, 2), n) for n in range(shown)]
    return question(cfg, prompt, codes, (4, 6), pipeline)


def test_sampling_is_said_without_a_prefix():
    cfg = config("guidance.form=paper", "guidance.scale=3", "seed=7", "image_top_k=4000")
    assert cfg.sampling == SamplingConfig(guidance=Guidance(3.0, "paper"), seed=7, image_top_k=4000)
    assert cfg.sampling.guidance.code_scale == config("guidance.scale=4").guidance.code_scale == 4.0
    with pytest.raises(ConfigError, match=r"guidance\.form: 'book' .* code \| paper"):
        config("guidance.form=book")
    with pytest.raises(ConfigError, match="image_top_k=0 must be at least 1"):
        config("image_top_k=0")


def test_only_pictures_of_captions_are_chosen_among_candidates():
    assert config("candidates=4").candidates == 4
    with pytest.raises(ConfigError, match="candidates=4 with task=depth"):
        config("candidates=4", "task=depth")
    with pytest.raises(ConfigError, match="candidates=0: at least 1"):
        config("candidates=0")
    with pytest.raises(ConfigError, match="asks nothing"):
        config("prompt=[]")


def test_evaluate_says_guidance_alike():
    given = ("ckpt=m", "vq=v", "input=i", "raw=r", "resolution_px=64", "output=o")
    module = load_stage("evaluate")
    made = configure(module, compose_stage("evaluate", module, (*given, "guidance.form=paper")))
    assert made.guidance == Guidance(3.0, "paper")


def test_a_caption_is_asked_for_in_the_published_words():
    asked = ask("text_to_image", "a red cube")
    words = "Generate an image of 96x64 according to the following prompt:\na red cube"
    assert asked.conversation.turns == (Turn((words,), ()),)
    assert asked.draws and (asked.sampling.modality, asked.sampling.num_images) == ("image", 1)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_asked(task: str):
    whole_fields = {"multi_image_dialog": 1, "text_dialog": 0, "text_to_image": 0, "multi_view": 0}
    asked = ask(task, "words", whole_fields.get(task, 1), views=3)
    [turn] = asked.conversation.turns
    assert turn.answer == () and turn.question
    assert len(asked.codes) == whole_fields.get(task, 1)
    assert asked.draws == (TASKS[task].answer != "text")
    assert asked.sampling.num_images == (3 if task == "multi_view" else 1)


def test_draws_are_keyed_by_the_prompt_and_not_by_its_place():
    def keys(*prompts: str, n: int = 2) -> dict[str, list[str]]:
        cfg = Config(ckpt="", vq="", output="", prompt=list(prompts), n=n, task="vqa")
        seen: list[str] = []
        pipeline: Any = SimpleNamespace(answer=lambda *given: seen.extend(given[3]))
        jobs = [(number, sample) for number in range(len(prompts)) for sample in range(n)]
        asked = [ask("vqa", prompt, 1) for prompt in prompts]
        _answers(cfg, pipeline, asked, jobs, (4, 6))
        found: dict[str, list[str]] = {}
        for (number, _), key in zip(jobs, seen, strict=True):
            found.setdefault(prompts[number], []).append(key)
        return found

    alone, among = keys("a red cube"), keys("a blue cone", "a red cube", "a sphere")
    assert among["a red cube"] == alone["a red cube"]
    assert keys("a red cube", n=5)["a red cube"][:2] == alone["a red cube"]
    assert len({key for each in among.values() for key in each}) == 6


def test_a_free_prompt_goes_word_for_word():
    asked = ask("free", "Now <|image|>, then\n<|image|>  draw!", 2, modality="image", num_images=2)
    [turn] = asked.conversation.turns
    first, second = ImageSlot("image_0"), ImageSlot("image_1")
    assert turn.question == ("Now ", first, ", then\n", second, "  draw!")
    assert [int(asked.codes[slot.field][0, 0]) for slot in (first, second)] == [0, 1]
    assert (asked.sampling.modality, asked.sampling.num_images) == ("image", 2)
    assert not asked.draws, "a free answer chooses the size of its pictures"


def test_another_number_of_pictures_is_named():
    with pytest.raises(ConfigError, match=r"task=depth .* shows 1 pictures and image= names 0"):
        ask("depth", "")
    with pytest.raises(ConfigError, match=r"task=depth .* shows 1 pictures and image= names 2"):
        ask("depth", "", 2)
