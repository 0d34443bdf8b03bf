"""The vocabulary of a run that learns it from its prompts."""

import dataclasses

import pytest

from data_pipelines import store
from rahf.config import ClipBaselineConfig, ClipConfig, ClipTextConfig, Config, CriticConfig, DataConfig
from rahf.core.errors import TrainError
from rahf.critic import start as critic_start
from rahf.training import start


def learning(data, workdir, rows=600):
    text = ClipTextConfig(vocab_size=rows, eos_token_id=rows - 1)
    model = ClipBaselineConfig(clip=ClipConfig(text=text))
    return Config(workdir=str(workdir), data=DataConfig(path=str(data), tokenizer="prompts"), model=model)


def test_a_fresh_run_learns_from_the_training_prompts(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()  # a folder of this name is not meant
    config = learning(tiny_data, tmp_path / "run")
    tokenizer = critic_start.tokenizer(config)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (600, 599)
    prompts = store.prompts(tiny_data, "train")
    records = store.open_split(tiny_data, "train")
    assert prompts == sorted({record.prompt for record in records}) and len(prompts) > 10
    assert max(len(tokenizer.encode(prompt)) for prompt in prompts) < max(map(len, prompts)) / 2
    assert "split 'train'" in tokenizer.source


def test_a_run_that_goes_on_reads_its_own(tiny_data, tmp_path):
    config = learning("no/longer/there", tmp_path)
    learnt = start.tokenizer(learning(tiny_data, tmp_path), True, 600)
    (tmp_path / "tokenizer.model").write_bytes(learnt.model)
    assert start.tokenizer(config, False, 600).model == learnt.model


def test_what_cannot_learn_says_so(tiny_data, tmp_path):
    with pytest.raises(TrainError, match="data.tokenizer 'prompts': .* 500 pieces .* at least 514"):
        critic_start.tokenizer(learning(tiny_data, tmp_path, rows=500))
    critic = dataclasses.replace(learning(tiny_data, tmp_path), model=CriticConfig())
    with pytest.raises(TrainError, match="family 'critic' do not read it: set data.tokenizer to 'dataset'"):
        critic_start.tokenizer(critic)
