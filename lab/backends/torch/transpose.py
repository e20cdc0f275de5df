"""The transpose by PyTorch: a view with the strides exchanged, copied."""

from lab.backends.registry import Implementation


def transposed(x):
    return (x.new_empty(x.shape[1], x.shape[0]).copy_(x.T),)


LADDER = [Implementation(transposed, transposed, rung="eager", change="copy_ of a view with the strides exchanged")]
