"""Times single steps of the reference, in a process that has PyTorch.

Run as a file by `against_reference`, with the path of the reference's checkout
as argument: the first line on standard input is a JSON object of settings, and
each further line asks for one step, whose seconds are printed. It imports
nothing of this package, so PyTorch may live in an environment of its own.
"""

import importlib
import json
import sys
import time


def main():
  """Answers each line with the seconds of a step."""
  # In place of this folder, whose `profile.py` would hide Python's.
  sys.path[0] = sys.argv[1]
  torch = importlib.import_module("torch")
  settings = json.loads(sys.stdin.readline())
  torch.set_num_threads(settings["threads"])
  torch.manual_seed(0)
  step = make_step(torch, settings)
  print("ready", torch.__version__, flush=True)
  for _ in sys.stdin:
    started = time.perf_counter()
    step()
    print(time.perf_counter() - started, flush=True)


def make_step(torch, settings):
  """One training step (loss, gradients, optimizer), or one of inference."""
  load_model_class = importlib.import_module("utils.functions").load_model_class
  losses = importlib.import_module("models.losses")

  arch = settings["arch"]
  batch_size = settings["batch_size"]
  model = load_model_class(arch["name"])(
    {**arch, "batch_size": batch_size, "causal": False}
  )
  head = losses.ACTLossHead(model, "stablemax_cross_entropy")
  trains = settings["trains"]
  head.train(trains)
  network = head if trains else model
  if settings["compiles"]:
    network = torch.compile(network)
  shape = (batch_size, arch["seq_len"])
  batch = {
    "inputs": torch.randint(1, arch["vocab_size"], shape, dtype=torch.int32),
    "labels": torch.randint(1, arch["vocab_size"], shape, dtype=torch.int32),
    "puzzle_identifiers": torch.zeros(batch_size, dtype=torch.int32),
  }
  batch["labels"] = batch["labels"].long()
  # Its AdamATan2 has kernels for GPUs only; on a CPU the optimizer is a small
  # part of a step, and PyTorch's own takes its place.
  optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4, foreach=True)
  carry = head.initial_carry(batch)

  def learn():
    nonlocal carry
    carry, loss, *_ = network(return_keys=[], carry=carry, batch=batch)
    (loss / batch_size).backward()
    optimizer.step()
    optimizer.zero_grad()

  @torch.no_grad()
  def infer():
    outputs = network(carry=carry, batch=batch)[1]
    return outputs["logits"].argmax(-1)

  return learn if trains else infer


if __name__ == "__main__":
  main()
