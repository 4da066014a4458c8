// A writer for the part of the ONNX protobuf format that single-operator models need. Field numbers are those of
// onnx/onnx.proto (IR version 10); the wire format is protobuf's: a key `field << 3 | wireType`, then the payload.

const VARINT = 0;
const LENGTH_DELIMITED = 2;
const FIXED_32 = 5;

const encoder = new TextEncoder();

/** Element types of `TensorProto.DataType`, by Heed's dtype names. */
export const onnxDType = { float32: 1, int32: 6 } as const;

/** A dtype the model writer can name. */
export type OnnxDType = keyof typeof onnxDType;

/** An attribute of a node: integers become INT, numbers wrapped as `{ float }` FLOAT. */
export type OnnxAttribute = number | { readonly float: number };

/** One operator: `""` among the inputs or outputs leaves that optional place empty. */
export interface OnnxNode {
  readonly op: string;
  readonly domain?: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes?: Readonly<Record<string, OnnxAttribute>>;
}

/** A graph input or output. A string dimension is symbolic, `[]` a scalar. */
export interface OnnxValue {
  readonly name: string;
  readonly dtype: OnnxDType;
  readonly shape: readonly (number | string)[];
}

/** A constant of the graph: its bytes are stored as little-endian raw data. */
export interface OnnxConstant {
  readonly name: string;
  readonly dtype: OnnxDType;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView;
}

/** A whole model: `opsets` maps a domain (`""` is ai.onnx) to its version. */
export interface OnnxModel {
  readonly nodes: readonly OnnxNode[];
  readonly inputs: readonly OnnxValue[];
  readonly outputs: readonly OnnxValue[];
  readonly constants?: readonly OnnxConstant[];
  readonly opsets: Readonly<Record<string, number>>;
}

type Chunk = readonly Uint8Array[];

/** A protobuf varint: groups of seven bits, low first; a negative number takes its 64-bit two's complement. */
export function varint(value: number): Uint8Array {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  while (rest >= 0x80n) {
    bytes.push(Number(rest & 0x7fn) | 0x80);
    rest >>= 7n;
  }
  bytes.push(Number(rest));
  return Uint8Array.from(bytes);
}

const key = (field: number, wireType: number): Uint8Array => varint((field << 3) | wireType);

const integer = (field: number, value: number): Chunk => [key(field, VARINT), varint(value)];

const float = (field: number, value: number): Chunk => [
  key(field, FIXED_32),
  new Uint8Array(Float32Array.of(value).buffer),
];

const bytes = (field: number, value: Uint8Array): Chunk => [
  key(field, LENGTH_DELIMITED),
  varint(value.byteLength),
  value,
];

const text = (field: number, value: string): Chunk => bytes(field, encoder.encode(value));

/** An embedded message. Chunks stay a list until the end, so a large constant is copied once. */
function message(field: number, ...parts: readonly Chunk[]): Chunk {
  const body = parts.flat();
  const length = body.reduce((sum, chunk) => sum + chunk.byteLength, 0);
  return [key(field, LENGTH_DELIMITED), varint(length), ...body];
}

/** `AttributeProto`: name 1, f 2, i 3, type 20 (FLOAT 1, INT 2). */
function attribute([name, value]: readonly [string, OnnxAttribute]): Chunk {
  return typeof value === "number"
    ? message(5, text(1, name), integer(3, value), integer(20, 2))
    : message(5, text(1, name), float(2, value.float), integer(20, 1));
}

/** `NodeProto`: input 1, output 2, name 3, op_type 4, attribute 5, domain 7. */
function node(value: OnnxNode, index: number): Chunk {
  return message(
    1,
    ...value.inputs.map((name) => text(1, name)),
    ...value.outputs.map((name) => text(2, name)),
    text(3, `${value.op}_${index}`),
    text(4, value.op),
    ...Object.entries(value.attributes ?? {}).map(attribute),
    text(7, value.domain ?? ""),
  );
}

/** `ValueInfoProto`: name 1, type 2 { tensor_type 1 { elem_type 1, shape 2 { dim 1 { dim_value 1 | dim_param 2 } } } }. */
function valueInfo(field: number, value: OnnxValue): Chunk {
  const dims = value.shape.map((dim) => message(1, typeof dim === "number" ? integer(1, dim) : text(2, dim)));
  const tensorType = message(1, integer(1, onnxDType[value.dtype]), message(2, ...dims));
  return message(field, text(1, value.name), message(2, tensorType));
}

/** `TensorProto`: dims 1, data_type 2, name 8, raw_data 9. */
function constant(value: OnnxConstant): Chunk {
  const { buffer, byteOffset, byteLength } = value.data;
  return message(
    5,
    ...value.shape.map((dim) => integer(1, dim)),
    integer(2, onnxDType[value.dtype]),
    text(8, value.name),
    bytes(9, new Uint8Array(buffer, byteOffset, byteLength)),
  );
}

/**
 * The bytes of `model` as a serialised `ModelProto`: ir_version 1, graph 7 { node 1, name 2, initializer 5, input 11,
 * output 12 }, opset_import 8 { domain 1, version 2 }.
 */
export function encodeModel(model: OnnxModel): Uint8Array {
  const graph = message(
    7,
    ...model.nodes.map(node),
    text(2, "graph"),
    ...(model.constants ?? []).map(constant),
    ...model.inputs.map((value) => valueInfo(11, value)),
    ...model.outputs.map((value) => valueInfo(12, value)),
  );
  const opsets = Object.entries(model.opsets).map(([domain, version]) =>
    message(8, text(1, domain), integer(2, version)),
  );
  return new Uint8Array(Buffer.concat([integer(1, 10), graph, ...opsets].flat() as Uint8Array[]));
}
