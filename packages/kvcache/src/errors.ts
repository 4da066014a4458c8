import { type ErrorDetails, HeedError } from "@heed/tensor";

/** An operation at the wrong moment: a step that is closed, a sequence that is in another step. Code `HEED_STATE`. */
export class StateError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_STATE", message, details);
  }
}
/** The cache's books disagree with one another: a bug, here or in code that reached inside. Code `HEED_INVARIANT`. */
export class InvariantError extends HeedError {
  constructor(message: string, details?: ErrorDetails) {
    super("HEED_INVARIANT", message, details);
  }
}
