"""The network's picture: layers as short as they can be, boxes apart, edges down, blocks that hide nothing but themselves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkit.figures.network.blocks import MOST_BOXES, Block, Network, Node, path_of, short_name
from qkit.figures.network.layered import ACROSS, DOWN, Link, arrange
from qkit.figures.network.layout import Layout, layout

Edges = list[tuple[int, int]]


@st.composite
def acyclic(draw: st.DrawFn, most: int = 14) -> tuple[int, Edges]:
    """Nodes in the order of execution, and edges that go forward."""
    count = draw(st.integers(1, most))
    pairs = list(itertools.combinations(range(count), 2))
    return count, draw(st.lists(st.sampled_from(pairs), unique=True, max_size=2 * count)) if pairs else []


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Nodes whose paths have up to three levels, as modules have, in any order: some modules are called twice."""
    count, edges = draw(acyclic(18))
    part = st.sampled_from(["a", "b", "0", "1"])
    paths = [draw(st.lists(part, min_size=0, max_size=3)) for _ in range(count)]
    inputs = [tuple(a for a, b in edges if b == node) for node in range(count)]
    return Network(tuple(Node(".".join([*path, f"n{i}"]), "conv", inputs[i]) for i, path in enumerate(paths)))


def total_length(ranks: Sequence[int], edges: Edges) -> int:
    return sum(ranks[b] - ranks[a] for a, b in edges)


def overlaps(places: list[tuple[float, float, float, float]]) -> list[tuple[int, int]]:
    found = []
    for (i, (x, y, w, h)), (j, (u, v, p, q)) in itertools.combinations(enumerate(places), 2):
        if x < u + p - 1e-6 and u < x + w - 1e-6 and y < v + q - 1e-6 and v < y + h - 1e-6:
            found.append((i, j))
    return found


def test_layers_are_as_short_as_they_can_be() -> None:
    # 2 feeds the end alone and belongs near it; the longest path is 0 1 3 4
    edges = [(0, 1), (1, 3), (3, 4), (2, 4), (0, 4)]
    found = arrange([(100.0, 40.0)] * 5, [Link(a, b, tensor=a) for a, b in edges])
    best = min(
        total_length(ranks, edges)
        for ranks in itertools.product(range(5), repeat=5)
        if all(ranks[a] < ranks[b] for a, b in edges)
    )
    assert total_length(found.ranks, edges) == best
    assert found.ranks == (0, 1, 2, 2, 3)


@settings(deadline=None, max_examples=40)
@given(acyclic(7))
def test_ranks_are_optimal_for_small_graphs(drawn: tuple[int, Edges]) -> None:
    count, edges = drawn
    found = arrange([(10.0, 10.0)] * count, [Link(a, b, tensor=a) for a, b in edges]).ranks
    assert all(found[a] < found[b] for a, b in edges)
    # the shortest by a method of its own: network flow's dual, over the longest path's ranks as an upper bound
    graph = nx.DiGraph(edges)
    longest = nx.dag_longest_path_length(graph) if edges else 0
    assert max(found) <= max(longest, 0) + count
    tight = {b: max((found[a] for a in graph.predecessors(b)), default=None) for b in graph}
    for node in graph:
        # no single node can move to make the whole shorter
        less, more = graph.in_degree(node), graph.out_degree(node)
        above = tight[node]
        below = min((found[c] for c in graph.successors(node)), default=None)
        if less > more and above is not None:
            assert found[node] == above + 1
        if more > less and below is not None:
            assert found[node] == below - 1


@settings(deadline=None, max_examples=60)
@given(acyclic(), st.lists(st.tuples(st.floats(20, 300), st.floats(10, 200)), min_size=14, max_size=14))
def test_boxes_are_apart_and_links_go_down(drawn: tuple[int, Edges], sizes: list[tuple[float, float]]) -> None:
    count, edges = drawn
    links = [Link(a, b, tensor=a) for a, b in edges]
    found = arrange(sizes[:count], links)
    places = [(x, y, *size) for x, y, size in zip(found.left, found.top, sizes, strict=False)]
    assert overlaps(places) == []
    assert min(found.left) >= -1e-5
    assert max(x + w for x, _, w, _ in places) <= found.width + 1e-5
    for (a, b), route in zip(edges, found.routes, strict=True):
        assert route[0][1] == pytest.approx(places[a][1] + places[a][3])
        assert route[-1][1] == pytest.approx(places[b][1])
        assert all(low <= high + 1e-9 for (_, low), (_, high) in itertools.pairwise(route))
        # where it passes a layer, it runs through no box
        for (x, low), (u, high) in itertools.pairwise(route):
            if x == u:
                crossed = [
                    i for i, (left, top, w, h) in enumerate(places)
                    if left + 1e-6 < x < left + w - 1e-6 and top + 1e-6 < high and low + 1e-6 < top + h
                ]  # fmt: skip
                assert crossed == []


