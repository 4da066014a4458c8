import type { KvCache, PrefixMatch, Sequence } from "@heed/kvcache";
import { mix, type Request, tokenAt } from "./workload.ts";

/** A request and the tokens that its first sequence begins with: its prompt, or more when it has been put off. */
export interface Waiting {
  readonly request: Request;
  readonly ids: Int32Array;
}
/** A request that has just arrived. */
export function arrived(request: Request): Waiting {
  return { request, ids: idsOf(request, request.prompt) };
}
function idsOf(request: Request, length: number): Int32Array {
  const ids = new Int32Array(length);
  for (let position = 0; position < length; position++) ids[position] = tokenAt(request, 0, position);
  return ids;
}

/** A request that is being answered. */
export class Running {
  readonly request: Request;
  /** One while the prompt is computed, then as many as the request is wide. */
  readonly sequences: Sequence[];
  readonly #ids: Int32Array;
  constructor(cache: KvCache, { request, ids }: Waiting, match: PrefixMatch) {
    this.request = request;
    this.#ids = ids;
    this.sequences = [cache.open({ match })];
  }
  /** Tokens of each sequence. */
  get length(): number {
    return this.sequences[0]!.length;
  }
  /** Tokens that are to be computed before the first is answered. */
  get left(): number {
    return Math.max(0, this.#ids.length - this.length);
  }
  get isAnswered(): boolean {
    return this.length >= this.request.prompt + this.request.output;
  }
  /** The id of the next token of a sequence but for `ahead` others. */
  idAt(branch: number, ahead: number): number {
    const position = this.length + ahead;
    return position < this.#ids.length ? this.#ids[position]! : tokenAt(this.request, branch, position);
  }
  /** After a step: splits up where the prompt is done, and lets beams die and split. */
  branch(): void {
    const { request, sequences } = this;
    if (request.width === 1 || this.left > 0) return;
    if (sequences.length < request.width) {
      sequences.push(...sequences[0]!.fork(request.width - 1));
      return;
    }
    const chance = mix(request.conversation, -this.length);
    if (request.kind !== "beams" || chance % 4 > 0) return;
    const [dies, splits] = [(chance >> 2) % request.width, (chance >> 8) % request.width];
    if (dies === splits) return;
    sequences[dies]!.release();
    [sequences[dies]] = sequences[splits]!.fork() as [Sequence];
  }
  release(): void {
    for (const sequence of this.sequences) sequence.release();
  }
  /** Gives its pages back. It goes on where it was; several sequences begin again from their prompt. */
  putOff(): Waiting {
    const { request, length } = this;
    this.release();
    const ids = request.width > 1 ? this.#ids : idsOf(request, Math.max(length, this.#ids.length));
    return { request, ids };
  }
}
