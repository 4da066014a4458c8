/** Pictures as SVG text. Colours are readable on white and for most kinds of colour blindness (viridis, Smith and van der Walt 2015). */
const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];

/** Text for an SVG element. */
export function escape(text: string): string {
  return text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]!);
}
function channel(hex: string, at: number): number {
  return Number.parseInt(hex.slice(at, at + 2), 16);
}
/** The colour of a share 0 .. 1. */
function colour(share: number): string {
  const x = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const i = Math.min(VIRIDIS.length - 2, Math.floor(x));
  const mix = [1, 3, 5].map((at) =>
    Math.round(channel(VIRIDIS[i]!, at) * (1 - (x - i)) + channel(VIRIDIS[i + 1]!, at) * (x - i)),
  );
  return `#${mix.map((c) => c.toString(16).padStart(2, "0")).join("")}`;
}
function page(width: number, height: number, body: string): string {
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="system-ui, sans-serif">`;
  return `${head}<rect width="100%" height="100%" fill="#fff"/>${body}</svg>\n`;
}
/** Round steps for an axis of about five ticks. */
export function ticks(low: number, high: number): number[] {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= rough)!;
  const out: number[] = [];
  for (let t = Math.ceil(low / step) * step; t <= high + 1e-9; t += step) out.push(Number(t.toPrecision(6)));
  return out;
}
/** A line of the loss chart. */
export interface Level {
  readonly label: string;
  readonly value: number;
  readonly colour: string;
}
/** The training loss by step, in bits per byte, with levels to judge it by. */
export function lossChart(losses: readonly number[], levels: readonly Level[]): string {
  const [left, top, width, height] = [56, 40, 660, 320];
  const values = [...losses, ...levels.map((l) => l.value)];
  const [low, high] = [Math.floor(Math.min(...values)), Math.ceil(Math.max(...values))];
  const x = (step: number): string => (left + (step / Math.max(1, losses.length - 1)) * width).toFixed(1);
  const y = (loss: number): string => (top + ((high - loss) / (high - low || 1)) * height).toFixed(1);
  const grid = ticks(low, high).map(
    (t) =>
      `<line x1="${left}" x2="${left + width}" y1="${y(t)}" y2="${y(t)}" stroke="#e4e4e4"/><text x="${left - 8}" y="${y(t)}" dy=".35em" text-anchor="end" font-size="12" fill="#555">${t}</text>`,
  );
  const steps = ticks(0, losses.length - 1).map(
    (t) =>
      `<text x="${x(t)}" y="${top + height + 20}" text-anchor="middle" font-size="12" fill="#555">${t}</text>`,
  );
  const lowest = Math.min(...levels.map((l) => l.value)); // its label stands below, so that close levels stay readable
  const lines = levels.map(
    (l) =>
      `<line x1="${left}" x2="${left + width}" y1="${y(l.value)}" y2="${y(l.value)}" stroke="${l.colour}" stroke-dasharray="6 4"/><text x="${left + width}" y="${y(l.value)}" dy="${l.value === lowest ? "1.2em" : "-.5em"}" text-anchor="end" font-size="12" fill="${l.colour}">${escape(l.label)} ${l.value.toFixed(2)}</text>`,
  );
  const points = losses.map((loss, i) => `${x(i)},${y(loss)}`).join(" ");
  const curve = `<polyline points="${points}" fill="none" stroke="#2a788e" stroke-width="1.5"/>`;
  const title = `<text x="${left}" y="24" font-size="15" font-weight="600">Training loss, bits per byte</text><text x="${left + width / 2}" y="${top + height + 40}" text-anchor="middle" font-size="12" fill="#555">step</text>`;
  return page(
    left + width + 24,
    top + height + 56,
    title + grid.join("") + steps.join("") + lines.join("") + curve,
  );
}
/** Probabilities of one head, [length, length] row-major. */
export interface HeadMap {
  readonly layer: number;
  readonly head: number;
  readonly probabilities: Float32Array;
}
function axisLabel(character: string): string {
  return escape(character === "\n" ? "⏎" : character === " " ? "␣" : character);
}
function headMap({ layer, head, probabilities }: HeadMap, text: readonly string[], cell: number): string {
  const n = text.length;
  const size = n * cell;
  const parts = [`<text x="0" y="-20" font-size="12" font-weight="600">layer ${layer}, head ${head}</text>`];
  for (let i = 0; i < n; i++) {
    const at = i * cell + cell / 2;
    parts.push(`<text x="-4" y="${at}" dy=".35em" text-anchor="end">${axisLabel(text[i]!)}</text>`);
    parts.push(`<text x="${at}" y="-5" text-anchor="middle">${axisLabel(text[i]!)}</text>`);
    for (let j = 0; j <= i; j++) {
      const p = probabilities[i * n + j]!;
      const hint = `<title>${axisLabel(text[i]!)} reads ${axisLabel(text[j]!)}: ${(100 * p).toFixed(1)} %</title>`;
      parts.push(
        `<rect x="${j * cell}" y="${i * cell}" width="${cell}" height="${cell}" fill="${colour(Math.sqrt(p))}">${hint}</rect>`,
      );
    }
  }
  return `${parts.join("")}<rect width="${size}" height="${size}" fill="none" stroke="#bbb"/>`;
}
/** One map per head, a row per layer: which characters (columns) each character (rows) reads. */
export function attentionMaps(maps: readonly HeadMap[], text: readonly string[]): string {
  const cell = 9;
  const size = text.length * cell;
  const layers = new Set(maps.map((m) => m.layer)).size;
  const columns = maps.length / layers;
  const pitch = { x: size + 36, y: size + 56 };
  const body = maps.map((map, i) => {
    const [x, y] = [32 + (i % columns) * pitch.x, 84 + Math.floor(i / columns) * pitch.y];
    return `<g transform="translate(${x} ${y})" font-size="8" fill="#333">${headMap(map, text, cell)}</g>`;
  });
  const legend = VIRIDIS.map(
    (c, i) => `<rect x="${32 + i * 22}" y="36" width="22" height="8" fill="${c}"/>`,
  ).join("");
  const title = `<text x="32" y="24" font-size="15" font-weight="600">Attention by head</text>${legend}<text x="${40 + VIRIDIS.length * 22}" y="44" font-size="11" fill="#555">0 to 100 % of a row's attention (square-root scale); rows read columns</text>`;
  return page(32 + columns * pitch.x, 84 + layers * pitch.y, title + body.join(""));
}
