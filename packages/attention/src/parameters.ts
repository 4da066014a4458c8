import {
  ArgumentError,
  DeviceError,
  DTypeError,
  isFloat,
  type Shape,
  ShapeError,
  show,
  type Tensor,
  unscoped,
} from "@heed/tensor";

/** Parameters by name, as a layer takes them. */
export type Parameters = ReadonlyMap<string, Tensor> | Readonly<Record<string, Tensor>>;

/** The names and shapes of a layer's parameters. */
export type ParameterShapes = ReadonlyMap<string, Shape>;

/**
 * Given parameters in the order of `shapes`. Throws, naming the parameter: ArgumentError when one is missing
 * or unknown, ShapeError, DTypeError unless it is a float, DeviceError unless all live on one engine,
 * DisposedError.
 */
export function checkParameters(
  what: string,
  given: Parameters,
  shapes: ParameterShapes,
): Map<string, Tensor> {
  const tensors = new Map(given instanceof Map ? given : Object.entries(given)) as Map<string, Tensor>;
  for (const name of tensors.keys()) {
    if (!shapes.has(name)) {
      const known = [...shapes.keys()].join(", ");
      throw new ArgumentError(
        `[${what}] there is no parameter "${name}" under these options; they call for ${known}`,
        { name },
      );
    }
  }
  let first: Tensor | undefined;
  const checked = new Map<string, Tensor>();
  for (const [name, shape] of shapes) {
    const t = tensors.get(name);
    const wanted = `[${shape.join(", ")}]`;
    if (t === undefined) {
      throw new ArgumentError(`[${what}] parameter "${name}" of shape ${wanted} is missing`, {
        name,
        shape,
        given: [...tensors.keys()],
      });
    }
    t.check();
    if (t.shape.join() !== shape.join()) {
      throw new ShapeError(`[${what}] parameter "${name}" must be ${wanted}; got ${show(t)}`, {
        name,
        shape,
        got: t.shape,
      });
    }
    if (!isFloat(t.dtype))
      throw new DTypeError(`[${what}] parameter "${name}" must be a float; got ${show(t)}`, {
        name,
        dtype: t.dtype,
      });
    first ??= t;
    if (t.engine !== first.engine) {
      throw new DeviceError(
        `[${what}] parameters must live on one engine; "${name}" is on "${t.engine.name}", others on "${first.engine.name}"`,
        { name, engines: [first.engine.name, t.engine.name] },
      );
    }
    checked.set(name, t);
  }
  return checked;
}
/** Handles of the owner's own on the same memory, which no scope disposes. */
export function ownParameters(parameters: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  return unscoped(() => new Map([...parameters].map(([name, t]) => [name, t.alias()])));
}
/** Throws DTypeError unless every named parameter has the dtype of x, as gradients need. */
export function checkTrainable(what: string, x: Tensor, parameters: ReadonlyMap<string, Tensor>): void {
  for (const [name, t] of parameters) {
    if (t.dtype === x.dtype) continue;
    throw new DTypeError(
      `[${what}] gradients need parameters of the input's dtype; got x ${show(x)} and "${name}" ${show(t)}; convert with cast()`,
      { name, dtypes: [x.dtype, t.dtype] },
    );
  }
}