def test_boxes_of_a_layer_keep_their_distance() -> None:
    found = arrange([(100.0, 40.0), (60.0, 40.0), (80.0, 40.0), (100.0, 40.0)], [Link(0, b, tensor=0) for b in (1, 2)]
                    + [Link(a, 3, tensor=a) for a in (1, 2)])  # fmt: skip
    ends = sorted((found.left[i], found.left[i] + (60.0, 80.0)[i - 1]) for i in (1, 2))
    assert ends[1][0] - ends[0][1] == pytest.approx(ACROSS)
    assert found.top[1] - (found.top[0] + 40.0) == pytest.approx(DOWN)


def test_the_main_path_is_straight_beside_a_skip_connection() -> None:
    found = arrange([(176.0, 46.0)] * 5, [Link(i, i + 1, tensor=i) for i in range(4)] + [Link(0, 4, tensor=0)])
    assert len(set(found.left)) == 1
    assert any(x > found.left[0] + 176.0 or x < found.left[0] for x, _ in found.routes[-1])


def test_branches_do_not_cross_where_they_need_not() -> None:
    # two chains side by side, given in an order that crosses
    links = [(0, 1), (0, 2), (1, 4), (2, 3), (3, 5), (4, 5)]
    found = arrange([(100.0, 40.0)] * 6, [Link(a, b, tensor=a) for a, b in links])
    assert (found.left[1] < found.left[2]) == (found.left[4] < found.left[3])


@settings(deadline=None, max_examples=60)
@given(networks(), st.data())
def test_layout_of_blocks(network: Network, data: st.DataObject) -> None:
    keys = list(network.blocks)
    opened = set(data.draw(st.lists(st.sampled_from(keys), unique=True))) if keys else set()
    found = layout(network, opened)
    shown = [box for box in found.boxes if not box.opened]
    assert overlaps([(b.left, b.top, b.width, b.height) for b in shown]) == []
    # every operation is in one box, and frames hold theirs
    assert sorted(node for box in shown for node in box.nodes) == list(range(len(network.nodes)))
    for frame in (box for box in found.boxes if box.opened):
        for box in shown:
            if set(box.nodes) <= set(frame.nodes):
                assert frame.left <= box.left
                assert frame.top <= box.top
                assert box.left + box.width <= frame.left + frame.width + 1e-6
                assert box.top + box.height <= frame.top + frame.height + 1e-6
    for edge in found.edges:
        assert all(low <= high + 1e-6 for (_, low), (_, high) in itertools.pairwise(edge.points))
    assert connections(found) == quotient(network, found)
    assert drawn_connections(found) == quotient(network, found)
    assert layout(network, opened) == found


def connections(found: Layout) -> set[tuple[str, str]]:
    return {(found.boxes[a].key, found.boxes[b].key) for a, after in enumerate(found.after) for b in after}


