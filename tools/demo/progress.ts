/** A bar that a terminal redraws in place; elsewhere a line every tenth of the way. */
export class Progress {
  readonly #total: number;
  readonly #stream: NodeJS.WriteStream;
  #lastTenth = -1;
  constructor(total: number, stream: NodeJS.WriteStream = process.stderr) {
    this.#total = total;
    this.#stream = stream;
  }
  /** Shows that `done` of the total are done, with a note beside. */
  show(done: number, note: string): void {
    const share = done / this.#total;
    const bar = "█".repeat(Math.round(share * 24)).padEnd(24, "░");
    const line = `${bar} ${done}/${this.#total}  ${note}`;
    if (this.#stream.isTTY) {
      this.#stream.write(`\r${line}\x1b[K${done === this.#total ? "\n" : ""}`);
      return;
    }
    const tenth = Math.floor(share * 10);
    if (tenth === this.#lastTenth) return;
    this.#lastTenth = tenth;
    this.#stream.write(`${line}\n`);
  }
}
