import type { HeedError } from "@heed/tensor";
import { expect, test } from "bun:test";

/** What must be refused, and the error's class with a part of its words. */
export type Misuse = readonly [act: () => unknown, type: new (message: string) => HeedError, words: string];

/**
 * Registers a test for each misuse: a typed error of that class, with a code, an "[operation]" in front, the offending values in
 * `details`, and the given words.
 */
export function refuses(cases: Readonly<Record<string, Misuse>>): void {
  for (const [name, [act, type, words]] of Object.entries(cases)) {
    test(`refuses ${name}`, () => {
      let thrown: unknown;
      try {
        act();
      } catch (error) {
        thrown = error;
      }
      expect(thrown).toBeInstanceOf(type);
      const error = thrown as HeedError;
      expect(error.code).toMatch(/^HEED_[A-Z_]+$/);
      expect(error.message).toContain(words);
      expect(error.message).toMatch(/^\[[\w. ]+\] /);
      expect(Object.keys(error.details).length).toBeGreaterThan(0);
    });
  }
}
