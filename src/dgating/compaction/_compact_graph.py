"""The rewritten graph of a model or module: copied whole, and never pickled."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NoReturn

from torch.fx import GraphModule

HOOKS = ("_forward", "_backward")  # a copy that torch makes loses them, and with them the check of its inputs


class CompactGraph(GraphModule):
    """A ``GraphModule`` whose copies keep what was set on it, and which says how it is saved.

    torch pickles a graph as code and fails when it traces that code again: the loss would show at loading.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, about its own containers
            made = super().__deepcopy__(memo)
        for name, value in self.__dict__.items():
            if name not in made.__dict__ or name.startswith(HOOKS):
                made.__dict__[name] = copy.deepcopy(value, memo)
        return made

    def __copy__(self) -> GraphModule:
        made = CompactGraph(self, self.graph)
        made.__dict__.update(self.__dict__)
        return made

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "expected a model that torch can pickle, received the rewritten graph of a compact one, which torch could "
            "not load again. Write the model with dg.save_compact(model, path), or with dg.export(model, inputs, "
            "'model.pt2'); torch.save(model.state_dict(), path) writes its numbers alone."
        )
