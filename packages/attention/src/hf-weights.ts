import {
  allocate,
  DTypeError,
  type Engine,
  type FloatDType,
  FormatError,
  getEngine,
  scope,
  type Shape,
  ShapeError,
  type Tensor,
} from "@heed/tensor";
import { parameterShapes, resolveHeadConfig } from "./gqa-options.ts";
import { GroupedQueryAttention } from "./gqa.ts";
import { HFCheckpoint } from "./hf-checkpoint.ts";
import { attentionConfigFromHF } from "./hf-config.ts";
import { latentParameterShapes, resolveLatentConfig } from "./mla-options.ts";
import { MultiHeadLatentAttention } from "./mla.ts";
import type { ParameterShapes } from "./parameters.ts";

/** Options of {@link loadTensor} and {@link loadAttention}. */
export interface LoadOptions {
  /** Convert to this dtype. Default: as stored. */
  readonly dtype?: FloatDType | undefined;
  /** An engine or the name of a registered one. Default the default engine. */
  readonly engine?: Engine | string | undefined;
  /**
   * Map weights from their files instead of copying them, where the dtype is as stored and `SafetensorsFile.isMappable`; others are
   * copied, and `weight.storage.isMapped` tells which is which. **The risk:** when anybody shortens a file while a weight of it lives,
   * reading what is gone ends the process. Default false.
   */
  readonly map?: boolean | undefined;
}
const STORED: Readonly<Record<string, FloatDType>> = {
  F64: "float64",
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
};
/** Where the layers of a decoder lie, alone or within a multimodal model, by age of the layout. */
const PREFIXES = ["model.", "", "language_model.model.", "model.language_model."];
/** Tables of old checkpoints, which are computed here. */
const IGNORED = /^rotary_emb\./;
/** Runs of parameters that one product serves when they are neighbours in memory. */
const NEIGHBOURS = [
  ["q_proj", "k_proj", "v_proj"],
  ["q_proj", "kv_a_proj_with_mqa"],
  ["q_a_proj", "kv_a_proj_with_mqa"],
].flatMap((maps) => ["weight", "bias"].map((part) => maps.map((map) => `${map}.${part}`)));

function engineOf(engine: Engine | string | undefined): Engine {
  return typeof engine === "object" ? engine : getEngine(engine);
}
/** The dtype of a stored tensor of the given shape. Throws ShapeError, DTypeError, FormatError. */
function storedDType(checkpoint: HFCheckpoint, name: string, shape?: Shape): FloatDType {
  const { format, shape: stored } = checkpoint.entry(name);
  const dtype = Object.hasOwn(STORED, format) ? STORED[format] : undefined;
  if (dtype === undefined) {
    throw new DTypeError(
      `[huggingface] "${name}" is stored as ${format}; ${Object.keys(STORED).join(", ")} can be loaded, quantised weights cannot`,
      { name, format },
    );
  }
  if (shape !== undefined && stored.join() !== shape.join()) {
    throw new ShapeError(
      `[huggingface] "${name}" must be [${shape.join(", ")}], as config.json says; it is stored as [${stored.join(", ")}]`,
      { name, shape, stored },
    );
  }
  return dtype;
}
/**
 * One tensor of a checkpoint, of the caller's scope. Throws FormatError when there is none, DTypeError when it is no
 * float (quantised), ShapeError unless it has `shape`, where given; OutOfMemoryError.
 */
