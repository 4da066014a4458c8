import { createRng, type Rng } from "@heed/testkit";

/** Longest request, prompt and output together. */
export const MAX_LENGTH = 4096;
/** Tokens of a request on average, prompt and output together. */
export const MEAN_LENGTH = 756;
const SPREAD = 1; // deviation of the logarithm of a length: a few are ten times as long as the middle one
const PROMPT_SHARE = 2; // tokens that a user writes for each that is answered, on average
const SYSTEM_PROMPTS = 8;
const MAX_TURNS = 5;
const LOAD = 4; // requests that arrive for each that the rows could serve if none were shared
/** Samples or beams of a request that asks for several. */
export const WIDTH = 4;

/** How a request is answered: by one sequence, by several from one prompt, or by a beam search. */
export type Kind = "single" | "samples" | "beams";
/** One request. Its token ids follow from `conversation`, `system` and the position; see {@link tokenAt}. */
export interface Request {
  readonly conversation: number;
  /** Number of the system prompt that it begins with, and its tokens; 0 tokens without one. */
  readonly system: number;
  readonly systemTokens: number;
  readonly kind: Kind;
  /** Sequences that answer it. */
  readonly width: number;
  readonly prompt: number;
  readonly output: number;
  /** Step in which it arrives: of a later turn, steps after the turn before was answered. */
  readonly after: number;
  /** The turn that follows, whose prompt begins with this one's prompt and output. */
  readonly next: Request | undefined;
}
/** What is asked of the cache. */
export interface Workload {
  /** First turns by arrival. */
  readonly first: readonly Request[];
  /** All turns. */
  readonly requests: readonly Request[];
}
export interface WorkloadOptions {
  readonly seed: number;
  readonly requests: number;
  /** Requests share system prompts, go on over several turns, and ask for samples and beams. */
  readonly isShared: boolean;
  /** Rows of the cache that is to be loaded. */
  readonly rows: number;
}

/** A conversation as it was drawn: times and lengths are in units that are chosen when all are there. */
interface Draft {
  readonly gap: number; // after the conversation before, 1 on average for each of its turns
  readonly system: number;
  readonly systemTokens: number;
  readonly kind: Kind;
  readonly turns: readonly { readonly user: number; readonly output: number; readonly think: number }[];
}

/** Draws a load; the same options give the same one. Its mean length is {@link MEAN_LENGTH}. */
export function workload(options: WorkloadOptions): Workload {
  const rng = createRng(options.seed);
  const systems = Array.from({ length: SYSTEM_PROMPTS }, () => rng.int(96, 320));
  const drafts: Draft[] = [];
  for (let left = options.requests; left > 0; left -= drafts.at(-1)!.turns.length)
    drafts.push(draft(rng, options, systems, left));
  const scale = fit(drafts);
  const needs = drafts.flatMap((d) => chain(d, 0, 0, scale)).map(rowSteps);
  const pace = needs.reduce((a, b) => a + b, 0) / needs.length / (LOAD * options.rows);
  let arrival = 0;
  const chains = drafts.map((d, conversation) => chain(d, conversation, (arrival += pace * d.gap), scale));
  return { first: chains.map(([first]) => first!), requests: chains.flat() };
}
/** Rows that a request holds, added up over the steps in which it is answered. */
function rowSteps({ prompt, output, width }: Request): number {
  return width * (prompt + output / 2) * output;
}
function draft(rng: Rng, { isShared }: WorkloadOptions, systems: readonly number[], most: number): Draft {
  const length = (): number => Math.exp(SPREAD * rng.normal());
  const turn = (): Draft["turns"][number] => ({
    user: PROMPT_SHARE * length(),
    output: length(),
    think: rng.int(20, 400),
  });
  const turns = [turn()];
  const exponential = -Math.log(1 - rng.uniform());
  if (!isShared) return { gap: exponential, system: 0, systemTokens: 0, kind: "single", turns };
  const chance = rng.uniform();
  const kind = chance < 0.8 ? "single" : chance < 0.92 ? "samples" : "beams";
  while (kind === "single" && turns.length < Math.min(most, MAX_TURNS) && rng.uniform() < 0.5)
    turns.push(turn());
  const system = Math.floor(SYSTEM_PROMPTS * rng.uniform() ** 2); // the first ones are asked for the most
  const systemTokens = rng.uniform() < 0.7 ? systems[system]! : 0;
  return { gap: turns.length * exponential, system, systemTokens, kind, turns };
}
/** Tokens for a unit of length such that the mean length is as wanted, by bisection: it rises with the unit. */
function fit(drafts: readonly Draft[]): number {
  let [low, high] = [0, MAX_LENGTH];
  for (let i = 0; i < 40; i++) {
    const middle = (low + high) / 2;
    const lengths = drafts.flatMap((d) => chain(d, 0, 0, middle)).map(lengthOf);
    if (lengths.reduce((a, b) => a + b, 0) < MEAN_LENGTH * lengths.length) low = middle;
    else high = middle;
  }
  return low;
}
/** The turns of a conversation, each of which begins with all before it and is cut at the greatest length. */
function chain(d: Draft, conversation: number, arrival: number, scale: number): Request[] {
  const sizes: { prompt: number; output: number; after: number }[] = [];
  let length = d.systemTokens;
  for (const [i, { user, output, think }] of d.turns.entries()) {
    const prompt = Math.min(MAX_LENGTH - 1, length + Math.max(1, Math.round(scale * user)));
    const answer = Math.min(MAX_LENGTH - prompt, Math.max(1, Math.round(scale * output)));
    sizes.push({ prompt, output: answer, after: i === 0 ? Math.floor(arrival) : think });
    length = prompt + answer;
    if (length >= MAX_LENGTH - 1) break;
  }
  const { system, systemTokens, kind } = d;
  const width = kind === "single" ? 1 : WIDTH;
  const chain: Request[] = [];
  for (const size of sizes.toReversed())
    chain.unshift({ conversation, system, systemTokens, kind, width, ...size, next: chain[0] });
  return chain;
}
/** Tokens of a request in one of its sequences when it has been answered. */
export function lengthOf({ prompt, output }: Request): number {
  return prompt + output;
}

/** 31 bits that depend on all of both numbers: the finaliser of MurmurHash3 (Appleby 2011) over their sum. */
export function mix(a: number, b: number): number {
  let h = (Math.imul(a, 0x9e3779b1) + b) | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 1;
}
/**
 * The token of a request at a position in its sequence number `branch`: that of its system prompt, or of its conversation, whatever turn
 * it is, or, in the output of further sequences, one of theirs.
 */
export function tokenAt(request: Request, branch: number, position: number): number {
  const { conversation, system, systemTokens, prompt } = request;
  if (position < systemTokens) return mix(-1 - system, position);
  return mix(conversation, position >= prompt ? branch * MAX_LENGTH + position : position);
}
