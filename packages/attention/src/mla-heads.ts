import { concat, copyInto, type FloatDType, rmsNorm, rmsNormBackward, sum, type Tensor } from "@heed/tensor";
import { joinHeads, splitHeads } from "./gqa-heads.ts";
import { type LatentConfig, queryInput } from "./mla-options.ts";
import { Projections } from "./projections.ts";
import type { Positions, RotaryEmbedding } from "./rope.ts";

type Floats = Tensor<FloatDType>;

/** What tokens become before keys and values are expanded. */
export interface LatentRows {
  readonly q: Floats; // [..., H, Dn + Dr], rotated
  readonly latent: Floats; // [..., R], normalised
  readonly rotaryKey: Floats; // [..., Dr], rotated
  readonly pass: LatentRowsPass;
}
/** What {@link LatentProjections.forward} leaves for its backward pass. */
export interface LatentRowsPass {
  readonly x: Floats;
  readonly positions: Positions | undefined;
  readonly compressed: Floats; // [..., R + Dr]
  /** The queries' latent row before and after its norm, [..., Rq], where there is one. */
  readonly query: { readonly before: Floats; readonly after: Floats } | undefined;
}
/** Keys and values of every head. */
export interface ExpandedRows {
  readonly k: Floats; // [..., H, Dn + Dr]
  readonly v: Floats; // [..., H, Dv]
}

/**
 * How tokens become queries, latent rows and rotary keys, and these keys and values. Results belong to the caller's scope; gradients are
 * written with `=`, those of parameters into the map that is passed in, biases that the layer does not have among them.
 */
export class LatentProjections {
  readonly #config: LatentConfig;
  readonly #parameters: ReadonlyMap<string, Tensor>;
  readonly #rope: RotaryEmbedding | undefined;
  readonly #input: Projections; // x to the queries (or their latent row) and to [c, r] before norm and rotation
  readonly #query: Projections | undefined; // the queries' latent row to the queries
  readonly #expand: Projections; // c to keys and values

