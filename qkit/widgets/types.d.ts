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
  send(message: Gesture | GraphWish): void;
  on(event: `change:${string}`, callback: () => void): void;
  on(event: "msg:custom", callback: (message: Reply) => void): void;
  off(event: `change:${string}`, callback: () => void): void;
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

// messages: what the network's picture asks for; a handle that moves, and the kernel's answer

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
