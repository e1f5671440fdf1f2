"""The arguments and the output of a traced forward, as its callers know them."""

from __future__ import annotations

from torch import fx
from torch.utils import _pytree as pytree


def restore_arguments(graph: fx.Graph) -> None:
    """Give arguments and output of a trace back the names and the form that callers know."""
    # torch.fx renames a fixed argument `flag` to `flag_1`; callers still say flag=.
    # It also takes fixed lists apart, and checks each part; nothing else reads them.
    _restore_output(graph)
    fixed: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        node.type = None
        if node.op == "placeholder" and "specialised" in node.meta:
            node.target = node.meta["specialised"]
            fixed.setdefault(node.target, []).append(node)
    for parts in fixed.values():
        if len(parts) > 1:
            _erase_readers(graph, parts)
            for node in parts[1:]:
                graph.erase_node(node)


def _restore_output(graph: fx.Graph) -> None:
    """Undo what torch.fx does to the output where an argument is fixed to a list."""
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None:
        return
    graph.set_codegen(fx.graph.CodeGen())
    output = graph.output_node()
    output.args = (pytree.tree_unflatten(output.args[0], info.out_spec),)  # type: ignore[arg-type]


def _erase_readers(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    for node in nodes:
        for user in list(node.users):
            _erase_readers(graph, [user])
            graph.erase_node(user)
