"""The form of a report's JSON: what every part is and in which unit. Its JSON Schema is made of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypeAliasType

from qkit.diagnosis.verdict import VerdictName
from qkit.forms import WHOLE, Count, Form, Whole, optional
from qkit.quant.plan_form import GridForm, PlanForm
from qkit.report.text.terms import UNITS

_SaidNumber = Field(description='A number, or "inf" or "-inf".')
_SaidFigure = Field(description='A number; "inf" and "-inf" for infinities, null where there is no value. NaN does not occur.')
Number = TypeAliasType("Number", Annotated[float | Literal["inf", "-inf"], _SaidNumber])
Figure = TypeAliasType("Figure", Annotated[float | Literal["inf", "-inf"] | None, _SaidFigure])
Plain = str | float | bool | None
Share = Annotated[float, Field(ge=0, le=1)]
Digits = Annotated[str, Field(pattern="^[01]*$")]


def _with_units(schema: dict[str, Any]) -> None:
    for column, rule in schema["properties"].items():
        if column in UNITS:
            rule.setdefault("description", UNITS[column])


class Columns(Form):
    """A row of a table."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", " "), json_schema_extra=_with_units)


class Interval(Form):
    """A figure with its 95 % interval over n samples, in units of the score."""

    value: Number
    low: Number
    high: Number
    n: Count
    p: Share = optional("Of a difference: how often equal lanes would differ at least like that.")


class Summary(Form):
    """Answers for a reader of nothing else."""

    verdict: str
    loss: str
    cause: str
    remedy: str
    gain: str
    qat: str


class Model(Form):
    """The network."""

    name: str
    taps: Count = Field(description="Tensors that an integer engine holds.")
    weights: Count
    macs: Count = Field(description="Multiply-accumulates of one sample.")
    deviation: Number = Field(
        description="Greatest difference of the folded graph's output from the model's, relative to its greatest magnitude."
    )
    front: Literal["export", "fx", "onnx", "pt2"] = optional(
        "The way in: torch.export, torch.fx, an ONNX file or an exported program."
    )
    integer_macs: Share = optional("Share of the multiply-accumulates that are computed on integers.")
    integer_elements: Share = optional("Share of the elements that operations compute which are put on a grid.")


class Metric(Form):
    """The score, higher is better."""

    name: str
    percent: bool = Field(description="Whether scores are shares of 1.")
    unit: str = optional("Of scores that are no shares, such as dB.")
    lower: bool = optional("Whether lower is better; scores are then kept with their sign changed.")
    samples: Annotated[int, Field(ge=1), WHOLE] = Field(description="Evaluation samples.")
    tolerance: float = Field(description="Loss that counts as close, in units of the score.")
    expected: Figure = Field(description="The float score that the user believes in.")


class Verdict(Form):
    """Is it quantization?"""

    verdict: VerdictName
    reason: str
    loss16: Interval | None = Field(description="Loss of 16 bits against float.")
    loss8: Interval | None = Field(description="Loss of the judged lane against float.")
    expected16: Interval | None = optional("What 16 bits are to be expected to lose on many such samples.")
    expected8: Interval | None = optional("The same of the judged lane.")
    samples_needed: Whole | None = Field(description='For "inconclusive": about how many would tell.')
    tolerance: Figure = optional("Loss that counts as close, in units of the score.")
    stopped: Whole | None = optional("Samples after which it was sure, where not all were taken.")
    remarks: list[str] = optional("What a reader has to know of the scores.")
    base: Interval | None = optional("Float's own score on the verdict's samples.")
    headline: str
    meaning: str
    then: str


class Calibration(Form):
    """What the ranges were observed on."""

    samples: Whole | None = Field(description="Null where that is not known.")


class Evaluation(Form):
    """What the scores were measured on."""

    samples: Count
    batches: Count
    batch_size: Count
    shapes: list[list[Count]] = Field(description="Of one sample, an array for each input of the model.")
    targets: bool
    fingerprint: str | None = Field(
        description="Hash of all inputs and targets in order: equal ones mean the same images. Null if unknown."
    )


