"""The store: whole at any time, for any number of writers, of one key, in stable bytes."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from paintlib import Store
from paintlib.files import replacing
from paintlib.objective import ImageScores

KEY = {"start": "aa", "end": "bb", "data": "cc"}


def scored(seed, images=50):
    generator = np.random.default_rng(seed)
    return ImageScores(generator.gamma(2.0, 0.5, images), generator.random(images) < 0.7)


def same(a, b):
    return np.array_equal(a.losses, b.losses) and np.array_equal(a.correct, b.correct)


def run(code, *arguments):
    """Start Python on `code` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", f"from test_store import *\n{code}", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_what_is_put_is_there_for_the_next_process(tmp_path):
    file = tmp_path / "new" / "folder" / "s.npz"
    store = Store(file, KEY)
    assert not file.exists() and store.tasks == () and store.alphas("a") == ()
    store.put(0.5, {"a": scored(1), "b": scored(2, 30)})
    store.put(0.25, {"a": scored(3)})
    for other in (store, Store(file), Store(file, KEY, writable=False)):
        assert other.tasks == ("a", "b") and other.key == KEY
        assert other.alphas("a") == (0.25, 0.5) and other.alphas("b") == (0.5,)
        assert same(other.get(0.5, "b"), scored(2, 30)) and same(other.get(0.25, "a"), scored(3))
        assert other.get(0.25, "b") is None and other.get(0.5, "c") is None
        assert other.get(0.5, "a").score == scored(1).score


def test_file_is_read_by_numpy_alone(tmp_path):
    store = Store(tmp_path / "s.npz", KEY)
    for alpha in (1.0, 0.0):
        store.put(alpha, {"task.with.dots": scored(int(alpha))})
    with np.load(tmp_path / "s.npz", allow_pickle=False) as content:
        assert json.loads(content["key"].item()) == KEY
        assert content["task.with.dots.alphas"].tolist() == [0.0, 1.0]
        assert content["task.with.dots.losses"].shape == (2, 50)
        assert content["task.with.dots.losses"].dtype == "<f8"
        assert content["task.with.dots.correct"].dtype == bool
    assert Store(tmp_path / "s.npz").tasks == ("task.with.dots",)


def test_losses_with_the_digits_of_float32_take_its_room_and_lose_nothing(tmp_path):
    losses, correct, *_ = scored(1)
    short = ImageScores(losses.astype("f4").astype("f8"), correct)
    store = Store(tmp_path / "s.npz")
    store.put(0.5, {"short": short, "long": scored(1)})
    with np.load(tmp_path / "s.npz") as content:
        assert (content["short.losses"].dtype, content["long.losses"].dtype) == ("<f4", "<f8")
    again = Store(tmp_path / "s.npz")
    assert same(again.get(0.5, "short"), short) and same(again.get(0.5, "long"), scored(1))
    assert again.get(0.5, "short").losses.dtype == "f8"
    assert again.get(0.5, "short").score == short.score


def test_same_content_has_the_same_bytes_in_any_order(tmp_path):
    entries = [(alpha, task) for alpha in (0.0, 0.3, 1.0) for task in ("a", "b")]
    found = set()
    for i, order in enumerate(itertools.islice(itertools.permutations(entries), 0, 720, 97)):
        store = Store(tmp_path / f"{i}.npz", dict(reversed(KEY.items())) if i % 2 else KEY)
        for alpha, task in order:
            store.put(alpha, {task: scored(entries.index((alpha, task)))})
        found.add((tmp_path / f"{i}.npz").read_bytes())
        with zipfile.ZipFile(tmp_path / f"{i}.npz") as archive:
            assert {member.date_time[0] for member in archive.infolist()} == {1980}
    assert len(found) == 1


def test_alpha_that_differs_by_rounding_is_the_same(tmp_path):
    store = Store(tmp_path / "s.npz")
    store.put(0.3, {"a": scored(1)})
    assert same(store.get(0.1 + 0.2, "a"), scored(1)) and same(
        store.get(0.3 - 9e-10, "a"), scored(1)
    )
    assert store.get(0.3 + 2e-9, "a") is None
    store.put(0.3 + 2e-9, {"a": scored(2)})
    assert same(store.get(0.3 + 1.6e-9, "a"), scored(2))  # the nearer one


def test_first_evaluation_stays(tmp_path):
    one, two = Store(tmp_path / "s.npz"), Store(tmp_path / "s.npz")
    one.put(0.5, {"a": scored(1)})
    two.put(0.5, {"a": scored(2)})
    for store in (one, two, Store(tmp_path / "s.npz")):
        assert same(store.get(0.5, "a"), scored(1))


