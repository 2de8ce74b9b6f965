import pytest

from experiment import cost
from experiment.profiles import ALPHAS, PATCHING, SUPPORTED
from experiment.run import Run


def test_flops_are_those_of_the_written_out_architecture():
    per = cost.clip_flops()

    def blocks(layers, width, tokens):  # attention and MLP weights, then scores and mixing
        return layers * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)

    stem, projection = 2 * 49 * 3 * 32**2 * 768, 2 * 768 * 512
    assert per.image == blocks(12, 768, 50) + stem + projection
    assert per.text == blocks(12, 512, 77) + 2 * 512 * 512
    # backward takes twice the forward, but no gradient goes to the pixels
    assert per.training == 3 * per.image - stem
    assert (per.image_parameters, per.parameters) == (87_849_216, 151_277_313)


def test_data_sets_are_those_of_the_profile():
    assert tuple(cost.DATA_SETS) == SUPPORTED + PATCHING


def test_supported_tasks_keep_their_train_pictures_out_of_the_cache():
    run = Run.of("paper", tasks="ImageNet,MNIST")
    assert cost.cached_pictures(run) == {"ImageNet": 55_000, "MNIST": 70_000}


def test_steps_of_one_pair_are_counted_by_hand():
    work = cost.steps(Run.of("paper", tasks="STL10,DTD"), fresh=1.5, answers=2)
    assert list(work) == ["decode", "head", "verify", "finetune", "baseline", "solve"]
    assert work["decode"] == cost.Work(2, decoded=500 + 8000 + 3760 + 1880)
    assert work["head"] == cost.Work(2, prompts=20 + 376)
    assert work["verify"] == cost.Work(3, forward=2000 + 2 * 1880)
    assert work["finetune"] == cost.Work(1, training=2000 * 128)
    assert work["baseline"] == cost.Work(1, forward=500 + 8000, training=500)
    repaired = 376 + 1880  # at the zero-shot weights, besides all other alphas and the far end
    forward = len(ALPHAS) * (500 + 376) + 8000 + 1880 + repaired  # one for the noise
    assert work["solve"] == cost.Work(1, forward=forward + 1314 + 2 * 9880)


def test_jobs_are_those_of_the_workflow():
    jobs = {step: work.jobs for step, work in cost.steps(fresh=0, answers=0).items()}
    assert jobs == {
        "decode": 13, "head": 13, "verify": 22, "baseline": 1, "finetune": 9, "solve": 9,
    }  # fmt: skip


def test_hours_add_up_and_fall_with_the_rate():
    per = cost.Flops(image=10, text=5, training=30, image_parameters=1, parameters=2)
    work = cost.Work(1, decoded=3600, prompts=7200, forward=3600, training=3600)
    for decode, forward, training in ((1, 1, 1), (2, 4, 8)):
        rates = {"decode": decode, "forward": forward, "training": training}
        assert work.hours(per, rates) == pytest.approx(1 / decode + 2 / forward + 1 / training)
    assert work.flops(per) == 7200 * 5 + 3600 * 10 + 3600 * 30