export function loadTensor(
  checkpoint: HFCheckpoint,
  name: string,
  options: LoadOptions & { readonly shape?: Shape | undefined } = {},
): Tensor<FloatDType> {
  const stored = storedDType(checkpoint, name, options.shape);
  const { dtype = stored } = options;
  const engine = engineOf(options.engine);
  const file = checkpoint.file(name);
  if (dtype === stored) return file.tensor(name, { engine, map: options.map }) as Tensor<FloatDType>;
  return scope(() => {
    const converted = allocate(engine, dtype, file.entries.get(name)!.shape.slice());
    file.copyInto(name, converted);
    return converted as Tensor<FloatDType>;
  });
}
/** What the names of a layer's parameters start with in the checkpoint. Throws FormatError. */
function prefixOf(checkpoint: HFCheckpoint, layer: number, shapes: ParameterShapes): string {
  const tails = PREFIXES.map((prefix) => `${prefix}layers.${layer}.self_attn.`);
  const prefix = tails.find((tail) => [...shapes.keys()].some((name) => checkpoint.has(`${tail}${name}`)));
  if (prefix === undefined) {
    throw new FormatError(
      `[huggingface] ${checkpoint.folder} has no attention weights of layer ${layer}; looked for ${tails.join(", ")}`,
      { folder: checkpoint.folder, layer },
    );
  }
  // A weight that the config does not call for would be left out without a word, a bias for example.
  for (const name of checkpoint.names) {
    const rest = name.startsWith(prefix) ? name.slice(prefix.length) : "";
    if (rest === "" || IGNORED.test(rest) || shapes.has(rest)) continue;
    throw new FormatError(
      `[huggingface] "${name}" is not a weight that config.json calls for; it calls for ${[...shapes.keys()].join(", ")}`,
      { name },
    );
  }
  return prefix;
}
/** Loads neighbours into one allocation, unless one is not called for, their dtypes differ, or all can be mapped. */
function loadTogether(
  checkpoint: HFCheckpoint,
  prefix: string,
  names: readonly string[],
  shapes: ParameterShapes,
  options: LoadOptions,
  into: Map<string, Tensor>,
): void {
  if (!names.every((name) => shapes.has(name))) return;
  const engine = engineOf(options.engine);
  const stored = names.map((name) => storedDType(checkpoint, `${prefix}${name}`, shapes.get(name)!));
  const dtype = options.dtype ?? stored[0]!;
  if (options.dtype === undefined && stored.some((d) => d !== dtype)) return;
  const isMappable = (name: string, i: number): boolean =>
    stored[i] === dtype && checkpoint.file(`${prefix}${name}`).isMappable(`${prefix}${name}`, { engine });
  if (options.map === true && names.every(isMappable)) return;
  const rows = names.map((name) => shapes.get(name)![0]!);
  const total = rows.reduce((a, b) => a + b, 0);
  const all = allocate(engine, dtype, [total, ...shapes.get(names[0]!)!.slice(1)]);
  let at = 0;
  names.forEach((name, i) => {
    const part = all.slice(0, at, (at += rows[i]!));
    checkpoint.file(`${prefix}${name}`).copyInto(`${prefix}${name}`, part);
    into.set(name, part);
  });
}
/** All parameters of a layer, of the caller's scope. */
function loadParameters(
  checkpoint: HFCheckpoint,
  layer: number,
  shapes: ParameterShapes,
  options: LoadOptions,
): Map<string, Tensor> {
  const prefix = prefixOf(checkpoint, layer, shapes);
  const loaded = new Map<string, Tensor>();
  for (const names of NEIGHBOURS) loadTogether(checkpoint, prefix, names, shapes, options, loaded);
  for (const [name, shape] of shapes) {
    if (!loaded.has(name))
      loaded.set(name, loadTensor(checkpoint, `${prefix}${name}`, { ...options, shape }));
  }
  return loaded;
}
/**
 * The attention of one layer of a Hugging Face folder (see {@link HFCheckpoint}) or of a checkpoint that is open: options
 * by {@link attentionConfigFromHF}, weights from the shards that hold them. Separate q, k and v weights are laid side by
 * side, so that one product serves them; mapped ones (`map`) lie as in the file, and each has a product. Throws FormatError (a file, a field or a missing weight), UnsupportedError (a
 * field), DTypeError (quantised weights), ShapeError, ArgumentError, OutOfMemoryError and the system's own errors.
 */
export function loadAttention(
  from: string | HFCheckpoint,
  layer: number,
  options: LoadOptions = {},
): GroupedQueryAttention | MultiHeadLatentAttention {
  if (typeof from === "string") {
    using checkpoint = new HFCheckpoint(from);
    return loadAttention(checkpoint, layer, options);
  }
  const made = attentionConfigFromHF(from.config, layer);
  return scope(() => {
    const load = (shapes: ParameterShapes): Map<string, Tensor> =>
      loadParameters(from, layer, shapes, options);
    return made.operation === "GroupedQueryAttention"
      ? new GroupedQueryAttention(made.options, load(parameterShapes(resolveHeadConfig(made.options))))
      : new MultiHeadLatentAttention(
          made.options,
          load(latentParameterShapes(resolveLatentConfig(made.options))),
        );
  });
}
