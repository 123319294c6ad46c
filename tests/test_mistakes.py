"""A table of mistakes on the command line: each is one sentence with code 2 that names what was wrong, and harms no
file."""

import os

import pytest

from rlcore.cli import main

TRAIN = "train ppo CartPole-v1 "
RUN = "a_run"  # the folder of a finished run

# What was typed, and words of the sentence.
OF_COMMANDS = [
    ("trian", "did you mean 'train'?"),
    ("help", "'help' is not a command of rlcore"),
    ("-V", "'-V' is not a command of rlcore"),
    ("--verson", "'--verson' is not a command"),
    ("train ppo", "ENV_ID"),
    ("train ppo --seed 1", "ENV_ID"),
    ("train pop CartPole-v1", "did you mean 'ppo'?"),
    ("train CartPole-v1 ppo", "'CartPole-v1' is not an algorithm"),
    ("train dqn CartPole-v1", "'dqn' is not an algorithm of rlcore"),
    ("train --seed 1 ppo", "the algorithm comes first"),
    ("train nomodule:Agent CartPole-v1", "nomodule"),
    ("train os:Agent CartPole-v1", "Agent"),
    ("train ppo CartPole", "did you mean 'CartPole-v1'?"),
    ("train ppo cartpole-v1", "did you mean 'CartPole-v1'?"),
    ("train ppo CartPole-v9", "did you mean 'CartPole-v1'?"),
    ("train ppo Nothing", "environment 'Nothing' is not registered with gymnasium"),
    ("train ppo nomodule:Foo-v0", "the module 'nomodule' cannot be imported"),
    ("train ppo os:Foo-v0", "also not by the module 'os'"),
    ("train ppo ALE/Pongg-v5", "did you mean 'ALE/Pong-v5'?"),
    ("pretrain", "ENV_ID"),
    ("pretrain Nope-v1", "'Nope-v1' is not registered"),
    ("eval", "RUN"),
    ("eval CartPole-v1", "CartPole-v1 does not exist"),
    ("eval nowhere", "nowhere does not exist"),
    ("eval nowhere --episodes 0", "--episodes is 0, but must be at least 1"),
    ("eval empty", "empty is not a run folder"),
    ("eval text.txt", "text.txt is not a checkpoint of rlcore"),
    (f"eval {RUN} --episode 3", "did you mean '--episodes'?"),
    (f"eval {RUN} --n-eval-episodes 3", "did you mean '--episodes'?"),
    (f"eval {RUN} --episodes many", "--episodes is 'many'"),
    (f"eval {RUN} --seed 99999999999999999999999", "--seed is 99999999999999999999999, but must be at most"),
    (f"eval {RUN} --seed -1", "--seed is -1"),
    (f"eval {RUN} --device tpu", "device is 'tpu'"),
    (f"eval {RUN} --env-arg x", "must be NAME=VALUE"),
    (f"eval {RUN} more", "argument 'more' is not known"),
    ("video", "RUN"),
    ("video nowhere", "nowhere does not exist"),
    ("video text.txt --out x.mp4", "text.txt is not a checkpoint"),
    (f"video {RUN} --out", "--out: expected one argument"),
    (f"video {RUN} --out film.doc", "film.doc"),
    ("export", "RUN"),
    ("export nowhere --out x.pt2", "nowhere does not exist"),
    (f"export {RUN} --out x.doc", "x.doc"),
    ("compare", "RUN"),
    ("compare nowhere", "nowhere does not exist"),
    ("bench", "--out"),
    ("bench classic", "--out"),
    ("bench clasic --out b", "did you mean 'classic'?"),
    ("bench suite.toml --out b", "suite.toml"),
    ("bench text.txt --out b", "text.txt"),
    ("bench classic --out text.txt", "text.txt, which has something in it that is no bench"),
    ("bench classic --out b --seeds 0", "seeds is '0'"),
    ("bench classic --out b --seeds few", "seeds is 'few'"),
    ("bench classic --out b --seeds 9-3", "seeds is '9-3'"),
    ("bench classic --out b --jobs 0", "--jobs is 0, but must be at least 1"),
    ("bench classic --out b --job 1", "did you mean '--jobs'?"),
    ("bench --agents ppo --out b", "envs"),
    ("bench --envs CartPole-v1 --out b", "agents"),
    ("bench --agents , --envs CartPole-v1 --out b", "--agents is ','"),
    ("bench --agents pop --envs CartPole-v1 --out b", "did you mean 'ppo'?"),
    ("bench --agents ppo --envs CartPol-v1 --out b", "did you mean 'CartPole-v1'?"),
    ("report", "DIR"),
    ("report nowhere", "nowhere does not exist"),
    ("report empty", "empty is not a run folder"),
    ("report text.txt", "text.txt"),
    ("plot", "DIR"),
    ("plot nowhere --out x.png", "nowhere does not exist"),
    (f"plot {RUN} --out x.doc", "--out is x.doc, but must end in .png, .svg, .pdf"),
    (f"plot {RUN} --x day --out x.png", "--x is 'day', but may be steps or time"),
    ("tune", "ALGO, ENV_ID"),
    ("tune ppo", "ENV_ID"),
    ("tune pop CartPole-v1 --trials 1", "did you mean 'ppo'?"),
    ("tune ppo CartPol-v1 --trials 1", "did you mean 'CartPole-v1'?"),
    ("tune ppo CartPole-v1 --trials 0", "--trials is 0"),
    ("tune ppo CartPole-v1 --trials few", "--trials is 'few'"),
    ("tune ppo CartPole-v1 --n-trials 3", "did you mean '--trials'?"),
    ("list --jsn", "did you mean '--json'?"),
    ("train --resume", "--resume: expected one argument"),
    ("train --resume nowhere", "the run folder nowhere does not exist"),
    ("train --resume empty", "empty"),
    ("train --resume text.txt", "text.txt"),
    (f"train --resume {RUN}", "to go on, give --total-steps more than that"),
    (f"train --resume {RUN} --total-steps 16", "give --total-steps more"),
    (f"train --resume {RUN} --seed 3", "option '--seed' is not known"),
    (f"train --resume {RUN} --total-steps x", "--total-steps is 'x'"),
    ("train --config", "--config: expected one argument"),
    ("train --config --foo", "--config: expected one argument"),
    ("train --config nowhere.toml", "nowhere.toml does not exist"),
    ("train --config empty", "empty cannot be read"),
    ("train --config text.txt", "text.txt"),
    ("train --config list.toml", "list.toml"),
]
OF_FLAGS = [
    # Names, by habit from elsewhere too.
    ("--lerning-rate 1", "did you mean '--learning-rate'?"),
    ("--lr 1e-3", "did you mean '--learning-rate'?"),
    ("--timesteps 100", "did you mean '--total-steps'?"),
    ("--total-timesteps 100", "did you mean '--total-steps'?"),
    ("--n-steps 3", "did you mean '--num-steps'?"),
    ("--n_steps 3", "did you mean '--num-steps'?"),
    ("--n-envs 3", "did you mean '--num-envs'?"),
    ("--batch-size 64", "did you mean '--num-minibatches'?"),
    ("--n-epochs 3", "did you mean '--update-epochs'?"),
    ("--epochs 3", "did you mean '--update-epochs'?"),
    ("--clip-range 0.2", "did you mean '--clip-coef'?"),
    ("--ent-coeff 0.1", "did you mean '--ent-coef'?"),
    ("--lam 0.9", "did you mean '--gae-lambda'?"),
    ("--gama 0.9", "did you mean '--gamma'?"),
    ("--net-arch 64,64", "did you mean '--hidden-sizes'?"),
    ("--log-dir x", "did you mean '--run-dir'?"),
    ("--cuda", "did you mean '--device'?"),
    ("--variant dapo", "option '--variant' is not known"),
    ("--zzz", "option '--zzz' is not known to rlcore train ppo; see rlcore train ppo --help"),
    ("-x", "option '-x' is not known"),
    ("extra", "argument 'extra' is not known to rlcore train ppo; see"),
    # Values that are missing or of another kind.
    ("--gamma", "--gamma: expected one argument"),
    ("--gamma --seed 1", "--gamma: expected one argument"),
    ("--gamma=", "gamma is '', but must be a number"),
    ("--learning-rate=fast", "learning_rate is 'fast', but must be a number"),
    ("--num-envs 2.5", "num_envs is '2.5', but must be a whole number"),
    ("--num-envs four", "num_envs is 'four', but must be a whole number"),
    ("--num-envs ²", "num_envs is '²', but must be a whole number"),
    ("--seed one", "seed is 'one', but must be a whole number or none"),
    ("--seed", "--seed: expected one argument"),
    ("--norm-obs maybe", "argument 'maybe' is not known"),
    ("--norm-obs=yes", "--norm-obs and --no-norm-obs take no value, but there is 'yes'"),
    ("--anneal-lr=0", "--anneal-lr and --no-anneal-lr take no value, but there is '0'"),
    ("--hidden-sizes a,b", "hidden_sizes is 'a,b', but must be a list of whole numbers"),
    ("--hidden-sizes 64,,64", "hidden_sizes is '64,,64', but must be a list of whole numbers"),
    ("--hidden-sizes 64x64", "hidden_sizes is '64x64'"),
    ("--total-steps many", "--total-steps is 'many', but must be a whole number"),
    ("--total-steps 1.5e0", "must be a whole number"),
    # Values out of range.
    ("--learning-rate -1", "learning_rate is -1.0, but must be at least 0 and finite"),
    ("--learning-rate nan", "learning_rate is nan, but"),
    ("--learning-rate inf", "learning_rate is inf, but"),
    ("--gamma 1.1", "gamma is 1.1, but must be at least 0 and at most 1"),
    ("--gamma -0.1", "gamma is -0.1"),
    ("--gae-lambda 2", "gae_lambda is 2.0"),
    ("--clip-coef 0", "clip_coef is 0.0, but must be more than 0 and finite"),
    ("--ent-coef -1", "ent_coef is -1.0"),
    ("--vf-coef -1", "vf_coef is -1.0"),
    ("--max-grad-norm 0", "max_grad_norm is 0.0, but must be more than 0"),
    ("--target-kl 0", "target_kl is 0.0"),
    ("--num-envs 0", "num_envs is 0, but must be at least 1"),
    ("--num-envs -1", "num_envs is -1"),
    ("--num-envs 1000000000000", "num_envs is 1000000000000, but must be at least 1 and at most 2,147,483,647"),
    ("--num-steps 0", "num_steps is 0"),
    ("--num-steps 99999999999999999999", "and at most 2,147,483,647"),
    ("--num-minibatches 0", "num_minibatches is 0"),
    ("--num-minibatches 7", "num_minibatches is 7, but must divide num_envs × num_steps = 64 × 32 = 2048"),
    ("--num-envs 3 --num-steps 5", "num_minibatches is 4, but must divide"),
    ("--update-epochs 0", "update_epochs is 0"),
    ("--hidden-sizes 0", "hidden_sizes is (0,)"),
    ("--hidden-sizes 10000000,10000000", "hidden_sizes is (10000000, 10000000), but must be at least 1 and at most"),
    ("--total-steps 0", "--total-steps is 0, but must be at least 1"),
    ("--total-steps -5", "--total-steps is -5, but must be at least 1"),
    ("--total-steps 1e300", "--total-steps is 1e300, but must be at most 9,223,372,036,854,775,807"),
    ("--total-steps " + "9" * 6000, "must be a whole number"),
    ("--seed -1", "seed is -1"),
    ("--seed 18446744073709551616", "seed is 18446744073709551616, but must be at least 0 and at most"),
    ("--threads 0", "--threads is 0, but must be at least 1"),
    ("--threads 1000000", "--threads is 1000000, but must be at most 1,024"),
    ("--eval-episodes -1", "--eval-episodes is -1, but must be at least 0"),
    ("--checkpoint-every 0", "--checkpoint-every is 0, but must be at least 1"),
    ("--comparisons -1", "comparisons is -1"),
    ("--env-timeout -1", "env_timeout is -1.0"),
    # Choices.
    ("--device gpu", "device is 'gpu', but may be cpu, cuda, cuda:K or auto"),
    ("--device cuda:300", "device is 'cuda:300', but may be"),
    ("--backend nativ", "did you mean 'native'?"),
    ("--backend envpool", "backend envpool is for Atari and Google Football"),
    ("--compile yes", "compile is 'yes', but may be one of auto, true, record, false"),
    ("--activation swish", "activation is 'swish', but may be one of tanh"),
    ("--optimizer sgd", "optimizer is 'sgd', but may be one of adam, rmsprop"),
    ("--memory rnn", "memory is 'rnn', but may be one of gru, lstm, transformer"),
    ("--objective kl2", "objective is 'kl2', but may be one of clip, kl"),
    ("--on-env-error explode", "on_env_error is 'explode', but may be one of stop, restart"),
    ("--preset CartPole-v0", "did you mean 'CartPole-v1'?"),
    ("--preset nope", "preset 'nope' does not exist for ppo"),
    ("--track wandbb", "--track is 'wandbb', did you mean 'wandb'?"),
    ("--track nomodule:tracker", "nomodule"),
    # Things that belong together or do not.
    ("--noise-correlation 0.5", "noise_correlation is 0.5, but is for Box actions alone"),
    ("--squash", "squash"),
    # Environments' arguments, modules, files.
    ("--env-arg wind", "--env-arg is 'wind', but must be NAME=VALUE"),
    ("--env-arg =1", "--env-arg is '=1', but must be NAME=VALUE"),
    ("--env-arg wind=3", "CartPole-v1 cannot be made with {'wind': 3}"),
    ("--env-arg num_envs=3", "'num_envs' cannot be an argument of the environment's constructor"),
    ("--env-arg seed=3", "'seed' cannot be an argument"),
    ("--env-arg day=2020-01-01", "--env-arg day is the date or time 2020-01-01, but may only be a text"),
    ("--env-arg x=0x" + "f" * 1000, "is a number of 4,000 bits"),
    ("--import nomodule", "the module 'nomodule' cannot be imported"),
    ("--run-dir text.txt", "text.txt exists already and is a file, not a run"),
    (f"--run-dir {RUN}", f"continue it with --resume {RUN}"),
    ("--run-dir text.txt/run", "text.txt/run cannot be made"),
    ("--run-dir " + "x" * 5000, "File name too long"),
    ("--run-dir " + "x" * 300, "File name too long"),
    ("--run-dir=", "the run folder has no name"),
    ("--init nowhere", "nowhere does not exist"),
    ("--init text.txt", "text.txt is not a checkpoint"),
]
OF_OTHERS = [
    ("train grpo CartPole-v1 --variant ppo", "variant is 'ppo', but may be one of grpo, dr_grpo, dapo, rloo, gpg"),
    ("train grpo CartPole-v1 --group-size 1", "group_size is 1, but must be at least 2"),
    ("train grpo CartPole-v1 --num-envs 5 --group-size 4", "group_size is 4, but must divide num_envs = 5"),
    ("train grpo CartPole-v1 --num-generations 4", "did you mean '--group-size'?"),
    ("train reinforce CartPole-v1 --psi best", "psi is 'best', but may be one of"),
    ("train trpo CartPole-v1 --max-kl 0", "max_kl is 0.0, but must be more than 0"),
    ("train trpo CartPole-v1 --clip-coef 0.1", "option '--clip-coef' is not known to rlcore train trpo"),
    ("train ppo FrozenLake-v1 --env-arg map_name=99x99", "FrozenLake-v1 cannot be made with {'map_name': '99x99'}"),
    ("train bc CartPole-v1", "CartPole-v1"),
    ("train dpo CartPole-v1", "preferences is none, but may be a file of pairs"),
]
TABLE = [*OF_COMMANDS, *((TRAIN + flags, words) for flags, words in OF_FLAGS), *OF_OTHERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run, an empty folder and files that are something else."""
    path = tmp_path_factory.mktemp("mistakes")
    small = "--total-steps 32 --num-envs 2 --num-steps 16 --num-minibatches 1 --eval-episodes 0 --no-progress"
    assert main([*TRAIN.split(), *small.split(), "--run-dir", str(path / RUN)]) == 0
    (path / "empty").mkdir()
    (path / "text.txt").write_text("not what you are looking for\n")
    (path / "list.toml").write_text("algo = [1, 2]\n")
    return path


def contents(folder):
    return {path: path.stat().st_size for path in folder.rglob("*") if path.name != ".lock"}


def test_the_table_is_long_and_says_nothing_twice():
    assert len(TABLE) >= 150 and len(dict(TABLE)) == len(TABLE)


@pytest.mark.parametrize(("typed", "words"), TABLE, ids=lambda x: str(x)[:60])
def test_a_mistake_is_one_sentence_and_code_2(typed, words, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = contents(folder)
    code = main(typed.split(" "))
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("rlcore: ") and err.count("\n") == 1, (code, err)
    assert words in err
    assert "Traceback" not in err
    assert contents(folder) == before and not os.path.exists("b")
