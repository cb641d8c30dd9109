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
  send(message: Gesture): void;
  on(event: `change:${string}`, callback: () => void): void;
  on(event: "comm_live_update", callback: () => void): void;
  on(event: "msg:custom", callback: (message: Reply) => void): void;
  off(event: `change:${string}`, callback: () => void): void;
  off(event: "comm_live_update", callback: () => void): void;
  off(event: "msg:custom", callback: (message: Reply) => void): void;
}

// traits, by class

export interface CodeBox {
  code: string;
}

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

export interface RangePlot {
  counts: DataView;
  view: [number, number];
  log: boolean;
  grid: Grid;
  marks: Mark[];
  mark_rows: number;
  ghost: Grid | NoGrid;
  figures: string[][];
  extremes: [number, number];
  stride: number;
  axis: string;
  locked: boolean;
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

// what the traits hold

export type StepState = "here" | "seen" | "applied" | "open";

export interface Step {
  title: string;
  part: string;
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

// messages: a handle that moves, and the kernel's answer

export interface Gesture {
  event: "drag" | "release";
  end: End;
  value: number;
  seq: number;
}

export type Reply = Figures | Refused;

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

// the page's own

export type End = "lo" | "hi";

/** The colours of common.css by their names there. */
export type Colour = "ink" | "muted" | "lines" | "page" | "wide" | "narrow" | "other" | "bad" | "good" | "mark";

export type Palette = Record<Colour, string>;

export type Draw = (c: CanvasRenderingContext2D, width: number, height: number, colours: Palette) => void;
