import { DeviceError } from "../core/errors.ts";
import type { Engine } from "./engine.ts";

const factories = new Map<string, () => Engine>();
const engines = new Map<string, Engine>();
let preferred: string | undefined;

/** Options of {@link registerEngine}. */
export interface RegisterOptions {
  /** Whether it may become the default by being the first; default true. False for a device that a machine may not have. */
  readonly isDefault?: boolean;
}
/**
 * Makes an engine available under a name; `create` runs when it is first asked for, so registering never loads anything. The default is
 * the first engine registered with `isDefault`, or the first of all where there is none. Registering a name again replaces it for later
 * look-ups.
 */
export function registerEngine(
  name: string,
  create: () => Engine,
  { isDefault = true }: RegisterOptions = {},
): void {
  factories.set(name, create);
  engines.delete(name);
  if (isDefault) preferred ??= name;
}
/** The names of the registered engines, in order of registration. */
export function engineNames(): string[] {
  return [...factories.keys()];
}
/** The engine of that name, or the default one. Throws DeviceError when there is none, or what its creation throws. */
export function getEngine(name: string | undefined = preferred ?? engineNames()[0]): Engine {
  if (name === undefined) {
    throw new DeviceError('[engine] no engine is registered; import "@heed/engine-cpu" first', {
      registered: [],
    });
  }
  const known = engines.get(name);
  if (known !== undefined) return known;
  const create = factories.get(name);
  if (create === undefined) {
    throw new DeviceError(
      `[engine] no engine "${name}" is registered; registered: ${engineNames().join(", ") || "none"}`,
      {
        name,
        registered: engineNames(),
      },
    );
  }
  const engine = create();
  engines.set(name, engine);
  return engine;
}
/** Makes `name` the engine of tensors created without one. Throws DeviceError when it is not registered or cannot be created. */
export function setDefaultEngine(name: string): Engine {
  const engine = getEngine(name);
  preferred = name;
  return engine;
}
