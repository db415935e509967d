/**
 * The types of the server's answers, for the compiler that checks `static/`; the page never loads this file.
 *
 * `answers.py` makes the answers. JSON comes as it is. An answer with arrays comes as `Packed`: a JSON header, and the
 * arrays by name as `wire.py` writes them. Belongs here: what crosses from server to page. Does not: the page's own
 * types, each of which is in the module that makes it.
 */

/** What the page may request: the name of a route, and its answer. */
export interface Answers {
  index: Index;
  heat: Heat;
  layer: Layer;
  scalars: Scalars;
  findings: Findings;
  jacobian: Jacobian;
  profile: Profile;
  health: Health;
}

/** The query of a request; what is null, undefined or "" is left out. */
export interface Query {
  run?: string;
  metric?: string;
  /** The run to subtract. */
  minus?: string;
  /** How many columns there is room for. */
  columns?: number;
  start?: number | null;
  end?: number | null;
  match?: string | null;
  site?: string;
  hist?: number;
  tag?: string[];
  name?: string;
  step?: number | null;
}

export interface Packed<Header, Arrays> {
  header: Header;
  arrays: Arrays;
}

/** An array that came over the wire: flat, in row-major order. */
export type Shaped<TypedArray> = TypedArray & { shape: number[] };

// Which runs there are, and what each has

export interface Index {
  runs: Run[];
  /** Runs of the log directory without gradlab data. */
  others: string[];
  /** Lists of site names; a metric's `sites` is the number of its list. */
  sites: string[][];
  /** How many steps TensorBoard keeps of a series; 0: all of them. */
  kept_steps: number;
}

export interface Run {
  name: string;
  metrics: Record<string, MetricInfo>;
  last_step: number;
  /** Tags of TensorBoard's own scalars. */
  scalars: string[];
  findings: number;
  jacobians: JacobianInfo[];
  /** Names of the profiler's windows. */
  profiles: string[];
  settings: Record<string, Setting>;
  notes: string[];
}

export type Setting = string | number | boolean | null;

export interface MetricInfo {
  unit: string;
  sites: number;
  last_step: number;
  hist: boolean;
}

// A metric of all sites

export type Heat = Packed<HeatHeader, HeatArrays>;

export interface HeatHeader {
  run: string;
  metric: string;
  unit: string;
  /** The run that was subtracted, and how: "log2 ratio" or "difference". */
  minus: string | null;
  scale?: string;
  sites: string[];
  sites_a_row: number;
  num_sites: number;
  /** How many logged steps a column holds before pooling. */
  block: number;
  sampled: boolean;
  last_step: number;
  quantiles: Quantiles;
}

/** Finite values at equal shares of their number, in order. */
export interface Quantiles {
  all: number[];
  positive: number[];
  negative: boolean;
}

/**
 * `first` and `last` are the steps that a column reaches over, [columns]; the others are [sites, columns]. `low` and
 * `high` are there where columns hold several steps, `bad` (how many of them were not finite) where any was not.
 */
export interface HeatArrays {
  first: Shaped<Float64Array>;
  last: Shaped<Float64Array>;
  mean: Shaped<Float32Array>;
  low?: Shaped<Float32Array>;
  high?: Shaped<Float32Array>;
  bad?: Shaped<Uint16Array>;
}

// All metrics of a site

export type Layer = Packed<LayerHeader, LayerArrays>;

export interface LayerHeader {
  run: string;
  site: string;
  metrics: LayerMetric[];
}

export interface LayerMetric {
  metric: string;
  unit: string;
  /** Of a histogram: the edges of its bins in log2 of the magnitude; else empty. */
  edges: number[];
  last_step: number;
}

/**
 * As `HeatArrays` of one site, for each metric of the header by its number; of a histogram `counts`, [columns, bins].
 */
export interface LayerArrays {
  [name: `${number}.first` | `${number}.last`]: Float64Array;
  [name: `${number}.mean` | `${number}.counts`]: Float32Array;
  [name: `${number}.low` | `${number}.high`]: Float32Array | undefined;
  [name: `${number}.bad`]: Uint16Array | undefined;
}

// TensorBoard's scalars

export type Scalars = Packed<{ tags: string[] }, ScalarArrays>;

