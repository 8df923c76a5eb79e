"""How the rows of a node are laid out, from their shape and from the layers that read them."""

from __future__ import annotations

from torch import fx, nn

from xfer.backends.torch.layers import first_width
from xfer.plan.model_map import Layout

_READERS = 40  # nodes to look at on the way to the next layer
_TURNS = {"transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "rearrange", "Permute"}
Row = tuple[int, ...]


def layout_of(row: Row) -> Layout | None:
    """What the shape alone says. Images are square, so where two sides agree they are the height and the width, and the third
    is the channels; where all three agree torch's own order is assumed. None where it can't be told, or there is no word for it.

    >>> layout_of((64, 56, 56)), layout_of((56, 56, 96)), layout_of((197, 768)), layout_of((512,)), layout_of((16, 49, 64))
    ('chw', 'hwc', 'tokens', 'vector', None)
    """
    if len(row) in (1, 2):
        return "vector" if len(row) == 1 else "tokens"
    if len(row) != 3 or (row[1] != row[2] and row[0] != row[1]):
        return None
    return "chw" if row[1] == row[2] else "hwc"


def layout_at(row: Row, node: fx.Node, network: nn.Module) -> Layout | None:
    """The layout of a node's rows. Where the shape leaves it open, the next layer's number of channels tells; rows that hold
    the channels where we have no word for it (before positions that aren't a map) have none."""
    alone = layout_of(row)
    if len(row) not in (2, 3) or (alone is not None and len(row) == 3 and len(set(row)) > 1):
        return alone
    width = next_width(node, network)
    if len(row) == 2:
        return None if width == row[0] != row[1] else alone
    if len(set(row)) == 1:
        return alone
    if width == row[-1] != row[0]:
        return "hwc"
    return "chw" if width == row[0] != row[-1] else None


def next_width(node: fx.Node, network: nn.Module) -> int | None:
    """How many channels the nearest layer expects that reads the node, directly or through operations without weights."""
    todo, seen = [node], {node}
    while todo and len(seen) < _READERS:
        for user in todo.pop(0).users:
            if user in seen:
                continue
            seen.add(user)
            if getattr(user.target, "__name__", user.target) in _TURNS:
                continue  # behind it the channels are elsewhere, or a layer mixes positions
            if user.op == "call_module" and (width := first_width(network.get_submodule(str(user.target)))):
                return width
            todo.append(user)
    return None