class Data(Form):
    """What was measured on."""

    calibration: Calibration
    evaluation: Evaluation
    same: bool = Field(description="Whether scores were measured on the calibration data.")


class Score(Columns):
    """A lane's score and its loss against float, with 95 % intervals, in units of the score."""

    score: Number
    low: Number
    high: Number
    loss: Number
    loss_low: Number
    loss_high: Number


class Scores(Form):
    """By lane, float first."""

    float: Score
    __pydantic_extra__: dict[str, Score]


class Remedy(Form):
    """What to change."""

    kind: str = Field(description='A word of the vocabulary, such as "per-channel-weights".')
    layer: str = Field(description='Module path, "" for all.')
    text: str = Field(description="What to do, in a sentence.")
    bias_bits: Whole | None
    accumulator_bits: Whole | None
    corrections: dict[str, list[float]]
    grids: dict[str, GridForm]
    factors: dict[str, list[float]] | None = optional("By norm, the scales between it and the layers behind it, if any.")


class Cause(Form):
    """A cause that an experiment confirmed, or that the gate found."""

    kind: str = Field(description='A word of the vocabulary, such as "weight-channel-imbalance".')
    layer: str = Field(description='Module path, "" for the whole network.')
    tensor: str
    evidence: str = Field(description="What was seen, with its figures.")
    remedy: Remedy
    gain: Interval | None = Field(description="Score that the remedy alone recovers, on the diagnosis' samples.")
    alone: Interval | None = Field(description="Score that the tensor loses quantized alone.")
    alone_gain: Interval | None = Field(description="What the remedy recovers of that.")
    places: list[str] = optional("All tensors where it was found, where there are several.")


class Harmless(Form):
    """A layer that looks bad and costs nothing."""

    tap: str
    sqnr: Number = Field(description="dB")


class Parts(Form):
    """What the parts of quantization lose against float."""

    weights: Interval
    activations: Interval
    clipping: Interval


class Exported(Form):
    """What became of an offered plan in an exported file."""

    remedy: str
    engine: str = Field(description="Name and version.")
    survives: bool = Field(description="Whether the file scores as the simulation does.")
    samples: Count
    lost: Interval | None = Field(description="What the file loses against the simulation; null where it could not be run.")
    reason: str


class Diagnosis(Form):
    """Causes and remedies."""

    causes: list[Cause] = Field(description="The greatest gain first; causes outside quantization before all others.")
    findings: list[Cause] = Field(description="What the gate saw that has no measured effect.")
    harmless: list[Harmless]
    parts: Parts | None
    interaction: Interval | None = Field(description="The whole loss less the sum of the tensors' own.")
    remedies: list[Remedy] = Field(description="Combined, in the order of application.")
    best_loss: Interval | None = Field(description="What they still lose.")
    qat: str
    remarks: list[str]
    samples: Count
    evaluations: Count
    exported: list[Exported] = optional("What became of the offered plans in an exported file, where an engine is installed.")


class Tried(Form):
    """A remedy put to the report's own samples."""

    what: Literal["alone", "all"] = Field(description='"alone" or "all" together.')
    cause: str
    layer: str
    remedy: str
    text: str
    before: Interval = Field(description="Score without.")
    score: Interval = Field(description="Score with the remedy.")
    gain: Interval = Field(description="Its paired change, positive is better.")
    loss: Interval = Field(description="What is then lost against float.")


class Step(Form):
    """A step of post-training calibration."""

    step: str
    kept: bool
    why: str
    error_before: Number = Field(description="Output error on held-out samples, relative to the float output's energy.")
    error: Number
    held_out: Interval | None
    score: Interval
    gain: Interval
    seconds: float


class Treatment(Form):
    """What post-training calibration did."""

    metric: str
    float: Interval
    before: Interval
    after: Interval
    loss: Interval
    fitted: Count
    held_out: Count
    remarks: list[str]
    steps: list[Step]


