"""Pictures show what they should; films have a frame a step."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest
from conftest import DATA
from matplotlib.colors import to_rgb
from PIL import Image

from trm_jax.data import folder
from trm_jax.data.arc import grids
from trm_jax.data.arc.task import arc_task
from trm_jax.data.maze.task import maze_task
from trm_jax.data.sudoku import board
from trm_jax.data.sudoku.task import sudoku_task
from trm_jax.data.task import Split
from trm_jax.draw import pictures
from trm_jax.draw import scenes as scenes_lib
from trm_jax.draw.scenes import Example, Guess, Scene
from trm_jax.errors import UserError

SUDOKU = sudoku_task(4)
ARC = arc_task(3)
MAZE = maze_task(3)

# Two shortest paths lead around the wall in the middle.
OPEN = MAZE.parse("S  " + " # " + "  G")
DOWN = MAZE.parse("S  " + "o# " + "ooG")
RIGHT = MAZE.parse("Soo" + " #o" + "  G")


@pytest.fixture(scope="module")
def pair(split) -> Example:
  return Example(split.inputs[0], split.labels[0])


def with_wrong_cells(pair: Example, count: int) -> np.ndarray:
  """The label with other digits in some blank cells."""
  answer = pair.label.copy()
  blanks = np.flatnonzero(pair.question == board.BLANK)[:count]
  answer[blanks] = (answer[blanks] - 1) % 4 + 2
  return answer


def pixels(scene: Scene, task, path: pathlib.Path) -> np.ndarray:
  """The picture of a scene as it is in the file, float [height, width, 3]."""
  pictures.save_png(pictures.panels([scene], task), path / "scene.png")
  with Image.open(path / "scene.png") as image:
    return np.asarray(image.convert("RGB"), np.float64) / 255


def share(image: np.ndarray, color) -> float:
  """How much of an image has a colour, but for rounding."""
  return float((abs(image - np.array(to_rgb(color))).max(-1) < 0.01).mean())


def arc_split() -> Split:
  """Two tasks of two questions, each with one copy."""
  inputs = np.stack(
    [ARC.parse(text) for text in ("12/34", "05", "7", "111/222")]
  )
  labels = np.stack([ARC.parse(text) for text in ("21/43", "50", "8", "2")])
  labels[3] = 0  # not known
  turned = grids.IDENTITY.copy()
  turned[[0, 2, 3]] = 1, 2, 1  # a quarter to the left; colours 1 and 2 swap
  return Split(
    inputs=inputs,
    labels=labels,
    puzzle_ids=np.arange(1, 5, dtype=np.int32),
    first_puzzle=np.array([0, 2, 4], np.int32),
    first_example=np.array([0, 0, 2, 2], np.int32),
    num_examples=np.array([2, 2, 2, 2], np.int32),
    symmetries=np.stack([grids.IDENTITY, turned] * 2),
    names=("swap", "grow"),
  )


class TestScenes:
  def test_copies_of_rows_are_made_and_stay_solved(self, split):
    few = dataclasses.replace(split.take(np.arange(3)), names=("a", "b", "c"))
    scenes = scenes_lib.scenes_of(few, SUDOKU, copies=4, seed=1)
    assert [scene.name for scene in scenes] == ["a", "b", "c"]
    for scene, question in zip(scenes, few.inputs, strict=False):
      assert (scene.asked[0].question == question).all()
      assert len(scene.copies) == 4
      shown = {copy.question.tobytes() for copy in scene.copies}
      assert len(shown | {question.tobytes()}) > 1
      for copy in scene.copies:
        assert board.solves(copy.question, copy.label, size=4)

  def test_pairs_and_copies_of_arc_are_shown_as_the_split_says(self):
    swap, grow = scenes_lib.scenes_of(arc_split(), ARC, copies=3)
    assert [ARC.render(p.question) for p in swap.asked] == ["12/34", "05"]
    assert [ARC.render(p.label) for p in swap.asked] == ["21/43", "50"]
    assert [p.title for p in swap.asked] == [
      "question 1 of 2",
      "question 2 of 2",
    ]
    assert not grow.asked[1].label.any()
    (copy,) = swap.copies
    assert ARC.render(copy.question) == "14/23"  # turned, then recoloured
    assert ARC.render(copy.label) == "23/14"
    assert copy.title == "turned 90° left\ncolours 0213456789"

  def test_without_copies_there_are_none(self, split):
    for data, task in ((arc_split(), ARC), (split, SUDOKU)):
      assert not any(s.copies for s in scenes_lib.scenes_of(data, task))

  def test_examples_are_found_by_name(self):
    examples = dataclasses.replace(arc_split(), names=("other", "swap"))
    swap, grow = scenes_lib.scenes_of(arc_split(), ARC, examples=examples)
    assert [ARC.render(p.question) for p in swap.shown] == ["7", "111/222"]
    assert swap.shown[0].title == "example 1 of 2"
    assert not grow.shown

  def test_grids_of_a_folder_are_moved_back_to_the_origin(self):
    """The reference stores training grids anywhere on the canvas."""
    task = arc_task(30)
    split = folder.read(DATA / "folder_arc", "train", task)
    moved = 0
    for scene, puzzle in zip(
      scenes_lib.scenes_of(split, task), split.first_puzzle, strict=False
    ):
      rows = split.inputs[split.first_example[puzzle] :]
      for pair, row in zip(scene.asked, rows, strict=False):
        colours = row[row >= grids.FIRST_COLOUR] - grids.FIRST_COLOUR
        assert grids.decode(pair.question).ravel().tolist() == colours.tolist()
        assert grids.decode(pair.label).size
        moved += not (pair.question == row).all()
    assert moved

  def test_answers_go_to_the_questions_in_their_order(self):
    scenes = scenes_lib.scenes_of(arc_split(), ARC)
    answers = np.arange(3 * 4 * 9).reshape(3, 4, 9)
    q = np.log([[1, 3, 1, 1]] * 3)
    frames = scenes_lib.with_answers(scenes, ARC, answers, q, first_step=7)
    assert len(frames) == 3
    found = [guess for scene in frames[1] for guess in scene.guesses]
    assert np.stack([g.answer for g in found]).tolist() == answers[1].tolist()
    assert np.stack([g.before for g in found]).tolist() == answers[0].tolist()
    assert [g.halting for g in found] == pytest.approx([0.5, 0.75, 0.5, 0.5])
    assert {g.title for g in found} == {"depth 8"}
    assert not any(g.is_solution for g in found)
    assert frames[0][0].guesses[0].before is None

  def test_rules_judge_answers(self):
    scenes = [Scene([Example(OPEN, DOWN)]), Scene([Example(OPEN, DOWN)])]
    answers = np.stack([[RIGHT, OPEN], [DOWN, DOWN]])
    frames = scenes_lib.with_answers(scenes, MAZE, answers, np.zeros((2, 2)))
    solved = [[s.guesses[0].is_solution for s in frame] for frame in frames]
    assert solved == [[True, False], [True, True]]


@pytest.mark.parametrize(
  ("task", "label", "answer", "is_solution", "told"),
  [
    (MAZE, DOWN, DOWN, True, "right"),
    (MAZE, DOWN, RIGHT, True, "another solution"),
    (MAZE, DOWN, RIGHT, False, "6 cells wrong"),
    (MAZE, DOWN, np.where(DOWN == 3, 2, DOWN), False, "1 cell wrong"),
    (ARC, ARC.parse("12/34"), ARC.parse("12/34"), False, "right"),
    (ARC, ARC.parse("12/34"), ARC.parse("12/33"), False, "1 cell wrong"),
    (ARC, ARC.parse("12/34"), ARC.parse("12"), False, "1x2, not 2x2"),
    (ARC, ARC.parse("12/34"), np.zeros(9, int), False, "0x0, not 2x2"),
    (ARC, np.zeros(9, int), ARC.parse("12"), False, ""),
  ],
)
def test_verdict(task, label, answer, is_solution, told):
  guess = Guess(answer, halting=0.5, is_solution=is_solution)
  assert scenes_lib.verdict(Example(OPEN, label), guess, task) == told


def test_padding_is_no_mistake():
  """Tokens that no grid shows are not labelled, so a model is free there."""
  label = ARC.parse("12/34")
  answer = label.copy()
  answer[-1] = 5
  told = scenes_lib.verdict(Example(label, label), Guess(answer, 0.5), ARC)
  assert told == "right"


@pytest.mark.draw
class TestPanels:
  def test_wrong_cells_are_marked(self, pair, tmp_path):
    red = []
    for count in (0, 1, 3):
      guess = Guess(with_wrong_cells(pair, count), halting=0.3)
      scene = Scene([pair], [guess])
      red.append(share(pixels(scene, SUDOKU, tmp_path), "tab:red"))
    assert 0 == red[0] < red[1] < red[2]

  def test_another_solution_is_not_marked(self, tmp_path):
    red = [
      share(
        pixels(Scene([Example(OPEN, DOWN)], [guess]), MAZE, tmp_path), color
      )
      for guess in (Guess(RIGHT, 0.5), Guess(RIGHT, 0.5, is_solution=True))
      for color in ["tab:red"]
    ]
    assert red[0] > 0
    assert red[1] == 0

  def test_changed_cells_are_framed(self, pair, tmp_path):
    framed = []
    for before in (None, pair.label, with_wrong_cells(pair, 1)):
      scene = Scene([pair], [Guess(pair.label, 0.3, before=before)])
      image = pixels(scene, SUDOKU, tmp_path)
      framed.append(share(image, pictures._CHANGED))
    assert framed[0] == framed[1] == 0 < framed[2]

  def test_changes_beside_a_grid_are_not_framed(self, tmp_path):
    answer = ARC.parse("12/34")
    beside = np.where(answer == grids.EOS, 3, answer)
    within = np.where(answer == 3, 4, answer)
    framed = [
      share(
        pixels(
          Scene([Example(answer, answer)], [Guess(answer, 0.3, before=before)]),
          ARC,
          tmp_path,
        ),
        pictures._CHANGED,
      )
      for before in (beside, within)
    ]
    assert framed[0] == 0 < framed[1]

  def test_the_bar_grows_and_shows_when_the_model_halts(self, pair, tmp_path):
    shares = []
    for halting in (0.1, 0.4, 0.6, 0.9):
      image = pixels(
        Scene([pair], [Guess(pair.label, halting)]), SUDOKU, tmp_path
      )
      shares.append(
        [share(image, c) for c in (pictures._GOES_ON, pictures._HALTS)]
      )
    goes_on, halts = np.transpose(shares)
    assert 0 < goes_on[0] < goes_on[1]
    assert 0 < halts[2] < halts[3]
    # Edges that are smoothed have some pixels of any grey.
    assert goes_on[2:].max() < goes_on[0] / 3
    assert halts[:2].max() < halts[2] / 3

  def test_a_solution_that_nobody_knows_is_left_out(self, tmp_path):
    question = ARC.parse("111/111/111")
    known = Scene([Example(question, question)])
    unknown = Scene([Example(question, np.zeros(9, int))])
    blue = [
      share(pixels(s, ARC, tmp_path), grids.COLOURS[1])
      for s in (known, unknown)
    ]
    assert blue[0] == pytest.approx(2 * blue[1], rel=0.02)

  def test_size_depends_on_the_panels_alone(self, pair):
    """Else the frames of a film would not fit."""
    sizes = []
    for answer, halting in ((pair.label, 0.1), (pair.question, 0.99)):
      guess = Guess(answer, halting, before=pair.question, title="depth 1")
      figure = pictures.panels([Scene([pair], [guess])], SUDOKU, "title")
      sizes.append(figure.bbox.size.tolist())
    assert sizes[0] == sizes[1]
    taller = pictures.panels([Scene([pair], [guess])] * 2, SUDOKU, "title")
    assert taller.bbox.height > 1.8 * sizes[0][1]
    assert taller.bbox.width == sizes[0][0]

  def test_panels_do_not_overlap_and_are_not_cut_off(self, split):
    scenes = scenes_lib.scenes_of(arc_split(), ARC, copies=1)
    scenes = scenes_lib.with_answers(
      scenes, ARC, np.full((1, 4, 9), 3), np.zeros((1, 4))
    )[0]
    figure = pictures.panels(scenes, ARC, "a title")
    figure.draw_without_rendering()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts]
    boxes = [box for box in boxes if box.width]
    assert len(boxes) > 30
    for box in boxes:
      assert box.x0 >= 0
      assert box.y0 >= 0
      assert box.x1 <= figure.bbox.width
      assert box.y1 <= figure.bbox.height
    for one, other in itertools.combinations(boxes, 2):
      assert not one.shrunk(0.98, 0.98).overlaps(other)

  def test_a_long_picture_has_fewer_pixels_an_inch(self, pair, monkeypatch):
    monkeypatch.setattr(pictures, "_MOST_PIXELS", 3e5)
    for count in (1, 4):
      figure = pictures.panels([Scene([pair])] * count, SUDOKU)
      assert figure.bbox.width * figure.bbox.height < 3.01e5


@pytest.mark.draw
class TestFiles:
  def frames(self, pair, count):
    answers = np.stack([[with_wrong_cells(pair, k)] for k in range(count)])
    frames = scenes_lib.with_answers(
      [Scene([pair])], SUDOKU, answers[::-1], np.linspace(-2, 2, count)[:, None]
    )
    return [pictures.panels(frame, SUDOKU) for frame in frames]

  def test_a_film_has_a_frame_a_step_and_ends_slowly(self, pair, tmp_path):
    path = tmp_path / "deep" / "er" / "film.gif"
    frames = self.frames(pair, 4)
    pictures.save_gif(frames, path, seconds=0.25)
    assert [file.name for file in path.parent.iterdir()] == ["film.gif"]
    with Image.open(path) as film:
      assert film.format == "GIF"
      assert film.n_frames == 4
      assert film.size == tuple(frames[0].bbox.size.astype(int))
      assert film.info["loop"] == 0
      durations = []
      for number in range(4):
        film.seek(number)
        durations.append(film.info["duration"])
    assert durations == [250, 250, 250, 1000]

  def test_a_film_keeps_the_official_colours(self, tmp_path):
    # 0 to 9, each a ninth of a panel but for the last.
    pairs = [ARC.parse("012/345/678"), ARC.parse("9")]
    scene = Scene([Example(*pairs)])
    figure = pictures.panels([scene], ARC)
    pictures.save_gif([figure, figure], tmp_path / "film.gif", 1)
    with Image.open(tmp_path / "film.gif") as film:
      image = np.asarray(film.convert("RGB"), np.float64) / 255
    assert all(share(image, color) > 0.01 for color in grids.COLOURS)

  def test_a_file_is_replaced(self, pair, tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("old")
    pictures.save_png(self.frames(pair, 1)[0], path)
    with Image.open(path) as picture:
      assert picture.format == "PNG"
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]

  def test_what_cannot_be_written_is_said_and_leaves_nothing(
    self, pair, tmp_path
  ):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    figure = self.frames(pair, 1)[0]
    for path in (tmp_path / "taken", tmp_path / "file" / "picture"):
      with pytest.raises(UserError, match=f"cannot write {path}: "):
        pictures.save_png(figure, path)
      with pytest.raises(UserError, match=f"cannot write {path}: "):
        pictures.save_gif([figure], path, 1)
    assert {file.name for file in tmp_path.iterdir()} == {"taken", "file"}


def test_without_an_answer_nothing_is_wrong_and_no_place_is_kept(
  pair, tmp_path
):
  wrong = Guess(with_wrong_cells(pair, 3), 0.5)
  unknown = Example(pair.question, np.zeros_like(pair.label))
  known = pixels(Scene([pair], [wrong]), SUDOKU, tmp_path)
  alone = pixels(Scene([unknown], [wrong]), SUDOKU, tmp_path)
  red = to_rgb("tab:red")
  assert share(known, red) > 0
  assert share(alone, red) == 0
  assert alone.shape[1] < 0.75 * known.shape[1]