def quotient(network: Network, found: Layout) -> set[tuple[str, str]]:
    """Which boxes lead to which, by networkx."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(network.nodes)))
    graph.add_edges_from((a, b) for b, node in enumerate(network.nodes) for a in node.inputs)
    parts = [set(box.nodes) for box in found.boxes if not box.opened]
    keys = {frozenset(box.nodes): box.key for box in found.boxes if not box.opened}
    folded = nx.quotient_graph(graph, parts)
    assert nx.is_directed_acyclic_graph(folded)
    return {(keys[frozenset(a)], keys[frozenset(b)]) for a, b in folded.edges}


def drawn_connections(found: Layout) -> set[tuple[str, str]]:
    """Which boxes lead to which along the lines as drawn, from gate to gate."""
    graph = nx.DiGraph()
    starts: dict[tuple[float, float], str] = {}
    ends: dict[tuple[float, float], str] = {}
    for edge in found.edges:
        (x0, y0), (x1, y1) = ((round(x, 2), round(y, 2)) for x, y in (edge.points[0], edge.points[-1]))
        graph.add_edge((x0, y0), (x1, y1))
        for box in found.boxes:
            if not box.opened and box.left - 0.01 <= x0 <= box.left + box.width and abs(box.top + box.height - y0) < 0.02:
                starts[x0, y0] = box.key
            if not box.opened and box.left - 0.01 <= x1 <= box.left + box.width and abs(box.top - y1) < 0.02:
                ends[x1, y1] = box.key
    reached: set[tuple[str, str]] = set()
    for start, key in starts.items():
        inside = {start, *nx.descendants(graph, start)}
        reached |= {(key, ends[point]) for point in inside if point in ends}
    # a line that ends at a box's top begins anew at its bottom: only steps from box to box are connections
    return {(a, b) for a, b in reached if a != b}


def test_three_hundred_layers_take_a_moment(one_thread: None) -> None:
    nodes = [Node("input", "input")]
    for i in range(100):
        at = len(nodes)
        nodes += [Node(f"stage.{i}.conv{k}", "conv", (at + k - 1,)) for k in range(2)]
        nodes.append(Node(f"stage.{i}:add", "add", (at - 1, at + 1)))
    network = Network(tuple(nodes))
    assert sum(1 for _ in network.visible(network.first_view())) <= MOST_BOXES
    found = layout(network, set(network.blocks))
    assert len([box for box in found.boxes if not box.opened]) == 301
    assert overlaps([(b.left, b.top, b.width, b.height) for b in found.boxes if not b.opened]) == []


# blocks


def linear(*names: str) -> Network:
    return Network(tuple(Node(name, "conv", (i - 1,) if i else ()) for i, name in enumerate(names)))


def test_blocks_follow_the_paths() -> None:
    network = linear("input", "features.0.0", "features.1.conv.0", "features.1.conv.1", "features.1:add", "head")
    assert list(network.blocks) == ["features", "features.1", "features.1.conv"]
    assert network.blocks["features.1"].nodes == (2, 3, 4)
    assert [b.key if isinstance(b, Block) else b for b in network.visible(set())] == [0, "features", 5]
    assert [b.key if isinstance(b, Block) else b for b in network.visible({"features"})] == [0, 1, "features.1", 5]
    assert network.around("features.1.conv.0") == ("features", "features.1", "features.1.conv")
    assert network.around("features.1.conv") == ("features", "features.1")


def test_a_module_that_only_holds_another_is_no_block_of_its_own() -> None:
    network = linear("net.body.a", "net.body.b")
    assert list(network.blocks) == ["net.body"]


def test_a_module_that_is_called_twice_is_two_blocks() -> None:
    network = linear("twice.a", "twice.b", "between", "twice.a#2", "twice.b#2")
    assert list(network.blocks) == ["twice", "twice#2"]
    assert connections(layout(network)) == {("twice", "between"), ("between", "twice#2")}


def test_a_large_network_opens_as_far_as_boxes_fit() -> None:
    many = linear(*(f"features.{i}.conv{k}" for i in range(20) for k in range(3)))
    assert many.first_view(most=30) == frozenset({"features"})
    assert many.first_view(most=60) == frozenset(many.blocks)
    assert many.first_view(most=5) == frozenset()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("features.0.0", ("features", "0", "0")),
        ("layer1.0:add", ("layer1", "0", ":add")),
        (":flatten", (":flatten",)),
        ("/features/0/Conv_output_0", ("features", "0", "Conv_output_0")),
        ("input", ("input",)),
    ],
)
def test_paths(name: str, parts: tuple[str, ...]) -> None:
    assert path_of(name) == parts


@pytest.mark.parametrize(
    ("path", "around", "text"),
    [
        (("features", "0", "0"), ("features",), "features.0.0"),
        (("layer1", "0", ":add"), ("layer1", "0"), "add"),
        (("layer1", "0", "conv1"), ("layer1", "0"), "conv1"),
        (("conv1", "conv"), (), "conv1.conv"),
        ((":flatten",), (), "flatten"),
    ],
)
def test_names_inside_a_block(path: tuple[str, ...], around: tuple[str, ...], text: str) -> None:
    assert short_name(path, around) == text


def test_nothing_is_a_picture_of_nothing() -> None:
    assert layout(Network(())).boxes == ()
