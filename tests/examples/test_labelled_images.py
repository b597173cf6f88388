"""Images by class, from a folder of folders to a folder of folders, by the example's file."""

import numpy as np
from commands import edited, run
from PIL import Image

from scoresde.app.model import Model

SIZE = 8
SMALL = (
    ("\nsize = 32", f"\nsize = {SIZE}"),
    ('wavelet = "db4"', 'wavelet = "haar"'),
    ("channels = [48, 96]", "channels = [8]\nattention = 0"),
    ("channels = [32, 64]", "channels = [8]\nattention = 0"),
    ("channels = [24, 48]", "channels = [8]\nattention = 0"),
    ("steps = 1200", "steps = 2"),
    ("measurements = 3", "measurements = 1\nmeasured_events = 1"),
    ("batch_size = 32", "batch_size = 4"),
    ("steps = 24", "steps = 3"),
)


def test_a_new_users_three_commands(tmp_path):
    numbers, path = np.random.default_rng(0), tmp_path / "x.toml"
    for i in range(8):
        kind = tmp_path / "photos" / ("cat" if i % 2 else "dog")
        kind.mkdir(parents=True, exist_ok=True)
        shades = numbers.integers(256, size=(9, 12, 3), dtype="u1")
        Image.fromarray(shades).save(kind / f"{i}.png")
    assert run("init", "labelled-images", tmp_path / "photos", "--output", path).exit_code == 0
    model = tmp_path / "model"
    result = run("train", edited(path, *SMALL), "--output", model)
    assert result.exit_code == 0, result.output
    asked = ("--label", "cat", "--label", "dog", "--guidance", 2, "--count", 4)
    result = run("sample", model, *asked, "--output", f"{tmp_path}/new/")
    assert result.exit_code == 0, result.output
    found = {
        kind.name: [Image.open(path).size for path in kind.iterdir()]
        for kind in (tmp_path / "new").iterdir()
    }
    assert found == {"cat": [(SIZE, SIZE)] * 2, "dog": [(SIZE, SIZE)] * 2}
    guided = Model.load(model).estimator
    assert (guided.guidance, guided.interval, guided.null_condition) == (1.5, (0.1, 10.0), 2)
    # every stage's network hears of two classes, and of none
    assert [stage.network.condition_shape for stage in guided.estimator.stages] == [()] * 3
