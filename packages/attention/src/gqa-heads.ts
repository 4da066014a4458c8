import {
  add,
  type BlockTableReader,
  type FloatDType,
  type NormOfHeads,
  normRopeAppend,
  rmsNorm,
  rmsNormBackward,
  type Shape,
  type Tensor,
  zeros,
} from "@heed/tensor";
import type { GroupedQueryAttentionConfig } from "./gqa-options.ts";
import { type LinearParameters, type ProjectionGradients, Projections } from "./projections.ts";
import type { Positions, RotaryEmbedding } from "./rope.ts";

type Floats = Tensor<FloatDType>;

/** [..., H * D] as [..., H, D]: a view. */
export function splitHeads(t: Tensor, headDim: number): Floats {
  return t.reshape([...t.shape.slice(0, -1), t.shape.at(-1)! / headDim, headDim]) as Floats;
}
/** [..., H, D] as [..., H * D], whatever the strides. */
export function joinHeads(t: Tensor): Floats {
  const [H, D] = t.shape.slice(-2) as [number, number];
  return t.contiguous().reshape([...t.shape.slice(0, -2), H * D]) as Floats;
}
/** Where the tokens of x and of a context stand. */
export interface Places {
  readonly x: Positions;
  readonly context: Positions;
}
/** Heads of one call. A layer over a context has no keys and values where none is given. */
export interface Heads {
  readonly q: Floats; // [..., Hq, D]
  readonly k: Floats | undefined; // [..., Hkv, D]
  readonly v: Floats | undefined; // [..., Hkv, D]
}
/** What {@link HeadProjections.forward} leaves for its backward pass. */
export interface HeadsPass {
  readonly x: Floats;
  readonly context: Floats | undefined;
  readonly at: Places;
  readonly q: Floats; // [..., Hq * D], before the norm
  readonly k: Floats | undefined; // [..., Hkv * D], before the norm
}
/** Gradients of {@link HeadProjections}. */
export interface HeadsGradients {
  readonly x: Tensor;
  readonly context: Tensor | undefined;
  /** Of every parameter that it reads; a bias that the layer does not have may be among them. */
  readonly parameters: Map<string, Tensor>;
}

/**
 * How tokens become the heads that attend: project, norm, rotate. Queries come from x; keys and values from x
 * too, or from a context. Results belong to the caller's scope.
 */
export class HeadProjections {
  readonly #config: GroupedQueryAttentionConfig;
  readonly #parameters: ReadonlyMap<string, Tensor>;
  readonly #rope: RotaryEmbedding | undefined;
  readonly #fromX: Projections;
  readonly #fromContext: Projections | undefined;
  readonly #names: { readonly x: readonly string[]; readonly context: readonly string[] };

