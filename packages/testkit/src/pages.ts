import { type PagedView, type Pages, showPages, Tensor } from "@heed/tensor";
import { TestkitError } from "./errors.ts";

/** The same view, known to be of float pages. Throws TestkitError when they are quantised. */
export function floatView<V extends PagedView<Pages>>(view: V): V & PagedView {
  const { kPages, vPages } = view;
  if (kPages instanceof Tensor && vPages instanceof Tensor) return view as V & PagedView;
  throw new TestkitError("argument", `the pages are ${showPages(kPages)}; this test reads floats`);
}