def test_what_is_stored_does_not_change_with_its_source(tmp_path):
    store, row = Store(tmp_path / "s.npz"), scored(1)
    store.put(0.5, {"a": row})
    row.losses[:] = 0
    assert same(store.get(0.5, "a"), scored(1))


def test_store_that_is_not_writable_keeps_puts_in_memory(tmp_path):
    Store(tmp_path / "s.npz", KEY).put(0.0, {"a": scored(1)})
    before = (tmp_path / "s.npz").read_bytes()
    (tmp_path / "s.npz.lock").unlink()
    store = Store(tmp_path / "s.npz", writable=False)
    store.put(0.5, {"a": scored(2)})
    assert store.alphas("a") == (0.0, 0.5) and store.key == KEY
    assert (tmp_path / "s.npz").read_bytes() == before
    assert os.listdir(tmp_path) == ["s.npz"]
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        Store(tmp_path / "none.npz", writable=False)


def test_two_stores_in_turn_keep_what_both_have_put(tmp_path):
    one, two = Store(tmp_path / "s.npz", KEY), Store(tmp_path / "s.npz", KEY)
    one.put(0.1, {"a": scored(1)})
    two.put(0.2, {"a": scored(2)})
    one.put(0.3, {"b": scored(3)})
    assert Store(tmp_path / "s.npz").alphas("a") == one.alphas("a") == (0.1, 0.2)
    two.put(0.4, {"b": scored(4)})
    assert two.alphas("b") == (0.3, 0.4)
    (tmp_path / "s.npz").unlink()  # what is known survives that too
    one.put(0.5, {"a": scored(5)})
    assert Store(tmp_path / "s.npz").alphas("a") == (0.1, 0.2, 0.5)


PUTS = """
store = Store(sys.argv[1], KEY)
for i in range(int(sys.argv[3])):
    store.put((int(sys.argv[2]) + 2 * i) / 100, {"a": scored(int(sys.argv[2]) + 2 * i)})
    print(i, flush=True)
"""


def test_two_processes_at_once_lose_nothing(tmp_path):
    writers = [run(PUTS, tmp_path / "s.npz", first, 20) for first in (0, 1)]
    assert [writer.communicate(timeout=60) and writer.returncode for writer in writers] == [0, 0]
    store = Store(tmp_path / "s.npz", KEY)
    assert store.alphas("a") == tuple(i / 100 for i in range(40))
    assert all(same(store.get(i / 100, "a"), scored(i)) for i in range(40))


def test_killed_writer_leaves_a_whole_file_and_nothing_else(tmp_path):
    for kill in range(4):
        file = tmp_path / f"{kill}" / "s.npz"
        writer = run(PUTS, file, 0, 100_000)
        for _ in range(3 + kill):
            writer.stdout.readline()
        time.sleep(0.003 * kill)
        writer.send_signal(signal.SIGKILL)
        printed = 3 + kill + len(writer.communicate()[0].splitlines())
        store = Store(file)  # whole, and no evaluation that was reported is lost
        assert printed <= len(store.alphas("a")) <= printed + 1
        store.put(99.0, {"a": scored(0)})
        assert sorted(os.listdir(file.parent)) == ["s.npz", "s.npz.lock"]


def test_kill_while_writing_leaves_the_file_as_it_was(tmp_path):
    Store(tmp_path / "s.npz", KEY).put(0.0, {"a": scored(0)})
    before = (tmp_path / "s.npz").read_bytes()
    half = """
def killed(file, **arrays):
    file.write(b"PK half of it"), file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
np.savez_compressed = killed
Store(sys.argv[1]).put(0.5, {"a": scored(1)})
"""
    writer = run(half, tmp_path / "s.npz")
    writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    assert (tmp_path / "s.npz").read_bytes() == before
    assert len(list(tmp_path.glob(".*-s.npz"))) == 1  # swept up by the next put
    Store(tmp_path / "s.npz").put(0.5, {"a": scored(1)})
    assert sorted(os.listdir(tmp_path)) == ["s.npz", "s.npz.lock"]


def test_another_key_is_refused_by_its_first_field(tmp_path):
    Store(tmp_path / "s.npz", KEY).put(0.0, {"a": scored(1)})
    message = (
        r"s\.npz holds evaluations with data = 'cc', not 'dd'; delete it, or give these another"
    )
    with pytest.raises(ValueError, match=message):
        Store(tmp_path / "s.npz", {**KEY, "start": "zz", "data": "dd"})
    with pytest.raises(ValueError, match="with end = 'bb', not None"):
        Store(tmp_path / "s.npz", {"start": "aa", "data": "cc"})
    with pytest.raises(ValueError, match="with precision = None, not 'half'"):
        Store(tmp_path / "s.npz", {**KEY, "precision": "half"}, writable=False)