class Setting(Form):
    """One choice of 16-bit layers, scored."""

    name: str
    layers: list[str]
    cost: Figure = optional("Microseconds of the network or multiply-accumulates in 16 bits, as the unit says.")
    share: float = Field(
        description="Of the multiply-accumulates that are in 16 bits; or of the time that all layers in 16 bits take longer."
    )
    selection: Number
    evaluation: Interval
    loss: Interval
    reached: bool


class Mixed(Form):
    """What the search for mixed precision found."""

    metric: str
    selection_metric: str
    select: str
    target: Number
    selection_target: Number
    float: Interval
    float_selection: Number
    reached: bool
    found: Setting
    front: list[Setting]
    baselines: list[Setting]
    unit: Literal["multiply-accumulates", "µs"] = optional("What costs count; multiply-accumulates where it is missing.")
    costs: dict[str, Number] = Field(description="By layer: multiply-accumulates, or microseconds that 16 bits take longer.")
    scored: Count
    remarks: list[str]


class Engine(Form):
    """A real engine against the simulation."""

    summary: str
    lane: str
    plan: str
    samples: Count
    first: str | None = Field(description="First tap that differs by more than rounding, on equal inputs.")
    taps: dict[str, dict[str, Plain]] = Field(description="Shares of codes that differ by 0, 1 and more steps, and SQNR in dB.")
    reasons: dict[str, str]
    missing: list[str]
    notes: list[str]


class Counts(Form):
    """Findings by severity."""

    error: Count
    warning: Count
    note: Count


class Finding(Form):
    """What lint says of a place."""

    rule: str
    severity: Literal["error", "warning", "note"]
    message: str
    cure: str
    layer: str
    file: str | None
    line: Whole | None


class Lint(Form):
    """Findings on the model."""

    model: str
    traced: bool
    ok: bool
    counts: Counts
    findings: list[Finding]
    remarks: list[str]


class Settings(Columns):
    """Scheme, calibration and amounts of data."""

    scheme: Plain
    activations: Plain
    weights: Plain
    bias: Plain
    batches: Plain
    samples: Plain
    layer_samples: Plain
    plan_fingerprint: Plain
    sensitivity: Plain
    images: Plain
    __pydantic_extra__: dict[str, Plain]


class Environment(Form):
    """Versions and machine."""

    date: str | float
    qkit: str | float
    torch: str | float
    python: str | float
    platform: str | float
    processor: str | float
    device: str | float
    threads: str | float
    __pydantic_extra__: dict[str, str | float]


class Tap(Columns):
    """What the tap is."""

    kind: str
    shape: str = Field(description='Of one sample, such as 16x32x32; "" for a scalar.')
    weight: str | None = Field(description="Name of its weight, null where it has none.")
    macs: Count


class FloatFigures(Columns):
    """The float lane's values."""

    min: Number
    max: Number
    rms: Number


class LaneFigures(Columns):
    """A tap in an integer lane."""

    scale: Figure
    zero_point: Whole | None
    sqnr: Figure
    local_sqnr: Figure
    cosine: Figure
    mean_error: Figure
    max_error: Figure
    clipped: Figure
    used: Figure
    rounding: Figure
    clipping: Figure


class Layer(Form):
    """A tap in every lane."""

    tap: Tap
    float: FloatFigures
    __pydantic_extra__: dict[str, LaneFigures]


class FloatWeight(Columns):
    """Float values."""

    min: Figure
    max: Figure
    channel_spread: Figure


class LaneWeight(Columns):
    """The weight in an integer lane."""

    sqnr: Figure = Field(description="dB")
    scale: Figure


class Weight(Form):
    """A weight in every lane."""

    float: FloatWeight
    __pydantic_extra__: dict[str, LaneWeight]


class Operation(Form):
    """An operation of the folded network."""

    name: str
    kind: str
    inputs: list[Count] = Field(description="Numbers of the operations that it reads, all before it.")


class Sensitivity(Columns):
    """A layer quantized alone, in units of the score."""

    kind: str
    macs: Count
    score: Number
    loss: Number
    loss_low: Number
    loss_high: Number


