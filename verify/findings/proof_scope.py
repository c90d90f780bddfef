"""What the word `proved` covers and what it does not, for `plan explain proof`."""

TEXT = """proved (what a proof covers)

What
  The program of one rank, recorded with the plan's parameters and hooks on meta tensors, is related to the single-device program
  operator by operator. `proved` means that every value that reaches an output, a loss, a gradient or a Python number lies as it
  has to on every rank.

Covered
  - Evaluation, training with labels and a padding mask, and a decoding step through a filled cache, each where the model has it.
  - Both sides of up to four branches on data; every layer that does not run the same program as another one.
  - The backward pass, with custom autograd functions and hooks on tensors; writes in place that autograd refuses on a rank.
  - Constants by their content, keyword arguments and dtypes, numbers that Python reads off tensors, random draws.
  - With --ep: the experts, run with numbers behind the client's dispatch. With --pp: the program of every stage, in evaluation.
  - Loading, where the model's class has an `_init_weights` of its own.

Not covered
  - Assumptions, which the report lists under `scope`; --strict makes each of them undecided.
  - Seeds: whether ranks that have to draw the same dropout do.
  - The precision of reductions, kernels that only run on a GPU, and what a serving engine does by itself (`plan check`).
  - Stages in training and decoding: the run asks these (`plan verify --pp N`)."""