  /** Keeps the given handles, which stay the caller's to dispose. */
  constructor(
    config: LatentConfig,
    parameters: ReadonlyMap<string, Tensor>,
    rope: RotaryEmbedding | undefined,
  ) {
    const project = (...names: string[]): Projections =>
      new Projections(
        names.map((name) => ({
          weight: parameters.get(`${name}.weight`)!,
          bias: parameters.get(`${name}.bias`),
        })),
      );
    this.#config = config;
    this.#parameters = parameters;
    this.#rope = rope;
    this.#input = project(queryInput(config), "kv_a_proj_with_mqa");
    this.#query = config.qLoraRank === null ? undefined : project("q_b_proj");
    this.#expand = project("kv_b_proj");
  }
  /** x [..., hidden] as queries, latent rows and rotary keys. Errors as `linear` and the rotation's. */
  forward(x: Tensor, positions: Positions | undefined): LatentRows {
    const [first, compressed] = this.#input.forward(x as Floats) as [Floats, Floats];
    const { kvLoraRank, qkNopeHeadDim, qkRopeHeadDim } = this.#config;
    const query = this.#query && { before: first, after: this.#norm("q_a_layernorm", first) };
    const flat = query === undefined ? first : this.#query!.forward(query.after)[0]!;
    const q = splitHeads(flat, qkNopeHeadDim + qkRopeHeadDim);
    const latent = this.#norm("kv_a_layernorm", compressed.slice(-1, 0, kvLoraRank) as Floats);
    const shared = compressed.slice(-1, kvLoraRank).unsqueeze(-2) as Floats;
    const rotaryKey = this.#turn(shared, positions).squeeze(-2) as Floats;
    const turning = q.slice(-1, qkNopeHeadDim) as Floats;
    // In place: q is this call's own.
    if (this.#rope !== undefined) copyInto(this.#turn(turning, positions), turning);
    return { q, latent, rotaryKey, pass: { x: x as Floats, positions, compressed, query } };
  }
  /** Keys and values of every head for latent rows [..., R] and rotary keys [..., Dr]. */
  expand(latent: Tensor, rotaryKey: Tensor): ExpandedRows {
    const { numHeads, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = this.#config;
    const kv = splitHeads(this.#expand.forward(latent as Floats)[0]!, qkNopeHeadDim + vHeadDim);
    const shared = rotaryKey.unsqueeze(-2).broadcastTo([...kv.shape.slice(0, -2), numHeads, qkRopeHeadDim]);
    return {
      k: concat([kv.slice(-1, 0, qkNopeHeadDim), shared as Floats], -1),
      v: kv.slice(-1, qkNopeHeadDim) as Floats,
    };
  }
  /** Gradients [..., R] and [..., Dr] for those of keys and values. */
  expandBackward(
    latent: Tensor,
    d: { readonly k: Tensor; readonly v: Tensor },
    found: Map<string, Tensor>,
  ): { readonly latent: Tensor; readonly rotaryKey: Tensor } {
    const { qkNopeHeadDim } = this.#config;
    const { x, parts } = this.#expand.backward(latent, [
      joinHeads(concat([d.k.slice(-1, 0, qkNopeHeadDim), d.v], -1)),
    ]);
    keep(found, "kv_b_proj", parts[0]!);
    return { latent: x, rotaryKey: sum(d.k.slice(-1, qkNopeHeadDim) as Floats, { axes: [-2] }) };
  }
  /** The gradient of x for those of {@link forward}'s results. Turns d.q in place. */
  backward(
    pass: LatentRowsPass,
    d: Pick<LatentRows, "q" | "latent" | "rotaryKey">,
    found: Map<string, Tensor>,
  ): Tensor {
    const { kvLoraRank, qkNopeHeadDim } = this.#config;
    const before = pass.compressed.slice(-1, 0, kvLoraRank);
    const dShared = this.#turnBack(d.rotaryKey.unsqueeze(-2) as Floats, pass.positions).squeeze(-2);
    const dCompressed = concat([this.#normBackward("kv_a_layernorm", before, d.latent, found), dShared], -1);
    const turning = d.q.slice(-1, qkNopeHeadDim) as Floats;
    if (this.#rope !== undefined) copyInto(this.#turnBack(turning, pass.positions), turning);
    let dQuery: Tensor = joinHeads(d.q);
    if (this.#query !== undefined) {
      const query = this.#query.backward(pass.query!.after, [dQuery]);
      keep(found, "q_b_proj", query.parts[0]!);
      dQuery = this.#normBackward("q_a_layernorm", pass.query!.before, query.x, found);
    }
    const input = this.#input.backward(pass.x, [dQuery, dCompressed]);
    [queryInput(this.#config), "kv_a_proj_with_mqa"].forEach((name, i) => keep(found, name, input.parts[i]!));
    return input.x;
  }
  #norm(name: string, x: Floats): Floats {
    return rmsNorm(x, this.#parameters.get(`${name}.weight`), { eps: this.#config.normEps });
  }
  #normBackward(name: string, x: Tensor, dOut: Tensor, found: Map<string, Tensor>): Tensor {
    const weight = this.#parameters.get(`${name}.weight`);
    const g = rmsNormBackward(x, weight, dOut, { eps: this.#config.normEps });
    found.set(`${name}.weight`, g.weight!);
    return g.x;
  }
  #turn(x: Floats, positions: Positions | undefined): Floats {
    return this.#rope === undefined ? x : this.#rope.apply(x, positions);
  }
  #turnBack(dOut: Floats, positions: Positions | undefined): Floats {
    return this.#rope === undefined ? dOut : this.#rope.applyBackward(dOut, positions);
  }
  [Symbol.dispose](): void {
    for (const part of [this.#input, this.#query, this.#expand]) part?.[Symbol.dispose]();
  }
}
function keep(
  found: Map<string, Tensor>,
  name: string,
  g: { readonly weight: Tensor; readonly bias: Tensor },
): void {
  found.set(`${name}.weight`, g.weight).set(`${name}.bias`, g.bias);
}
