import { type Engine, getEngine, registerEngine } from "@heed/tensor";
import { createPortableEngine } from "./portable/engine.ts";

registerEngine("portable", () => createPortableEngine());

/** The engine in TypeScript. */
export function portable(): Engine {
  return getEngine("portable");
}
