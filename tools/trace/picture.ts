import type { TraceHeader } from "@heed/kvcache";
import { picture, poolArea } from "./chart.ts";
import type { Sample } from "./samples.ts";

/** "group 0: pages of 4 tokens, window 5, 3 sinks" */
function titleOf({ pageSize, window, sinks }: TraceHeader["groups"][number], n: number): string {
  const kept = window === null ? "all tokens kept" : `window of ${window}, ${sinks} sinks`;
  return `Group ${n}: pages of ${pageSize} tokens, ${kept}`;
}
/** The pools over a trace as SVG, a panel for each group; light or dark as the viewer prefers. */
export function poolPicture({ groups }: TraceHeader, samples: readonly Sample[], title: string): string {
  const last = samples.at(-1)?.command ?? 1;
  const panels = groups.map((group, n) => ({
    title: titleOf(group, n),
    xLabel: "command",
    yLabel: `pages, of ${group.maxPages}`,
    high: group.maxPages,
    last,
    draw: poolArea.bind(undefined, samples, n),
  }));
  return picture(title, panels);
}
