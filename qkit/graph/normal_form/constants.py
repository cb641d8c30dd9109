"""What depends on parameters and buffers alone is a constant: standardized weights, position embeddings, the scales of norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qkit.graph.normal_form.form import NormalForm, applied, name_of

#: Draw anew in every pass.
RANDOM = frozenset("rand randn randint randperm bernoulli normal uniform rand_like randn_like dropout multinomial".split())


def constants_of(form: NormalForm) -> dict[fx.Node, Any]:
    """The value of every node that no input reaches; such nodes stay in the graph, since training computes them anew."""
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in form.graph.nodes:
            if node.op == "get_attr":
                known[node] = form.constants[str(node.target)]
            elif node.op == "call_function" and name_of(node) not in RANDOM and all(n in known for n in node.all_input_nodes):
                known[node] = applied(node, known.__getitem__)
    return known
