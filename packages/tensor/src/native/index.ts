/** The parameter blocks that native libraries take: one format, whichever engine's library it is. For engines. */
export { writeAttention, writeAttentionBackward, writePagedAttention, writeScores } from "./attention.ts";
export { Block } from "./block.ts";
export {
  BINARY_CODE,
  type MatmulOperands,
  REDUCE_CODE,
  UNARY_CODE,
  writeBinary,
  writeCopy,
  writeGather,
  writeMatmul,
  writeReduce,
  writeScatterAdd,
  writeSoftmax,
  writeUnary,
} from "./core.ts";
export { elfDefect } from "./elf.ts";
export { formatOf, writeKvAppend, writePages, writeSealPages } from "./pages.ts";
export { writeLinear, writeNormRopeAppend, writeRmsNorm, writeRmsNormBackward, writeRope } from "./rows.ts";
export * from "./structs.ts";
