"""Programs of torch.export and ONNX files as networks: the same graph as the module's, and nothing in a file is run."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qkit
from qkit.engines.onnx import runtime as onnxruntime
from qkit.errors import DataError, GraphError
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import Graph, build, run_float

AUTO = torch.export.Dim.AUTO


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.side = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = torch.relu(self.side(y) + y)
        return self.head(y.flatten(2).mean(2))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    for _ in range(3):
        model(torch.randn(8, 3, 8, 8))
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain(small: nn.Module, images: Tensor) -> Graph:
    return build(small, images)


def outputs(graph: Graph, x: Tensor) -> Tensor:
    return run_float(graph, (x,))


@pytest.mark.parametrize("batch", [None, AUTO], ids=["batch fixed", "batch open"])
@pytest.mark.parametrize("saved", [False, True], ids=["program", "file"])
def test_a_program_is_the_graph_of_its_module(
    small: nn.Module, images: Tensor, plain: Graph, tmp_path: Path, batch: object, saved: bool
) -> None:
    program = torch.export.export(small, (images,), dynamic_shapes=None if batch is None else ({0: batch},))
    source: object = program
    if saved:
        source = tmp_path / "net.pt2"
        torch.export.save(program, source)
    graph = build(source, images)
    assert graph.front == "pt2"
    assert graph.taps == plain.taps
    assert {name: w.shape for name, w in graph.weights.items()} == {name: w.shape for name, w in plain.weights.items()}
    assert all(torch.equal(graph.weights[name], plain.weights[name]) for name in plain.weights)
    for size in (4, 1, 7):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(outputs(graph, x), outputs(plain, x))


def test_a_program_exported_at_another_batch_is_taken(small: nn.Module, images: Tensor, plain: Graph) -> None:
    program = torch.export.export(small, (images[:2],))
    for source in (program, program.module()):
        graph = build(source, images)
        assert graph.taps == plain.taps
        torch.testing.assert_close(outputs(graph, images), outputs(plain, images))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("touched-by-a-file"),))  # type: ignore[return-value]


def replaced(path: Path, contents: Mapping[str, bytes], added: Mapping[str, bytes] | None = None) -> Path:
    """A copy of an archive, with the members whose names hold a key replaced, and others added beside them."""
    hurt = path.with_name("evil.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(hurt, "w") as target:
        for entry in source.infolist():
            content = next((new for part, new in contents.items() if part in entry.filename), source.read(entry))
            target.writestr(entry.filename, content)
        for name, content in (added or {}).items():
            target.writestr(source.namelist()[0].split("/")[0] + "/" + name, content)
    return hurt


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("member", ["sample_inputs/model.pt", "weights/weight_0", "constants/tensor_0"])
def test_a_program_with_python_objects_is_refused_and_not_run(images: Tensor, tmp_path: Path, member: str, protocol: int) -> None:
    class Shifted(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Shifted().eval(), (images,)), path)
    folder = member.split("/", maxsplit=1)[0]
    with zipfile.ZipFile(path) as archive:
        assert any(name.endswith(member) for name in archive.namelist())
        lists = {
            name: archive.read(name).replace(b'"use_pickle": false', b'"use_pickle": true')
            for name in archive.namelist()
            if folder in name and name.endswith("config.json")
        }
    hurt = replaced(path, {member: pickle.dumps(Evil(), protocol), **lists})
    with pytest.raises(GraphError, match=rf"evil\.pt2 .*\bPython objects\b.*{member}"):
        build(hurt, images)
    assert not Path("touched-by-a-file").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data/constants/custom_obj_0", "Python objects"),
        ("data/weights/model.pt", "Python objects"),
        ("DATA/weights/MODEL.pt", "Python objects"),
        ("data/aotinductor/model/model.so", "compiled code"),
    ],
)
def test_members_that_torch_would_run_are_refused(small: nn.Module, images: Tensor, tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(small, (images,)), path)
    hurt = replaced(path, {}, {name: pickle.dumps(Evil(), 0)})
    with pytest.raises(GraphError, match=rf"(?i){said}\b.*{name}"):
        build(hurt, images)
    assert not Path("touched-by-a-file").exists()


@pytest.mark.parametrize("first", [b"\x80\x02}q", b"PK\x03\x04", b'{"a"'])
def test_weights_may_begin_with_any_bytes(images: Tensor, tmp_path: Path, first: bytes) -> None:
    model = Small().eval()
    with torch.no_grad():
        model.body[0].weight.view(-1)[0] = torch.frombuffer(bytearray(first), dtype=torch.float32)[0]
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(model, (images,)), path)
    with zipfile.ZipFile(path) as archive:
        assert any(archive.read(name)[:4] == first for name in archive.namelist())
    torch.testing.assert_close(outputs(build(path, images), images), model(images).detach())


def test_a_program_whose_sizes_are_more_than_arithmetic_is_refused(small: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(small, (images,), dynamic_shapes=({0: AUTO},)), path)
    hurt = tmp_path / "evil.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(hurt, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith(".json"):
                content = content.replace(b'"expr_str": "', b'"expr_str": "print(1) or ')
            target.writestr(entry, content)
    with pytest.raises(GraphError, match=r"evil\.pt2 .*\"print\(1\)"):
        build(hurt, images)


@pytest.mark.parametrize("content", [b"", b"no archive", io.BytesIO().getvalue()])
def test_what_is_no_program_is_refused(content: bytes, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=r"torch\.export"):
        build(path, images)
    with pytest.raises(GraphError, match=r"another\.pt2 "):
        build(tmp_path / "another.pt2", images)


def as_onnx(model: nn.Module, x: Tensor, path: Path, *, open_batch: bool = True) -> Path:
    axes = {"image": {0: "n"}, "scores": {0: "n"}} if open_batch else None
    torch.onnx.export(
        model, (x,), path, dynamo=False, input_names=["image"], output_names=["scores"], dynamic_axes=axes, opset_version=17
    )
    return path


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_is_the_graph_of_its_network_under_the_files_names(
    small: nn.Module, images: Tensor, plain: Graph, tmp_path: Path
) -> None:
    graph = build(as_onnx(small, images, tmp_path / "net.onnx"), images)
    assert graph.front == "onnx"
    assert graph.model_name == "net.onnx"
    assert graph.taps[0] == "image"
    assert graph.taps[-1] == "scores"
    assert [s.kind for s in graph.operations if s.quantized] == [s.kind for s in plain.operations if s.quantized]
    assert graph.share.macs == graph.share.elements == 1.0
    for size in (4, 1, 6):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(outputs(graph, x), outputs(plain, x), rtol=1e-5, atol=1e-6)
    fixed = build(as_onnx(small, images[:1], tmp_path / "one.onnx", open_batch=False), images)
    torch.testing.assert_close(outputs(fixed, images), outputs(plain, images), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_grids_of_a_quantized_file_are_the_plan(small: nn.Module, images: Tensor, tmp_path: Path) -> None:
    data = [(images, torch.tensor([0, 1, 2, 3]))]
    study = qkit.Study(as_onnx(small, images, tmp_path / "net.onnx"), data, data)
    study.calibrate(progress=False)
    study.export(tmp_path / "int8.onnx")
    again = qkit.Study(tmp_path / "int8.onnx", data, data)
    ours, theirs = (list(s.plan.grids.values()) for s in (study, again))
    assert len(ours) == len(theirs)
    assert all(torch.equal(a.params.scale, b.params.scale) for a, b in zip(ours, theirs, strict=True))
    lanes = [run_lanes(s.graph, [Lane("int8", s.plan)], (images,))["int8"] for s in (study, again)]
    assert torch.equal(*lanes)
    # the engine's own numbers, of the file that was read; in float between Q and DQ, since not every processor adds alike
    engine = next(iter(onnxruntime.lane(tmp_path / "int8.onnx", graph=study.graph, optimization="none").run(data)))
    torch.testing.assert_close(engine.outputs, lanes[0], rtol=0.0, atol=2.1 * float(study.plan["scores"].params.scale))


def test_a_network_that_computes_with_its_batch_takes_no_other() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("offset", torch.randn(2, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) + self.offset).mean((2, 3))

    graph = build(Fixed(), torch.randn(2, 3, 4, 4))
    assert graph.fixed_batch == 2
    assert any("batch of 2" in remark for remark in graph.remarks)
    with pytest.raises(DataError, match="batch of 2"):
        outputs(graph, torch.randn(3, 3, 4, 4))
