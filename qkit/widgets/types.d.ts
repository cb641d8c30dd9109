// What Python and the page share, for the type check alone: the traits of each widget's class, the messages beside them, and
// what anywidget hands over. tests/widgets/test_types.py holds the first two to what Python sends.

/** What anywidget gives a view: the model that it draws, and the element to draw in. */
export interface View<Traits> {
  model: Model<Traits>;
  el: HTMLElement;
}

/** The page's end of a widget; `Traits` are those of its class in Python. */
export interface Model<Traits> {
  get<Name extends keyof Traits>(name: Name): Traits[Name];
  set<Name extends keyof Traits>(name: Name, value: Traits[Name]): void;
  save_changes(): void;
  send(message: Gesture | Action | GraphWish): void;
  on(event: `change:${string}` | "comm_live_update", callback: () => void): void;
  on(event: "msg:custom", callback: (message: Reply) => void): void;
  off(event: `change:${string}` | "comm_live_update", callback: () => void): void;
  off(event: "msg:custom", callback: (message: Reply) => void): void;
}

// traits, by class

export interface LayerTable {
  columns: Column[];
  rows: Row[];
  charts: Chart[];
  chart: number;
  selected: string;
  sort_by: string;
  descending: boolean;
  filter: string;
  limit: number | null;
  limit_column: number;
  noun: string;
  bars: number;
  bars_unit: string;
  folds: string;
  unfolded: boolean;
}

export interface MapPlot {
  maps: DataView;
  shape: [number, number];
  titles: string[];
  scales: [number, number, boolean][];
  colours: DataView;
}

export interface Tuner {
  tensor: string;
  counts: DataView;
  view: [number, number];
  logarithmic: boolean;
  zoomed: boolean;
  grid_drawn: Grid;
  ghost: Grid | NoGrid;
  marks: Mark[];
  mark_rows: number;
  extremes: [number, number];
  stride: number;
  axis: string;
  ranges: DataView;
  ratios: DataView;
  selected: number;
  strip_title: string;
  figure_rows: string[][];
  measured_rows: string[][];
  score: Score;
  measuring: boolean;
  code: string;
  error_words: string;
  notice_words: string;
  doing: string;
  share_done: number;
  names: string[];
  kinds: [string, number][];
  group: string[];
  group_name: string;
  rule: Rule;
  methods: Method[];
  percentile: number;
  can: Can;
}

export interface ChannelStrip {
  ranges: DataView;
  selected: number;
  log: boolean;
  title: string;
}

export interface Stepper {
  steps: Step[];
  states: StepState[];
  step: number;
}

export interface GraphCanvas {
  boxes: GraphBox[];
  edges: GraphEdge[];
  size: [number, number];
  nodes: [string, string, string][];
  shares: (number | null)[][];
  texts: string[];
  legend: GraphLegend;
  figures: GraphFigure[];
  figure: string;
  lanes: string[];
  lane: string;
  other: string;
  beside: boolean;
  missing: string;
  doing: string;
  done: number | null;
  selected: string;
  facts: [string, string][];
  pictures: string[];
  said: string;
  actions: [string, string][];
}

// what the traits hold

export type StepState = "here" | "seen" | "applied" | "open";

export interface Step {
  title: string;
  part: string;
}

export interface GraphBox {
  key: string;
  title: string;
  place: [number, number, number, number];
  nodes: number[];
  block: boolean;
  opened: boolean;
  depth: number;
  after: number[];
}

export interface GraphEdge {
  points: number[];
  skip: boolean;
  arrow: boolean;
  tensor: number;
}

export interface GraphLegend {
  title: string;
  words: string;
  signed: boolean;
  ticks: [number, string][];
}

export interface GraphFigure {
  key: string;
  name: string;
  tip: string;
  by_lane: boolean;
}

export interface Column {
  head: string;
  words: boolean;
  down: boolean;
  tip: string;
  bar: boolean;
  fold: boolean;
}

export interface Row {
  name: string;
  texts: string[];
  values: (number | "inf" | "-inf" | null)[];
}

export interface Chart {
  name: string;
  unit: string;
  log: boolean;
  lines: Line[];
}

export interface Line {
  column: number;
  role: Colour;
  shape: "circle" | "triangle" | "square" | "diamond";
  dash: boolean;
  label: string;
}

export interface Grid {
  lo: number;
  hi: number;
  scale: number;
  codes: number;
}

export interface NoGrid {
  lo?: undefined;
}

export interface Mark {
  label: string;
  row: number;
  lo: number;
  hi: number;
}

export interface Score {
  metric: string;
  now: string;
  interval: string;
  unit: string;
  lines: string[][];
  note: string;
}

export interface Rule {
  bits: number;
  symmetric: boolean;
  power_of_two: boolean;
  per_channel: boolean;
  lo: string;
  hi: string;
  method: string;
}

export interface Method {
  name: string;
  defined: boolean;
}

export interface Can {
  undo: boolean;
  redo: boolean;
  reset: boolean;
}

// messages: a handle that moves, the kernel's answer, and what else is done

export type Action =
  | { event: "undo" | "redo" | "reset" | "cancel" }
  | { event: "rule"; value: Partial<Rule> }
  | { event: "choose" | "percentile" | "select" | "tensor"; value: string }
  | { event: "typed"; end: End; value: string }
  | { event: "channel"; value: number }
  | { event: "logarithmic" | "zoomed"; value: boolean };

export interface GraphWish {
  event: "toggle" | "reveal" | "level" | "measure" | "cancel" | "open";
  key?: string;
  action?: string;
}

export interface Gesture {
  event: "drag" | "release";
  end: End;
  value: number;
  seq: number;
}

export type Reply = Figures | Refused | Refresh;

export interface Figures {
  event: "figures";
  seq: number;
  released: boolean;
  grid: Grid;
  figures: string[][];
}

export interface Refused {
  event: "refused";
  seq: number;
}

/** Controls show what there is once more: what was typed into one was refused. */
export interface Refresh {
  event: "refresh";
}

// the page's own

/** What a strip of channels shows, and what it tells of a choice. */
export interface Channels {
  ranges(): DataView;
  selected(): number;
  log(): boolean;
  title(): string;
  ratio(channel: number): string;
  worst(): number | null;
  pick(channel: number): void;
  rescale(): void;
}

export type End = "lo" | "hi";

/** Where the network's picture is seen from: its corner on the screen, and how large a unit is. */
export interface Window {
  x: number;
  y: number;
  k: number;
}

/** The colours of common.css by their names there. */
export type Colour = "ink" | "muted" | "lines" | "page" | "wide" | "narrow" | "other" | "bad" | "good" | "mark";

export type Palette = Record<Colour, string>;

export type Draw = (c: CanvasRenderingContext2D, width: number, height: number, colours: Palette) => void;
