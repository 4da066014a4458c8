/** Loads the library at a path and prints what came of it, as JSON. */
import { loadNative } from "../../src/native.ts";

try {
  const native = loadNative(process.argv[2]);
  console.log(JSON.stringify({ isa: String(native.symbols.heed_isa()) }));
} catch (error) {
  const { name, code, message } = error as Error & { code: string };
  console.log(JSON.stringify({ name, code, message }));
}
