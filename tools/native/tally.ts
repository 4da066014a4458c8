/** Counting the checks of `bun run test:native`. */

/** Prints each check and keeps the counts of the last line. */
export class Tally {
  passed = 0;
  failed = 0;
  skipped = 0;
  /** One check with the findings against it. */
  check(name: string, against: readonly string[]): void {
    if (against.length === 0) this.passed++;
    else this.failed++;
    console.log(
      `${against.length === 0 ? "ok  " : "FAIL"} ${name}${against.length > 0 ? `: ${against.join(", ")}` : ""}`,
    );
  }
  skip(name: string): void {
    this.skipped++;
    console.log(`skip ${name}`);
  }
  /** One native test program, whose last line reads `N passed, M failed`. */
  program(name: string, exitCode: number | null, output: string): void {
    const [, passed, failed] = /(\d+) passed, (\d+) failed\s*$/.exec(output) ?? [];
    this.passed += Number(passed ?? 0);
    this.failed += Number(failed ?? 0);
    const crashed = passed === undefined || (exitCode !== 0 && failed === "0");
    if (crashed) this.failed++;
    const good = exitCode === 0 && !crashed;
    console.log(good ? `ok   ${name}: ${passed} checks` : `FAIL ${name}: exit code ${exitCode}\n${output}`);
  }
}
