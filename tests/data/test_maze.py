import csv
import itertools
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from trm_jax.data import dihedral
from trm_jax.data.maze import grid, paths
from trm_jax.data.maze.task import maze_task
from trm_jax.errors import UserError

DATA = pathlib.Path(__file__).parent.parent / "recorded"


def solve_by_walking(maze, size):
  """All shortest paths, by walking every way: shares nothing with us.

  Args:
    maze: text of `size * size` characters with one S and one G.
    size: cells along one side.

  Returns:
    The right answers, as a set of texts.
  """
  cells = {(i, j): maze[i * size + j] for i in range(size) for j in range(size)}
  walks = [[place] for place in cells if cells[place] == "S"]
  while walks:
    done = [walk for walk in walks if cells[walk[-1]] == "G"]
    if done:
      return {
        "".join("o" if place in walk[1:-1] else cells[place] for place in cells)
        for walk in done
      }
    walks = [
      [*walk, near]
      for walk in walks
      for i, j in [walk[-1]]
      for near in [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
      if cells.get(near, "#") in " G" and near not in walk
    ]
  return set()


def tokens(*mazes):
  """uint8 [N, L] of mazes as text, whatever they hold."""
  return np.array([[grid.TOKENS.get(c, 0) for c in m] for m in mazes], np.uint8)


def fillings(maze):
  """The maze with its free cells turned into path, in every way."""
  choices = [" o" if cell == " " else cell for cell in maze]
  return map("".join, itertools.product(*choices))


def draw_maze(draw, size, walls=0.35):
  """A maze with one start and one goal, which may be out of reach."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  maze = rng.choice([" ", "#"], size * size, p=[1 - walls, walls])
  maze[rng.choice(size * size, 2, replace=False)] = ["S", "G"]
  return "".join(maze)


@pytest.fixture(scope="module")
def sample():
  with np.load(DATA / "maze_sample_reference.npz") as arrays:
    return arrays["inputs"], arrays["labels"]


@pytest.fixture(scope="module")
def is_valid():
  """The verifier of a size, compiled once for each shape."""
  compiled = {
    size: jax.jit(maze_task(size).is_solution) for size in (3, 4, 5, 30)
  }
  return lambda size, *arrays: np.asarray(compiled[size](*arrays))


# Text.


def test_tokens():
  found = grid.parse("S #\n #o\n  G", size=3)
  assert found.dtype == np.uint8
  assert found.tolist() == [3, 2, 1, 2, 1, 5, 2, 2, 4]
  assert grid.render([0, 1, 2, 3, 4, 5, 6, 255]) == "?# SGo??"


@pytest.mark.parametrize("size", [3, 7])
@hypothesis.given(data=st.data())
def test_parse_and_render_are_inverse(size, data):
  length = size * size
  cells = st.lists(st.sampled_from([1, 2, 5]), min_size=length, max_size=length)
  drawn = np.array(data.draw(cells), np.uint8)
  ends = data.draw(
    st.lists(st.integers(0, length - 1), min_size=2, max_size=2, unique=True)
  )
  drawn[ends] = grid.START, grid.GOAL
  text = grid.render(drawn)
  lines = [text[i : i + size] for i in range(0, length, size)]
  for form in (text, f"{text}\n", "\n".join(lines), "\r\n".join([*lines, ""])):
    assert (grid.parse(form, size=size) == drawn).all()


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("S      G", "one line of 9 characters.* 1 lines and 8 characters"),
    ("S       G ", "10 characters"),
    ("S  \n   \n  G\n   ", "3 lines of 3, but there are 4 lines"),
    ("S  \n \n  G  ", "Spaces are free cells and must all be there"),
    ("S\n        G", "2 lines"),
    ("", "0 characters"),
    ("S   x   G", r"row 2, column 2 of the maze is 'x'.*'#' \(wall\)"),
    ("S  \t    G", r"row 2, column 1 of the maze is '\\t'"),
    ("S   é   G", "row 2, column 2 of the maze is 'é'"),
    ("        G", "0 cells 'S'; expected one"),
    ("S        ", "0 cells 'G'"),
    ("S G     G", "2 cells 'G'"),
    ("S S     G", "2 cells 'S'"),
  ],
)
def test_parse_says_what_is_wrong(text, words):
  with pytest.raises(UserError, match=words):
    grid.parse(text, size=3)


def test_tasks():
  task = maze_task(30)
  assert task is maze_task(30) and hash(task) == hash(maze_task(30))
  assert (task.name, task.seq_len, task.vocab_size) == ("maze", 900, 6)
  assert maze_task(5).seq_len == 25
  text = "S  # #  G"
  assert task.render(maze_task(3).parse(text)) == text


# The verifier.


def test_every_answer_to_every_small_maze(is_valid):
  """All 3x3 mazes, each with every way to turn free cells into path."""
  mazes, answers, expected = [], [], []
  for start, goal in itertools.permutations(range(9), 2):
    for walls in itertools.product(" #", repeat=7):
      cells = list(walls)
      for place, name in sorted([(start, "S"), (goal, "G")]):
        cells.insert(place, name)
      maze = "".join(cells)
      right = solve_by_walking(maze, 3)
      for answer in fillings(maze):
        mazes.append(maze)
        answers.append(answer)
        expected.append(answer in right)
  found = is_valid(3, tokens(*mazes), tokens(*answers))
  assert found.dtype == bool and len(found) == 72 * 3**7
  assert found.tolist() == expected


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(data=st.data())
def test_verifier_agrees_with_walking(is_valid, data):
  maze = draw_maze(data.draw, 5)
  right = solve_by_walking(maze, 5)
  base = data.draw(st.sampled_from(sorted(right) or [maze]))
  answer = list(base)
  for _ in range(data.draw(st.integers(0, 2))):
    answer[data.draw(st.integers(0, 24))] = data.draw(st.sampled_from("# SGo?"))
  answer = "".join(answer)
  found = is_valid(5, tokens(maze), tokens(answer))
  assert found.tolist() == [answer in right]


def test_a_malformed_maze_has_no_valid_answer(is_valid):
  mazes = [
    "        G",  # no start
    "S        ",  # no goal
    "S S     G",
    "S G     G",
    "SSSSSGGGG",
    "S# ##   G",  # out of reach
    "S#G######",
    "?????????",
    "#########",
    "         ",
    "ooooooooo",
    "Sooooooo ",
  ]
  pairs = [(maze, answer) for maze in mazes for answer in fillings(maze)]
  questions, answers = zip(*pairs, strict=True)
  assert not is_valid(3, tokens(*questions), tokens(*answers)).any()


def test_any_tokens_end_in_a_verdict(is_valid):
  rng = np.random.default_rng(0)
  for high in (6, 256):
    inputs = rng.integers(0, high, (64, 25), np.uint8)
    assert not is_valid(5, inputs, rng.integers(0, high, (64, 25))).any()


def test_answers_in_any_arrangement(is_valid):
  questions = tokens("S G      ", "S#G      ")
  answers = tokens("SoG      ", "S#Goooooo", "S#Go ooo ")
  assert is_valid(3, questions[0], answers[0]).tolist() is True
  found = is_valid(3, questions[[[0, 1], [1, 1]]], answers[[[0, 0], [1, 2]]])
  assert found.tolist() == [[True, False], [False, False]]


def test_real_labels_and_other_shortest_paths_are_valid(is_valid, sample):
  inputs, labels = sample
  assert is_valid(30, inputs, labels).all()
  # In the transposed maze another path is found first, and it is as short.
  swap = dihedral.dihedral_cells(30)[6]
  others = np.stack([paths.shortest_path(x[swap])[swap] for x in inputs])
  assert (others != labels).any(-1).all()
  assert is_valid(30, inputs, others).all()
  # One cell more, one less, or a path through a wall is none.
  for before, after in ((2, 5), (5, 2), (1, 5), (1, 2), (3, 5), (5, 0)):
    spoiled = labels.copy()
    spoiled[range(len(labels)), (labels == before).argmax(-1)] = after
    assert not is_valid(30, inputs, spoiled).any()
  assert not is_valid(30, inputs, inputs).any()
  assert not is_valid(30, inputs, np.roll(labels, 1, 0)).any()


def test_a_way_round_is_not_shortest(is_valid):
  maze = "S G" + "   " + "   "
  assert is_valid(3, tokens(maze), tokens("SoG      ")).all()
  assert not is_valid(3, tokens(maze), tokens("S Gooo   ")).any()
  assert is_valid(3, tokens("SG       "), tokens("SG       ")).all()


# Shortest paths on the host.


def test_real_labels_are_reproduced(sample):
  inputs, labels = sample
  found = np.stack([paths.shortest_path(question) for question in inputs])
  assert found.dtype == np.uint8 and (found == labels).all()


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(data=st.data())
def test_paths_agree_with_walking(data):
  maze = draw_maze(data.draw, 5)
  right = solve_by_walking(maze, 5)
  (question,) = tokens(maze)
  if not right:
    with pytest.raises(UserError, match="no way from 'S' to 'G'"):
      paths.shortest_path(question)
    return
  answer = grid.render(paths.shortest_path(question))
  assert answer in right
  distances, parents = paths.search(question, grid.START)
  assert distances[maze.index("G")] == answer.count("o") + 1
  assert parents[maze.index("S")] == -1


# 32 and 33 lie on both sides of a word's end, 70 needs three words.
@pytest.mark.parametrize("size", [3, 9, 32, 33, 70])
def test_many_mazes_are_searched_like_one(size):
  rng = np.random.default_rng(size)
  walls = rng.uniform(0.1, 0.6, (40, 1))
  is_open = rng.random((40, size * size)) >= walls
  mazes = np.where(is_open, grid.FREE, grid.WALL)
  for maze in mazes:
    maze[rng.choice(size * size, 2, replace=False)] = grid.START, grid.GOAL
  start = mazes == grid.START
  distances = np.array([paths.search(maze, grid.START)[0] for maze in mazes])
  for least in (1, 2, size, 2 * size, 10**4):
    far = (distances >= least).any(-1)
    rows, cells = paths.far_cells(mazes != grid.WALL, start, least)
    assert rows.tolist() == np.flatnonzero(far).tolist()
    assert cells.dtype == bool
    assert (cells == (distances[rows] >= least)).all()


# Symmetries.


def test_symmetries_are_numbered_as_in_the_reference():
  picture = np.arange(9).reshape(3, 3) + 10
  images = copies(picture.reshape(1, 9), 3).reshape(8, 3, 3)
  assert images[0].tolist() == [[10, 11, 12], [13, 14, 15], [16, 17, 18]]
  assert images[1].tolist() == [[12, 15, 18], [11, 14, 17], [10, 13, 16]]
  assert images[2].tolist() == [[18, 17, 16], [15, 14, 13], [12, 11, 10]]
  assert images[3].tolist() == [[16, 13, 10], [17, 14, 11], [18, 15, 12]]
  assert images[4].tolist() == [[12, 11, 10], [15, 14, 13], [18, 17, 16]]
  assert images[5].tolist() == [[16, 17, 18], [13, 14, 15], [10, 11, 12]]
  assert images[6].tolist() == [[10, 13, 16], [11, 14, 17], [12, 15, 18]]
  assert images[7].tolist() == [[18, 15, 12], [17, 14, 11], [16, 13, 10]]


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_symmetries_have_inverses(size):
  cells = dihedral.dihedral_cells(size)
  assert cells.shape == (8, size * size)
  for number, inverse in enumerate(dihedral.DIHEDRAL_INVERSE):
    assert (cells[number][cells[inverse]] == np.arange(size * size)).all()


def copies(grids, size):
  """The eight images of each grid, those of one grid after one another."""
  return grids[:, dihedral.dihedral_cells(size)].reshape(-1, size * size)


def test_canonical_names_are_shared_by_images_only():
  grids = np.array(list(itertools.product((1, 2), repeat=9)), np.uint8)
  names = [dihedral.canonical(g, 3) for g in grids]
  for g, name in zip(grids[::37], names[::37], strict=True):
    images = copies(g[None], 3)
    assert {dihedral.canonical(image, 3) for image in images} == {name}
  assert len(set(names)) == 102  # by Burnside's lemma


def test_augmentation_shows_all_symmetries_alike(sample, is_valid):
  inputs, labels = (jnp.asarray(array[0]) for array in sample)
  keys = jax.random.split(jax.random.key(0), 400)
  augment = jax.jit(
    jax.vmap(maze_task(30).augmentation.augment, (0, None, None))
  )
  images, answers = (np.asarray(x) for x in augment(keys, inputs, labels))
  assert images.dtype == answers.dtype == np.uint8
  both = np.stack([inputs, labels])
  expected = copies(both, 30).reshape(2, 8, -1)
  numbers = (images[:, None] == expected[:1]).all(-1).argmax(-1)
  assert (images == expected[0, numbers]).all()
  assert (answers == expected[1, numbers]).all()
  assert np.bincount(numbers, minlength=8).min() > 25
  assert is_valid(30, images[:20], answers[:20]).all()


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(data=st.data())
def test_validity_has_the_symmetry_of_the_square(is_valid, data):
  maze = draw_maze(data.draw, 4, walls=0.3)
  (question,) = tokens(maze)
  answer = question.copy()
  free = np.flatnonzero(question == grid.FREE).tolist()
  right = sorted(solve_by_walking(maze, 4))
  if right:
    (answer,) = tokens(data.draw(st.sampled_from(right)))
  if free and data.draw(st.booleans()):
    answer[data.draw(st.sampled_from(free))] = grid.PATH
  images = copies(np.stack([question, answer]), 4).reshape(2, 8, -1)
  found = is_valid(4, *images)
  assert found.all() or not found.any()
  # And undoing a symmetry brings the maze back.
  cells, inverse = dihedral.dihedral_cells(4), dihedral.DIHEDRAL_INVERSE
  for number in range(8):
    assert (images[:, number][:, cells[inverse[number]]] == images[:, 0]).all()


# Pictures.


def test_draw(sample):
  from matplotlib import colors, figure

  question, label = sample[0][0], sample[1][0]
  answer = label.copy()
  missed = np.flatnonzero(label == grid.PATH)[5]
  extra = np.flatnonzero(label == grid.FREE)[7]
  answer[missed], answer[extra] = grid.FREE, grid.PATH

  def drawn(*arrays):
    axes = figure.Figure().add_subplot()
    grid.draw(axes, *arrays)
    image = np.asarray(axes.images[0].get_array()).reshape(900, 3)
    crosses = {
      (int(x), int(y))
      for line in axes.lines
      for x, y in zip(*line.get_data(), strict=True)
    }
    return image, [text.get_text() for text in axes.texts], crosses

  image, texts, crosses = drawn(question, answer, label)
  assert sorted(texts) == ["G", "S"]
  assert crosses == {(c % 30, c // 30) for c in (missed, extra)}
  assert (image[answer == grid.FREE] == 1).all()
  grey = {token: image[answer == token].mean() for token in (1, 2, 5)}
  assert grey[1] < 0.3 < grey[5] < 0.8 < grey[2]
  image, _, crosses = drawn(question)
  assert not crosses
  assert (image[label == grid.PATH] == 1).all()
  image, _, crosses = drawn(question, answer)
  assert not crosses
  assert colors.to_hex(image[extra]) != colors.to_hex(image[missed])
  # An untrained model answers with any token.
  drawn(question, np.arange(900) % 7, label)


def test_the_sample_is_what_the_reference_makes_of_its_file(sample):
  with open(DATA / "maze_sample.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(sample[0]) == 20
  for row, question, answer in zip(rows, *sample, strict=True):
    assert grid.render(question) == row["question"]
    assert (grid.parse(row["answer"], size=30) == answer).all()
