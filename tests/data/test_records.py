"""Datasets on disk, whatever their records are."""

import numpy as np
import tensorflow_datasets as tfds

from trm_jax.data import records


def test_a_dataset_is_all_that_is_left_on_disk(tmp_path, monkeypatch):
  temporary, kept = tmp_path / "temporary", tmp_path / "kept"
  temporary.mkdir()
  monkeypatch.setattr("tempfile.tempdir", str(temporary))
  made = records.RecordsConfig(
    name="squares",
    features={"value": tfds.features.Tensor(shape=(), dtype=np.int64)},
    make=lambda: ({"train": ({"value": n * n} for n in range(5))}, ["a note"]),
  )
  said = []
  for _ in range(2):
    builder = records.prepare(made, str(kept), said.append, "making squares")
    values = [
      row["value"].int64_list.value[0] for row in records.read(builder, "train")
    ]
    assert values == [0, 1, 4, 9, 16]
    assert records.notes(builder) == ["a note"]
  assert said == ["making squares"]  # made once, then found
  assert not list(temporary.iterdir())
