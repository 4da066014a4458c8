import {
  type AttentionPlan,
  copyInto,
  type FusedOp,
  type PagedAttentionPlan,
  type Pages,
  Tensor,
} from "@heed/tensor";
import type { Device } from "../../launch.ts";
import { ATTENTION_ARGS, type Extras, writeDense, writePaged } from "./arguments.ts";
import { aligned, isAligned, readsInPlace, room } from "./operands.ts";
import {
  anyKernel,
  decodeKernel,
  type DecodeSchedule,
  isRich,
  latentKernel,
  type Schedule,
  type Sizes,
  tensorCores,
} from "./schedule.ts";

const refusalOf = (schedule: Schedule | undefined, { D, Dv }: Sizes): string | undefined =>
  schedule === undefined
    ? `a tile of head sizes ${D} and ${Dv} does not fit the shared memory of this device`
    : undefined;

function denseSizes({ dims: { B, S, Hq, Hkv, D, Dv } }: AttentionPlan): Sizes {
  return { D, Dv, Hkv, tiles: (rows) => B * Math.ceil((S * (Hq / Hkv)) / rows) };
}
// How the queries are shared out among the sequences is known on the device alone: each may leave one tile unfilled.
function pagedSizes({ dims: { N, T, Hq, Hkv, D, Dv } }: PagedAttentionPlan): Sizes {
  return { D, Dv, Hkv, tiles: (rows) => Math.floor((T * (Hq / Hkv)) / rows) + N };
}
const denseSchedule = (plan: AttentionPlan, { limits }: Device): Schedule | undefined => {
  const sizes = denseSizes(plan);
  return (
    tensorCores(plan.q.dtype, sizes, isRich(plan.rules), limits) ?? anyKernel(plan.q.dtype, sizes, limits)
  );
};
/** Pages of the queries' dtype are read in place by the tensor cores where their rows are aligned; the rest goes number by number. */
const pagedSchedule = (plan: PagedAttentionPlan, { limits }: Device): Schedule | undefined => {
  const { q, rules, view } = plan;
  const sizes = pagedSizes(plan);
  const inPlace = [view.kPages, view.vPages].every(
    (pages) => pages instanceof Tensor && pages.dtype === q.dtype && isAligned(pages),
  );
  return (
    (inPlace ? tensorCores(q.dtype, sizes, isRich(rules), limits) : undefined) ??
    anyKernel(q.dtype, sizes, limits)
  );
};
/** Whether a schedule is one for tensor cores, which want aligned rows. */
const wantsAligned = ({ keys }: Schedule): boolean => keys === 0;

/** Attention forward; refuses head sizes whose tile does not fit the shared memory. */
export function attention(device: Device): FusedOp<AttentionPlan> {
  return {
    refusal: (plan) => refusalOf(denseSchedule(plan, device), denseSizes(plan)),
    run: (plan) => {
      const { q, k, v, out, lse, dims } = plan;
      if (out.size === 0) return;
      const schedule = denseSchedule(plan, device)!;
      using stack = new DisposableStack();
      const [tq, tk, tv] = wantsAligned(schedule) ? [q, k, v].map((t) => aligned(t, stack)) : [q, k, v];
      const result = wantsAligned(schedule) && !isAligned(out) ? stack.use(room(out)) : out;
      const tiles = Math.ceil((dims.S * (dims.Hq / dims.Hkv)) / schedule.rows);
      writeDense(device.block, plan, { q: tq!, out: result, lse }, tk!, tv!, { tiles, keys: schedule.keys });
      device.launch(schedule.launch, ATTENTION_ARGS.bytes);
      if (result !== out) copyInto(stack.use(result.slice(-1, 0, dims.Dv)), out);
    },
  };
}
/** Attention over pages, of float and quantised pages; refuses as {@link attention} does. */
export function pagedAttention(device: Device): FusedOp<PagedAttentionPlan> {
  return {
    refusal: (plan) => refusalOf(pagedSchedule(plan, device), pagedSizes(plan)),
    run: (plan) => {
      const { q, out, lse, dims } = plan;
      if (out.size === 0) return;
      const decode = decodeSchedule(plan, device);
      const schedule = decode ?? pagedSchedule(plan, device)!;
      const vectors = decode !== undefined || wantsAligned(schedule as Schedule);
      using stack = new DisposableStack();
      const queries = vectors ? aligned(q, stack) : q;
      const result = vectors && !isAligned(out) ? stack.use(room(out)) : out;
      const extras =
        decode === undefined
          ? { keys: (schedule as Schedule).keys }
          : { parts: meetingPlace(decode, device, stack) };
      writePaged(device.block, plan, { q: queries, out: result, lse }, extras);
      device.launch(schedule.launch, ATTENTION_ARGS.bytes);
      if (decode?.merge !== undefined) device.launch(decode.merge, ATTENTION_ARGS.bytes);
      if (result !== out) copyInto(stack.use(result.slice(-1, 0, dims.Dv)), out);
    },
  };
}
/** The kernel for few rows where the pages are as it reads them: aligned, of the queries' dtype or of codes. */
function decodeSchedule(plan: PagedAttentionPlan, { limits }: Device): DecodeSchedule | undefined {
  const { q, view, dims } = plan;
  const { N, T, Hq, Hkv, pageSize } = dims;
  const pages = [view.kPages, view.vPages];
  const storage = (["float", "codes", "int4"] as const).find((name) =>
    pages.every((p) => readsInPlace(p, name, q.dtype)),
  );
  if (storage === undefined) return undefined;
  const capacity = view.table.indices.size * pageSize;
  const problem = {
    ...pagedSizes(plan),
    dtype: q.dtype,
    storage,
    G: Hq / Hkv,
    N,
    T,
    capacity,
  } as const;
  const isLatent = isPrefix(view.vPages, view.kPages) && plan.rules.alibiSlopes === undefined;
  return decodeKernel(problem, limits) ?? (isLatent ? latentKernel(problem, limits) : undefined);
}
/** Whether values are the first numbers of the keys. */
function isPrefix(values: Pages, keys: Pages): boolean {
  return (
    values instanceof Tensor &&
    keys instanceof Tensor &&
    values.storage === keys.storage &&
    values.offset === keys.offset &&
    values.strides.every((stride, axis) => stride === keys.strides[axis])
  );
}
/** Memory for the parts of a decode, of the stack. */
function meetingPlace(
  { part, counters, partial }: DecodeSchedule,
  device: Device,
  stack: DisposableStack,
): Extras["parts"] {
  if (counters + partial === 0) return { least: part, partial: 0, counters: 0 };
  const start = Math.ceil((4 * counters) / 16) * 16; // rows are fetched 16 bytes at a time
  const memory = stack.use(device.temporary(start + 4 * partial));
  if (counters > 0) device.zero(memory.address, 4 * counters);
  return { least: part, counters: memory.address, partial: memory.address + start };
}
