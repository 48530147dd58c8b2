"""Reads and writes state dicts of `torch.save`. Only these need PyTorch."""

import importlib
import io
import pathlib
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from trm_jax.errors import UserError


def save(arrays: Mapping[str, np.ndarray]) -> bytes:
  """A state dict in the format of `torch.save`, which needs PyTorch."""
  torch = _torch("a .pt file is written by PyTorch", "name the file")

  def tensor(array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:  # from_numpy does not support it
      return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array.copy())

  buffer = io.BytesIO()
  torch.save({name: tensor(array) for name, array in arrays.items()}, buffer)
  return buffer.getvalue()


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a state dict, without running code in it.

  Returns:
    Name -> array; bfloat16 is converted to float32.

  Raises:
    UserError: if the file is missing, damaged or contains anything but arrays,
      or PyTorch is not installed.
  """
  size = _check_archive(path)
  torch = _torch(
    f"{path}: reading what torch.save wrote needs PyTorch",
    "save it there",
  )
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # a damaged file can raise any kind
    raise UserError(
      f"{path} is refused: it is damaged, or holds more than plain arrays, "
      f"such as code to run. PyTorch says: {_cause(error)}"
    ) from error
  if not isinstance(state, dict) or not state:
    raise UserError(f"{path} holds {type(state).__name__}, not named arrays")
  for name, tensor in state.items():
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
      raise UserError(
        f"{path}: {name!r:.80} is {type(tensor).__name__}, not an array; save "
        "the model's state_dict() alone"
      )
  # Tensors with stride 0 can have more elements than the file has.
  claimed = sum(t.numel() * t.element_size() for t in state.values())
  if claimed > size:
    raise UserError(
      f"{path}: its arrays claim {claimed:,} bytes, and the file has {size:,}"
    )

  def to_numpy(tensor: Any) -> np.ndarray:
    is_bfloat16 = tensor.dtype == torch.bfloat16
    tensor = tensor.detach()
    return (tensor.float() if is_bfloat16 else tensor).numpy()

  try:
    return {name: to_numpy(tensor) for name, tensor in state.items()}
  except (TypeError, RuntimeError, NotImplementedError) as error:
    raise UserError(
      f"{path}: an array is not a plain one: {_cause(error)}"
    ) from error


def _torch(need: str, way_out: str) -> Any:
  try:
    return importlib.import_module("torch")
  except ImportError as error:
    raise UserError(
      f"{need}: pip install -e '.[torch]'; or {way_out} as .safetensors"
    ) from error


def _check_archive(path: pathlib.Path) -> int:
  """Checks that a file is an uncompressed archive and returns its size."""
  if not path.is_file():  # reading a pipe would block
    kind = "a folder" if path.is_dir() else "missing, or not a file"
    raise UserError(f"{path} cannot be read: it is {kind}")
  try:
    size = path.stat().st_size
    with path.open("rb") as file:
      if file.read(4) != b"PK\x03\x04":
        raise ValueError("it does not begin like one")
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
    packed = any(e.compress_type != zipfile.ZIP_STORED for e in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
      raise ValueError("its entries are compressed")
  except (
    OSError, ValueError, EOFError, IndexError, NotImplementedError,
    OverflowError, struct.error, zipfile.BadZipFile,
  ) as error:  # fmt: skip
    raise UserError(
      f"{path} cannot be read: not an archive as torch.save writes since "
      f"PyTorch 1.6 ({error}); if it is safetensors, name it .safetensors"
    ) from error
  return size


def _cause(error: BaseException) -> str:
  """PyTorch's reason, without its advice to load the file unsafely."""
  text = " ".join(str(error).split())
  text = "".join(c if c.isprintable() else "?" for c in text)
  wanted = re.search(r"GLOBAL (\S+)", text)
  if wanted:
    return f"it asks for {wanted[1]:.80}"
  return text.split(". ")[0][:200] or type(error).__name__