class ShownGrid(Form):
    """A grid's numbers; of one per channel the widest and the least."""

    method: str
    bits: Whole
    per_channel: bool
    scale: float
    least_scale: float
    zero_point: Whole | None
    qmin: Whole
    qmax: Whole
    lo: float
    hi: float


class Histogram(Form):
    """Counts in equal bins over all values and the whole grid."""

    elements: Count
    zeros: Count
    min: Number
    max: Number
    counts: list[float]
    edges: list[float]


class GridError(Columns):
    """Errors of the tensor's own grid."""

    rounding: Number
    clipping: Number
    clipped: Number
    sqnr: Number = Field(description="dB")


class WorstWeight(Form):
    """The layer's weight."""

    name: str
    shape: str
    elements: Count
    channels: list[Count]
    peaks: list[float] = Field(description="Greatest |w| of every output channel, sorted.")
    grid: ShownGrid | None
    vanished: Whole | None


class Worst(Form):
    """A layer in detail."""

    tap: str
    rules: list[str]
    kind: str
    layer: str
    note: str | None
    grid: ShownGrid | None
    histogram: Histogram | None
    grid_error: GridError | None
    weight: WorstWeight | None


class Maps(Form):
    """Feature maps of one image."""

    image: Count
    lane: str
    channels: list[Count]
    sqnr: list[Number]
    shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    thinned: list[Count]
    float: str = Field(description="float32, little-endian, base64.")
    quantized: str


class Document(Form, extra="forbid", title="qkit degradation report"):
    """What qkit.report.write puts into a .json file, format 2.

    Scores and losses are in units of the score (0.01 is one point of accuracy where metric.percent is true), SQNR in dB, errors
    in the tensor's own units.
    """

    format: Literal[2] = Field(description="Version of this form. Readers refuse others.")
    title: str = Field(description="Shown on top.")
    summary: Summary
    model: Model
    metric: Metric
    verdict: Verdict
    data: Data
    scores: Scores
    lanes: Annotated[list[str], Field(min_length=1)] = Field(description="Integer lanes, in the order of the tables.")
    narrow: str = Field(description="The lane that is judged: int8, or what the study has in its place.")
    diagnosis: Diagnosis | None = Field(description="Null where it was not asked for.")
    tried: list[Tried] = Field(description="Remedies put to the report's own samples.")
    treatment: Treatment | None = Field(description="Null where the study is not of post-training calibration.")
    mixed: Mixed | None = Field(description="Null where no mixed precision was searched for.")
    engines: list[Engine] = Field(description="Real engines against the simulation, one entry each.")
    lint: Lint | None = Field(description="Null where it was left out: settings says why.")
    remarks: list[str] = Field(description="What a reader of the figures has to know.")
    notes: dict[str, str] = Field(description="What stays float or is simulated in float inside, by step.")
    settings: Settings
    environment: Environment
    reproduce: str = Field(description="Python that makes the report again.")
    command: str = Field(description='The command line that comes nearest to it; "" where there is none.')
    units: dict[str, str] = Field(description="Units of the tables' columns.")
    layer_samples: Count = Field(description="Samples that the figures of layers and weights are measured on.")
    layers: dict[str, Layer] = Field(description="A row per tap, in execution order.")
    weights: dict[str, Weight] = Field(description="A row per weight.")
    network: list[Operation] = optional("The operations in the order of execution.")
    sensitivity: dict[str, Sensitivity] | None = Field(
        description="Each layer quantized alone, the greatest loss first; null where it was not measured."
    )
    worst: list[Worst] = Field(description="The worst layers in detail.")
    names: dict[str, dict[str, str]] = optional("By tap, what else it is called: node in the ONNX file, target in the layer map.")
    maps: dict[str, Maps] | None = Field(
        description="Feature maps of one image by tap; null unless asked for, since they show the user's image."
    )
    plan: PlanForm
    per_sample: dict[str, Digits | list[float]] | None = Field(
        description="Scores by lane, in the order of the evaluation data: a string of 0 and 1, or numbers. "
        "Null beyond 100,000 samples."
    )