def test_file_that_has_become_another_is_not_overwritten(tmp_path):
    store = Store(tmp_path / "s.npz", KEY)
    Store(tmp_path / "s.npz", {"start": "other"}).put(0.0, {"a": scored(1)})
    with pytest.raises(ValueError, match="with data = None, not 'cc'"):
        store.put(0.5, {"a": scored(2)})
    assert Store(tmp_path / "s.npz").alphas("a") == (0.0,)


def test_damaged_file_is_refused_wherever_it_was_cut(tmp_path):
    file = tmp_path / "s.npz"
    Store(file, KEY).put(0.0, {"a": scored(1)})
    whole = file.read_bytes()
    for size in [0, 1, 10, *range(20, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"s\.npz is damaged, or no store; delete it"):
            Store(file)
        assert file.read_bytes() == whole[:size]
    file.write_bytes(whole[:60] + b"\0\0\0\0" + whole[64:])
    with pytest.raises(ValueError, match="is damaged"):
        Store(file)


def test_foreign_file_is_refused(tmp_path):
    file = tmp_path / "s.npz"
    np.savez(file, weights=np.zeros(3))
    with pytest.raises(ValueError, match="no store"):
        Store(file)
    key, ones = np.array("{}"), np.ones((2, 3))
    np.savez(file, **{"key": key, "a.alphas": np.zeros(3), "a.losses": ones, "a.correct": ones})
    with pytest.raises(ValueError, match="no store"):
        Store(file)
    file.write_text("not a zip")
    with pytest.raises(ValueError, match="no store"):
        Store(file)
    with file.open("wb") as raw:
        np.save(raw, np.zeros(3))
    with pytest.raises(ValueError, match="no store"):
        Store(file)


def test_bad_evaluations_are_refused(tmp_path):
    store = Store(tmp_path / "s.npz")
    for alpha in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not a finite number"):
            store.put(alpha, {"a": scored(1)})
    store.put(0.0, {"a": scored(1)})
    with pytest.raises(
        ValueError, match=r"'a' has losses \(49,\) .* at alpha = 0.5, but 50 images"
    ):
        store.put(0.5, {"a": scored(1, 49)})
    with pytest.raises(ValueError, match=r"losses \(50,\) and hits \(49,\)"):
        store.put(0.5, {"b": ImageScores(scored(1).losses, scored(1, 49).correct)})
    assert Store(tmp_path / "s.npz").alphas("a") == (0.0,)


def test_replacing_is_all_or_nothing(tmp_path):
    file = tmp_path / "sub" / "page.tar.gz"
    with replacing(file) as part:
        part.write_text("one")
        assert part.parent == file.parent and part.name.endswith("-page.tar.gz")
    with pytest.raises(RuntimeError), replacing(file) as part:
        part.write_text("two")
        raise RuntimeError
    assert file.read_text() == "one" and os.listdir(file.parent) == ["page.tar.gz"]


def test_replacing_gives_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "ours") as part:
        part.write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_without_locks_a_store_still_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("paintlib.store.fcntl", None)
    Store(tmp_path / "s.npz").put(0.0, {"a": scored(1)})
    assert Store(tmp_path / "s.npz").alphas("a") == (0.0,)


def test_points_of_several_coefficients_are_kept_beside_no_others(tmp_path):
    file = tmp_path / "s.npz"
    row = ImageScores(np.array([0.5, 1.5]), np.array([True, False]))
    store = Store(file)
    for point in ((0.25, 0.5), (0.0, 1.0), (0.25, 0.0)):
        store.put(point, {"a": row})
    again = Store(file, writable=False)
    assert again.alphas("a") == ((0.0, 1.0), (0.25, 0.0), (0.25, 0.5))
    assert again.get((0.25 + 1e-12, 0.5), "a").losses.tolist() == [0.5, 1.5]
    assert again.get((0.25, 0.75), "a") is None and again.get(0.25, "a") is None
    assert np.load(file)["a.alphas"].shape == (3, 2)
    for alpha in (0.5, (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match=r"alpha = .*, but \(0.25, 0.5\) is in .*use another"):
            store.put(alpha, {"a": row})
    with pytest.raises(ValueError, match="not a finite number"):
        store.put((0.5, np.nan), {"a": row})
    alone = Store(tmp_path / "t.npz")
    alone.put(0.25, {"a": row})
    assert alone.get((0.25, 0.25), "a") is None
