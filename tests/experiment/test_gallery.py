"""Pictures for the pages, written with torch and read without."""

from types import SimpleNamespace

import torch

from experiment import gallery, results
from experiment.run import Run
from experiment.steps import describing
from experiment.tasks import Split
from experiment.twins import micro


def test_twins_are_shown_by_their_first_test_image_of_each_class(tmp_path):
    run = Run.of("smoke", root=tmp_path)
    splits = {}
    for task in run.profile.tasks:
        labels = torch.arange(45).flip(0) % len(micro.TASKS[task].classnames)
        splits[task] = Split(torch.randint(256, (45, 3, 32, 32), dtype=torch.uint8), labels)
    session = SimpleNamespace(run=run, split=lambda task, split: splits[task])
    describing.write_pictures(session)
    results.write_json(run.results / "run.json", {"patching": []})
    told, pictures = gallery.read_classes(run.results)
    assert told["design"]["WILD_SHARE"] == micro.WILD_SHARE
    for task, (images, labels, _) in splits.items():
        first = told["tasks"][task]["first"]
        assert first == [labels.tolist().index(label) for label in range(len(first))]
        assert torch.equal(torch.from_numpy(pictures[task]), images[first].permute(0, 2, 3, 1))
    shown = gallery.read(run.results)["pictures"]["SVHN"]
    assert list(shown) == ["strip", "positions", "labels", "classnames"]  # what explore embeds
