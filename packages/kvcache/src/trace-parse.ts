import { FormatError } from "@heed/tensor";
import type { TraceCommand, TraceCounts, TraceHeader } from "./trace.ts";

/** One line of a trace behind its header. */
export type TraceLine = TraceCommand & TraceCounts;
type Rule = (value: unknown) => boolean;

const number: Rule = (v) => Number.isSafeInteger(v) && (v as number) >= 0;
const list =
  (of: Rule): Rule =>
  (v) =>
    Array.isArray(v) && v.every(of);
const numbers = list(number);
const maybe =
  (rule: Rule): Rule =>
  (v) =>
    v === undefined || rule(v);
const row: Rule = (v) => numbers(v) && (v as unknown[]).length === 2;
const ids: Rule = (v) => v === null || list((id) => id === -1 || number(id))(v);
const pages = list(list(numbers));

const adapter: Rule = (v) => v === null || typeof v === "string";
const OWNER = { namespace: (v: unknown) => typeof v === "string", adapter };
const RETENTION = {
  priority: maybe(number),
  expires: maybe((v) => Number.isFinite(v)),
};
const prefixes: Rule = (v) => {
  if (v === null) return true;
  const { quota, quotas } = (v ?? {}) as { quota?: unknown; quotas?: unknown };
  const isQuotas = typeof quotas === "object" && quotas !== null && Object.values(quotas).every(number);
  return isQuotas && (quota === null || number(quota));
};

/** The fields of each command. */
const FIELDS: { readonly [Op in TraceCommand["op"]]: Readonly<Record<string, Rule>> } = {
  open: { sequence: number, match: (v) => v === null || number(v), ...OWNER, ...RETENTION, pages },
  match: { match: number, ids: numbers, partial: (v) => typeof v === "boolean", ...OWNER, pages },
  unmatch: { match: number },
  invalidate: { adapter },
  clock: { now: (v) => Number.isFinite(v) },
  pin: { match: number, pages },
  insert: {
    match: number,
    parent: number,
    ids: numbers,
    present: list((v) => typeof v === "boolean"),
    ...OWNER,
    pages,
  },
  release: { sequence: number },
  drop: { sequence: number },
  empty: { sequence: number },
  reserve: { step: number, rows: list(row), pages },
  commit: { step: number, ids },
  cancel: { step: number },
  fork: { sequence: number, fork: number },
  truncate: { sequence: number, length: number },
  fence: { fence: number, sequences: numbers },
  lift: { fence: number },
  take: { sequence: number, length: number, from: numbers, sealed: maybe(numbers), ids, pages },
  reset: {},
};
const COUNTS = { free: numbers, cached: numbers, residual: maybe(numbers) };
const GROUP: Readonly<Record<string, Rule>> = {
  pageSize: number,
  window: (v) => v === null || number(v),
  sinks: number,
  maxPages: number,
  residualPages: maybe(number),
};

function parse(line: string, at: number): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(line);
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch {
    // falls through: the text is not JSON
  }
  throw new FormatError(`[kvcache] line ${at} of the trace is not a JSON object`, { line: at });
}
function requireFields(
  value: Record<string, unknown>,
  rules: Readonly<Record<string, Rule>>,
  at: number,
): void {
  for (const [name, rule] of Object.entries(rules)) {
    if (rule(value[name])) continue;
    throw new FormatError(`[kvcache] line ${at} of the trace has a wrong "${name}"`, {
      line: at,
      field: name,
    });
  }
}
/** Reads the first line. Throws FormatError. */
export function parseTraceHeader(line: string): TraceHeader {
  const value = parse(line, 1);
  if (value.trace !== "heed-kvcache" || value.version !== 1) {
    throw new FormatError("[kvcache] this is not a trace of version 1", {
      trace: value.trace,
      version: value.version,
    });
  }
  requireFields(value, { groups: Array.isArray, draftMargin: number, prefixes }, 1);
  for (const group of value.groups as Record<string, unknown>[]) requireFields(group ?? {}, GROUP, 1);
  return value as unknown as TraceHeader;
}
/** Reads a further line, the `at`-th of the file. Throws FormatError. */
export function parseTraceLine(line: string, at: number): TraceLine {
  const value = parse(line, at);
  const { op } = value;
  if (typeof op !== "string" || !Object.hasOwn(FIELDS, op)) {
    throw new FormatError(`[kvcache] line ${at} of the trace has an unknown command`, { line: at, op });
  }
  requireFields(value, { ...FIELDS[op as TraceCommand["op"]], ...COUNTS }, at);
  return value as unknown as TraceLine;
}