/** For each tag of the header by its number. */
export interface ScalarArrays {
  [name: `${number}.steps` | `${number}.values`]: Float64Array;
}

// Findings and damaged files

export interface Findings {
  findings: Finding[];
  /** How many could not be read. */
  broken: number;
}

/** The newest state of a finding. They come in order: each cause, then its symptoms. */
export interface Finding {
  /** "" of a finding that no rule has made. */
  code: string;
  name: string;
  /** Modules or parameters, the most telling one first. */
  sites: string[];
  first_step: number;
  /** The last step at which it was seen, as far as that is known. */
  last_step: number;
  message: string;
  /** The numbers that the sentence rests on; null where one is not finite. */
  evidence: Record<string, number | null>;
  remedy: string;
  severity: string;
  certainty: string;
  /** The code of its cause. */
  explained_by: string | null;
  key: string;
  /** Whether it was over before the run was. */
  ended: boolean;
  /** Whether it follows from the cause before it. */
  symptom: boolean;
}

export interface Health {
  notes: string[];
}

// Jacobians

export interface JacobianInfo {
  name: string;
  kind: string;
  of: string;
  wrt: string;
  label?: string;
  engine?: string;
  notes?: string[];
  /** Whether the singular values are all of them. */
  complete?: boolean;
  note?: string;
}

export type Jacobian = Packed<JacobianHeader, JacobianArrays>;

/** `samples` to `size` are there where the block was logged. */
export interface JacobianHeader extends JacobianInfo {
  step: number;
  steps: number[];
  /** The names of the scalars that were logged of it: `fro`, `sigma_1`, ... */
  summaries: string[];
  samples?: number;
  row_names?: string[];
  col_names?: string[];
  size?: number[];
}

export interface JacobianArrays {
  /** [rows, columns] */
  block?: Shaped<Float32Array>;
  singular_values?: Float64Array;
  spectrum_steps?: Float64Array;
  /** [steps, k], NaN where a spectrum is shorter. */
  spectra?: Shaped<Float64Array>;
  [name: `summary${number}.steps` | `summary${number}`]: Float64Array;
}

// Windows of the profiler: summary.json, which docs/profile.md describes

export interface Profile {
  windows: ProfileWindow[];
}

/** With a summary, or with a sentence that says why there is none. */
export interface ProfileWindow {
  name: string;
  traces: { name: string; bytes: number }[];
  summary?: Summary;
  problem?: string;
}

export interface Summary {
  steps: ({ step: number } & StepTimes)[];
  mean: StepTimes;
  reason?: { kind: string; detail?: string };
  modules?: ModuleRow[];
  operators?: { name: string; calls: number; host_self_ms: number; device_ms: number }[];
  kernels?: { name: string; ms: number; tensor_cores: boolean }[];
  device?: Device | null;
  memory?: PeakMemory | null;
  collectives_ms?: number;
  ranks?: ({ rank: number } & StepTimes)[] | null;
  verdict?: { sentence: string; attempts?: string[] };
  notes?: string[];
}

export interface StepTimes {
  ms: number;
  data_ms: number;
  forward_ms: number;
  backward_ms: number;
  optimizer_ms: number;
  other_ms: number;
}

/** Times of a mean step, `self` without the modules inside. */
export interface ModuleRow {
  name: string;
  kind: string;
  calls: number;
  forward_ms: number;
  forward_self_ms: number;
  backward_ms: number;
  backward_self_ms: number;
  device_forward_ms: number;
  device_forward_self_ms: number;
  device_backward_ms: number;
  device_backward_self_ms: number;
  retained_bytes?: number | null;
  peak_bytes?: number | null;
}

export interface Device {
  name: string | null;
  busy_share: number;
  ms: number;
  tensor_core_share?: number;
  copies_ms?: number;
  idle?: Idle;
}

export interface Idle {
  data_ms?: number;
  sync_ms?: number;
  host_ms?: number;
  queue_ms?: number;
  gaps?: { ms: number; cause: string; step: number | null; before: string | null; module: string | null }[];
}

export interface PeakMemory {
  device: string;
  peak_bytes: number;
  peak_step: number;
  categories?: Record<string, number>;
}