  /** Keeps the given handles, which stay the caller's to dispose. */
  constructor(
    config: GroupedQueryAttentionConfig,
    parameters: ReadonlyMap<string, Tensor>,
    rope: RotaryEmbedding | undefined,
  ) {
    const { contextSize, tiedValue, mergedQkv, numHeads, numKvHeads, headDim } = config;
    this.#config = config;
    this.#parameters = parameters;
    this.#rope = rope;
    const kv = tiedValue ? ["k_proj"] : ["k_proj", "v_proj"];
    if (mergedQkv) this.#names = { x: ["qkv_proj"], context: [] };
    else if (contextSize === null) this.#names = { x: ["q_proj", ...kv], context: [] };
    else this.#names = { x: ["q_proj"], context: kv };
    const parts = (names: readonly string[]): LinearParameters[] =>
      names.map((name) => ({
        weight: parameters.get(`${name}.weight`)!,
        bias: parameters.get(`${name}.bias`),
      }));
    const rows = [numHeads, ...kv.map(() => numKvHeads)].map((heads) => heads * headDim);
    this.#fromX = new Projections(parts(this.#names.x), mergedQkv ? rows : undefined);
    this.#fromContext = contextSize === null ? undefined : new Projections(parts(this.#names.context));
  }
  /** Whether one matrix product serves all that has one input. */
  get isMerged(): boolean {
    return (this.#fromContext ?? this.#fromX).isMerged;
  }
  /** x [..., hidden] and, where the layer has one, a context [..., contextSize] as heads. Errors as `linear`. */
  forward(x: Tensor, context: Tensor | undefined, at: Places): Heads & { readonly pass: HeadsPass } {
    const [q, ...own] = this.#fromX.forward(x as Floats);
    const [k, v] = this.#fromContext === undefined ? own : this.#project(context);
    return {
      q: this.#queries(q!, at.x),
      ...this.#keysValues(k, v, at),
      pass: { x: x as Floats, context: context as Floats | undefined, at, q: q!, k },
    };
  }
  /**
   * The queries [T, Hq, D] of a step's tokens x [T, hidden]; their keys and values become rows of a layer of its cache, in the pass that
   * normalises and rotates them where the cache takes them so. The same bits as {@link forward} and the cache's `write`. Errors as these.
   */
  forwardInto(cache: BlockTableReader, layer: number, x: Tensor, at: Positions): Floats {
    const [q, k, v] = this.#fromX.forward(x as Floats) as [Floats, Floats, Floats | undefined];
    const { headDim, qkNorm } = this.#config;
    const [queries, keys, values] = [q, k, v ?? k].map((flat) => splitHeads(flat, headDim)) as [
      Floats,
      Floats,
      Floats,
    ];
    const made: Floats[] = [];
    if (this.#rope !== undefined || qkNorm !== null) {
      const options = { norm: this.#norms(), rope: this.#rope?.rotation(queries, at) };
      cache.writeWith?.(layer, (target) => {
        made.push(normRopeAppend(queries, keys, values, target, options));
      });
    }
    if (made[0] !== undefined) return made[0];
    const whole = this.#keysValues(k, v, { x: at, context: 0 });
    const turned = this.#queries(q, at);
    cache.write(layer, whole.k!, whole.v!);
    return turned;
  }
  /** The norms of q and k, with weights [D] or [H, D]. */
  #norms(): NormOfHeads | undefined {
    const { qkNorm, headDim, numHeads, numKvHeads } = this.#config;
    if (qkNorm === null) return undefined;
    const { eps, unitOffset, over } = qkNorm;
    const weight = (which: "q" | "k", heads: number): Tensor =>
      this.#parameters.get(`${which}_norm.weight`)!.reshape(over === "head" ? [headDim] : [heads, headDim]);
    return { q: weight("q", numHeads), k: weight("k", numKvHeads), eps, unitOffset };
  }
  /** Projected queries [..., Hq * D] as heads, normalised and rotated. */
  #queries(flat: Floats, at: Positions): Floats {
    return this.#rotate(this.#normalize("q", flat), at, true);
  }
  /** The keys and values of a context alone. Errors as `linear`. */
  keysValues(context: Tensor, at: Positions): { readonly k: Floats; readonly v: Floats } {
    const [k, v] = this.#project(context);
    return this.#keysValues(k, v, { x: 0, context: at }) as { readonly k: Floats; readonly v: Floats };
  }
  #project(context: Tensor | undefined): Floats[] {
    return context === undefined ? [] : this.#fromContext!.forward(context as Floats);
  }
  #keysValues(k: Floats | undefined, v: Floats | undefined, at: Places): Omit<Heads, "q"> {
    if (k === undefined) return { k, v: undefined };
    const where = this.#fromContext === undefined ? at.x : at.context;
    return {
      k: this.#rotate(this.#normalize("k", k), where, this.#rotatesKeys),
      v: splitHeads(v ?? k, this.#config.headDim),
    };
  }
  get #rotatesKeys(): boolean {
    return this.#fromContext === undefined || this.#config.rotateContext;
  }
  /** The steps of {@link forward} in reverse, for the gradients of the heads. Gradients are written with `=`. */
  backward({ x, context, at, q, k }: HeadsPass, d: Heads): HeadsGradients {
    const parameters = new Map<string, Tensor>();
    const dq = this.#normalizeBack("q", q, this.#rotateBack(d.q, at.x, true), parameters);
    const own = this.#fromContext === undefined;
    const kv: Tensor[] = [];
    if (d.k !== undefined && d.v !== undefined && k !== undefined) {
      const turned = this.#rotateBack(d.k, own ? at.x : at.context, this.#rotatesKeys);
      const dk = this.#normalizeBack("k", k, turned, parameters);
      const dv = joinHeads(d.v);
      kv.push(...(this.#config.tiedValue ? [add(dk, dv)] : [dk, dv]));
    }
    const found = this.#fromX.backward(x, own ? [dq, ...kv] : [dq]);
    this.#name(this.#names.x, found, parameters);
    if (own) return { x: found.x, context: undefined, parameters };
    if (context === undefined) {
      this.#untouched(parameters);
      return { x: found.x, context: undefined, parameters };
    }
    const other = this.#fromContext!.backward(context, kv);
    this.#name(this.#names.context, other, parameters);
    return { x: found.x, context: other.x, parameters };
  }
  #name(names: readonly string[], { parts, merged }: ProjectionGradients, into: Map<string, Tensor>): void {
    const found = this.#config.mergedQkv ? [merged!] : parts;
    names.forEach((name, i) =>
      into.set(`${name}.weight`, found[i]!.weight).set(`${name}.bias`, found[i]!.bias),
    );
  }
  /** Zeros for the parameters of a context that was not given. */
  #untouched(into: Map<string, Tensor>): void {
    const parts = this.#names.context.flatMap((name) => [`${name}.weight`, `${name}.bias`]);
    for (const name of [...parts, "k_norm.weight"]) {
      const t = this.#parameters.get(name);
      if (t !== undefined) into.set(name, zeros(t.shape as Shape, { dtype: t.dtype, engine: t.engine }));
    }
  }
  /** Projected rows [..., H * D] as heads [..., H, D], normalised where the layer does. */
  #normalize(which: "q" | "k", flat: Floats): Floats {
    const { qkNorm, headDim } = this.#config;
    if (qkNorm === null) return splitHeads(flat, headDim);
    const { eps, unitOffset, over } = qkNorm;
    const weight = this.#parameters.get(`${which}_norm.weight`);
    return over === "head"
      ? rmsNorm(splitHeads(flat, headDim), weight, { eps, unitOffset })
      : splitHeads(rmsNorm(flat, weight, { eps, unitOffset }), headDim);
  }
  #normalizeBack(which: "q" | "k", flat: Floats, d: Tensor, found: Map<string, Tensor>): Floats {
    const { qkNorm, headDim } = this.#config;
    if (qkNorm === null) return joinHeads(d);
    const { eps, unitOffset, over } = qkNorm;
    const name = `${which}_norm.weight`;
    const perHead = over === "head";
    const x = perHead ? splitHeads(flat, headDim) : flat;
    const g = rmsNormBackward(x, this.#parameters.get(name), perHead ? d : joinHeads(d), { eps, unitOffset });
    found.set(name, g.weight!);
    return perHead ? joinHeads(g.x) : (g.x as Floats);
  }
  #rotate(heads: Floats, at: Positions, turns: boolean): Floats {
    return this.#rope === undefined || !turns ? heads : this.#rope.apply(heads, at);
  }
  #rotateBack(d: Floats, at: Positions, turns: boolean): Floats {
    return this.#rope === undefined || !turns ? d : this.#rope.applyBackward(d, at);
  }
  /** Frees the handles on merged memory. */
  [Symbol.dispose](): void {
    this.#fromX[Symbol.dispose]();
    this.#fromContext?.[Symbol.dispose]();
  }
}
