// Warpgroup products in the emulation: against their definition in straight loops, and what kernels do wrong with them.
#include "emulation_check.h"

using namespace heed;
using namespace heed::test;

namespace {

constexpr int kDepth = 128;  // of the products below: 8 of 16, from two times 64 numbers
constexpr uint32_t kRowBytes = 128;

struct Operands {
  const uint16_t *a, *b;  // a [rows, kDepth]; b [columns, kDepth], or [kDepth, columns] of the transposed products
  const float* c;         // [rows, columns]
  float* out;
  int add;
};

}  // namespace

// x [rows, columns] into shared memory: 64 columns to 128-byte rows, all rows of these behind one another, swizzled.
static void load_tile(uint32_t byte, const uint16_t* x, int rows, int columns) {
  for (int i = thread_x(); i < rows * columns; i += block_threads()) {
    const int row = i / columns, column = i % columns;
    const uint32_t at = static_cast<uint32_t>(column / 64 * rows + row) * kRowBytes + (column % 64 / 8 ^ row % 8) * 16 + column % 8 * 2;
    shared<uint16_t>(byte + at, 1)[0] = x[i];
  }
}
// f(number of this thread, row, column of c) for all it holds.
template <int N, class F> static void for_held(float (&c)[N / 8][4], const F& f) {
  for (int n = 0; n < N / 8; n++)
    for (int e = 0; e < 4; e++) f(c[n][e], 16 * warp() + lane() / 4 + e / 2 * 8, 8 * n + lane() % 4 * 2 + e % 2);
}
template <int N> static void start(const Operands& args, float (&c)[N / 8][4]) {
  for_held<N>(c, [&](float& x, int row, int column) { x = args.c[row * N + column]; });
}
template <int N> static void finish(const Operands& args, float (&c)[N / 8][4]) {
  for_held<N>(c, [&](float& x, int row, int column) { args.out[row * N + column] = x; });
}
template <class T, int N> static void multiply(const Operands& args) {
  const int rows = block_threads() / 2;
  const uint32_t a_rows = shared_start() + warp() / 4 * 64 * kRowBytes, b_tile = rows * kDepth * 2;
  load_tile(0, args.a, rows, kDepth);
  load_tile(b_tile, args.b, N, kDepth);
  publish_shared();
  sync_block();
  float c[N / 8][4];
  start<N>(args, c);
  warpgroup_fence();
  for (int k = 0; k < kDepth / 16; k++) {
    const uint64_t a = matrix_descriptor(a_rows + k / 4 * rows * kRowBytes + k % 4 * 32, 16, 8 * kRowBytes);
    const uint64_t b = matrix_descriptor(shared_start() + b_tile + k / 4 * N * kRowBytes + k % 4 * 32, 16, 8 * kRowBytes);
    warpgroup_multiply<T, N>(c, a, b, args.add || k > 0);
  }
  warpgroup_commit();
  warpgroup_wait<0>();
  finish<N>(args, c);
}
template <class T, int N> static void multiply_transposed(const Operands& args) {
  load_tile(0, args.b, kDepth, N);
  publish_shared();
  sync_block();
  float c[N / 8][4];
  start<N>(args, c);
  uint32_t a[kDepth / 16][4];
  for (int k = 0; k < kDepth / 16; k++)
    for (int i = 0; i < 4; i++) {
      const uint16_t* pair = args.a + (16 * warp() + lane() / 4 + i % 2 * 8) * kDepth + 16 * k + lane() % 4 * 2 + i / 2 * 8;
      a[k][i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
  warpgroup_fence();
  for (int k = 0; k < kDepth / 16; k++) {
    const uint64_t b = matrix_descriptor(shared_start() + k * 16 * kRowBytes, kDepth * kRowBytes, 8 * kRowBytes);
    warpgroup_multiply_transposed<T, N>(c, a[k], b);
    if (k % 3 == 1) warpgroup_commit();
    if (k % 3 == 2) warpgroup_wait<1>(), warpgroup_fence();
  }
  warpgroup_commit();
  warpgroup_wait<0>();
  finish<N>(args, c);
}
#define PRODUCTS(T, N)                                                            \
  HEED_KERNEL(multiply_##T##_##N, Operands, 256) { multiply<T, N>(args); }        \
  HEED_KERNEL(transposed_##T##_##N, Operands, 256) { multiply_transposed<T, N>(args); }
PRODUCTS(f16, 64)
PRODUCTS(f16, 128)
PRODUCTS(f16, 256)
PRODUCTS(bf16, 64)
PRODUCTS(bf16, 128)
PRODUCTS(bf16, 256)

namespace {

struct Args {
  float* out;
  int n;
};
enum Way { kRight, kWrong };  // args.n: each kernel is right or wrong in one place

}  // namespace

// For the kernels below: a and b are ones, [64, 64] each, so that a product of 16 numbers is 16.
constexpr uint32_t kTile = 64 * kRowBytes, kOnes = 0x3f803f80;
static uint64_t tile(int n) { return matrix_descriptor(shared_start() + static_cast<uint32_t>(n) * kTile, kTile, 8 * kRowBytes); }
static void store_ones() {
  for (uint32_t i = thread_x(); i < 2 * kTile / 16; i += block_threads())
    store_16(&shared<Vec16>(16 * i, 1)[0], Vec16{{kOnes, kOnes, kOnes, kOnes}});
}
static void load_ones() {
  store_ones();
  publish_shared();
  sync_block();
}
using Sums = float[8][4];
static void multiply_ones(Sums& c, bool add) { warpgroup_multiply<bf16, 64>(c, tile(0), tile(1), add); }
static void multiply_once(Sums& c) {
  warpgroup_fence();
  multiply_ones(c, false);
  warpgroup_commit();
  warpgroup_wait<0>();
}

HEED_KERNEL(watches_groups, Args, 128) {  // out: what x and y hold after each step
  load_ones();
  Sums x = {}, y = {};
  float* out = args.out + 16 * thread_x();
  const auto note = [&] { *out++ = x[7][3], *out++ = y[0][0]; };
  warpgroup_fence();
  multiply_ones(x, true);
  multiply_ones(x, true);
  note();
  warpgroup_commit();
  multiply_ones(y, true);
  warpgroup_commit();
  warpgroup_wait<2>();
  note();
  warpgroup_wait<1>();
  note();
  warpgroup_fence();
  multiply_ones(y, true);
  warpgroup_wait<0>();  // not for the last one, which is in no group
  note();
  warpgroup_commit();
  warpgroup_wait<1>();
  note();
  warpgroup_wait<0>();
  note();
  warpgroup_fence();
  multiply_ones(y, true);
  multiply_ones(y, false);
  multiply_ones(y, true);
  warpgroup_commit();
  warpgroup_commit();  // an empty group
  warpgroup_wait<1>();
  note();
}
HEED_KERNEL(never_waits_for_products, Args, 128) {
  load_ones();
  Sums c = {};
  warpgroup_fence();
  multiply_ones(c, false);
  warpgroup_commit();
  multiply_ones(c, true);
  if (args.n == kWrong) return;
  warpgroup_commit();
  warpgroup_wait<0>();
}
HEED_KERNEL(forgets_the_fence, Args, 128) {
  load_ones();
  Sums c = {};
  multiply_once(c);
  if (args.n == kRight) warpgroup_fence();
  multiply_ones(c, true);
  warpgroup_commit();
  warpgroup_wait<0>();
}
HEED_KERNEL(starts_without_fence, Args, 128) {
  load_ones();
  Sums c = {};
  multiply_ones(c, false);
}
HEED_KERNEL(part_of_a_warpgroup, Args, 256) {
  load_ones();
  Sums c = {};
  multiply_once(c);
}
HEED_KERNEL(lanes_differ, Args, 128) {  // n: 1: in a, 2: in b, 3: in add, 4: in where they meet
  load_ones();
  Sums c = {};
  const bool odd = lane() == 7;
  warpgroup_fence();
  warpgroup_multiply<bf16, 64>(c, tile(args.n == 1 && odd), tile(args.n != 2 || !odd), args.n == 3 && odd);
  if (args.n == 4 && odd) warpgroup_wait<0>();
  warpgroup_commit();
  warpgroup_wait<0>();
}
HEED_KERNEL(warps_differ, Args, 256) {  // n: in what, and whether a barrier follows, which then none leaves
  load_ones();
  Sums c = {};
  const bool odd = warp() == 6;
  warpgroup_fence();
  for (int i = 0; i < (args.n % 8 == 1 && odd ? 2 : 1); i++)
    warpgroup_multiply<bf16, 64>(c, tile(0), tile(args.n % 8 != 2 || !odd), args.n % 8 == 3 && odd);
  warpgroup_commit();
  if (args.n % 8 == 4 && odd) warpgroup_commit();
  warpgroup_wait<0>();
  if (args.n >= 8) sync_block();
  args.out[0] = 1;
}
HEED_KERNEL(descriptors, Args, 128) {  // n: bits of b's that are other ones
  load_ones();
  Sums c = {};
  warpgroup_fence();
  warpgroup_multiply<bf16, 64>(c, tile(0), tile(1) ^ static_cast<uint64_t>(args.n) << 40, false);
}
HEED_KERNEL(multiplies_past_shared, Args, 128) {  // n: bytes on from the tile of b
  load_ones();
  Sums c = {};
  warpgroup_fence();
  warpgroup_multiply<bf16, 64>(c, tile(0), tile(1) + static_cast<uint64_t>(args.n / 16), false);
  warpgroup_commit();
  warpgroup_wait<0>();
}
HEED_KERNEL(shares_accumulators, Args, 128) {
  load_ones();
  float c[16][4] = {};
  warpgroup_fence();
  warpgroup_multiply_transposed<bf16, 128>(c, {kOnes, kOnes, kOnes, kOnes}, matrix_descriptor(shared_start(), 0, 8 * kRowBytes));
  warpgroup_commit();
  if (args.n == kRight) warpgroup_wait<0>(), warpgroup_fence();
  multiply_ones(*reinterpret_cast<Sums*>(c[8]), true);
  warpgroup_commit();
  warpgroup_wait<0>();
}
HEED_KERNEL(writes_accumulators, Args, 128) {
  load_ones();
  Sums c = {};
  warpgroup_fence();
  multiply_ones(c, true);
  warpgroup_commit();
  if (args.n == kWrong && lane() == 3) c[5][1] = 2;
  warpgroup_wait<0>();
}
HEED_KERNEL(operands_change, Args, 128) {  // n: 0: none, 1: shared memory, 2: registers; out: what the products of a block give
  load_ones();
  Sums c = {};
  uint32_t a[4] = {kOnes, kOnes, kOnes, kOnes};
  warpgroup_fence();
  if (args.n == 2)
    warpgroup_multiply_transposed<bf16, 64>(c, a, tile(1));
  else
    multiply_ones(c, false);
  warpgroup_commit();
  sync_block();
  if (args.n == 1 && thread_x() == 0) shared<uint32_t>(kTile, 1)[0] = 0x40004000;  // row 0, numbers 0 and 1: 2 and 2
  if (args.n == 2 && lane() == 0) a[0] = 0x40004000;
  sync_block();
  warpgroup_wait<0>();
  if (thread_x() == 0) args.out[block_x()] = c[0][0];
}
HEED_KERNEL(publishes, Args, 256) {  // n: 1: not at all, 2: behind the barrier, 3: before the store
  if (args.n == 3) publish_shared();
  store_ones();
  if (args.n == kRight) publish_shared();
  sync_block();
  if (args.n == 2) publish_shared();
  Sums c = {};
  multiply_once(c);
}
HEED_KERNEL(publishes_late, Args, 128) {  // what one warp wrote: for itself in time, for the others not
  load_ones();
  if (thread_x() == 100) shared<float>(kTile, 1)[0] = 3;
  if (args.n == kRight) publish_shared();
  sync_block();
  for (int i = 0; i < 2; i++)
    if (warp() == 3) publish_shared();
  Sums c = {};
  multiply_once(c);
}
HEED_KERNEL(publishes_again, Args, 128) {  // what has been multiplied by and is written anew
  load_ones();
  Sums c = {};
  multiply_once(c);
  sync_block();
  if (thread_x() == 40) shared<float>(kTile, 1)[0] = 3;
  if (args.n == kRight) publish_shared();
  sync_block();
  multiply_once(c);
}
HEED_KERNEL(publishes_copies, Args, 128) {  // before they have landed
  for (uint32_t i = thread_x(); i < 2 * kTile / 16; i += block_threads()) copy_async_16(shared_start() + 16 * i, nullptr, false);
  copy_async_commit();
  if (args.n == kWrong) publish_shared();
  copy_async_wait<0>();
  if (args.n == kRight) publish_shared();
  sync_block();
  Sums c = {};
  multiply_once(c);
}
HEED_KERNEL(multiplies_copies, Args, 128) {  // which are still under way
  load_ones();
  if (thread_x() == 0) copy_async_16(shared_start() + kTile, nullptr, false);
  copy_async_commit();
  if (args.n == kRight) copy_async_wait<0>();
  publish_shared();
  sync_block();
  Sums c = {};
  multiply_once(c);
  copy_async_wait<0>();
}
HEED_KERNEL(meets_before_products, Args, 128) {
  store_ones();
  publish_shared();
  if (args.n == kRight) sync_block();
  Sums c = {};
  multiply_once(c);
}
HEED_KERNEL(changes_operands, Args, 128) {  // n: 1: before the wait, 2: by a copy, 3: behind it, before the others have waited
  load_ones();
  Sums c = {};
  warpgroup_fence();
  multiply_ones(c, false);
  warpgroup_commit();
  sync_block();
  if (args.n == 1 && thread_x() == 40) shared<float>(kTile, 1)[0] = 3;
  if (args.n == 2 && thread_x() == 40) copy_async_16(shared_start() + kTile, nullptr, false);
  warpgroup_wait<0>();
  copy_async_commit();
  copy_async_wait<0>();
  if (args.n != 3) sync_block();
  if (thread_x() == 40) shared<float>(kTile, 1)[0] = 3;
}
HEED_KERNEL(changes_own_rows, Args, 128) {  // of a, which no other warp reads: the wait is enough
  load_ones();
  Sums c = {};
  multiply_once(c);
  shared<float>(static_cast<uint32_t>(16 * warp()) * kRowBytes, 512)[lane()] = 3;
}

namespace {

emulation::Options Seed(uint64_t seed, bool races = true) {
  emulation::Options options;
  options.seed = seed;
  options.races = races;
  return options;
}
constexpr int64_t kOnesBytes = 2 * kTile;
std::vector<float> out(16 * 128);
Args With(int n) { return {out.data(), n}; }

// Small integers, whose products and sums are exact.
template <class T> std::vector<T> Integers(size_t count, emulation::Random& random) {
  std::vector<T> numbers(count);
  for (T& x : numbers) x = from_float<T>(static_cast<float>(static_cast<int>(random.Next() >> 60)) - 8);
  return numbers;
}
template <class T> void Product(const char* kernel, int columns, bool transposed, int warpgroups, bool add, uint64_t seed) {
  emulation::Random random = {seed};
  const int rows = 64 * warpgroups;
  const std::vector<T> a = Integers<T>(rows * kDepth, random), b = Integers<T>(columns * kDepth, random);
  std::vector<float> c = Integers<float>(rows * columns, random), got(c.size());
  const Operands args = {&a[0].bits, &b[0].bits, c.data(), got.data(), add};
  const int64_t bytes = ((transposed ? 0 : rows) + columns) * kDepth * 2;
  if (!Ok(kernel, {1, 128 * warpgroups, bytes}, args, Seed(seed, seed % 2))) return;
  int wrong = 0;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) {
      float sum = add ? c[i * columns + j] : 0;
      for (int k = 0; k < kDepth; k++)
        sum += to_float(a[i * kDepth + k]) * to_float(transposed ? b[k * columns + j] : b[j * kDepth + k]);
      wrong += got[i * columns + j] != sum;
    }
  Check(wrong == 0, "%s, %d warpgroups, add %d: %d of %d differ", kernel, warpgroups, add, wrong, rows * columns);
}
template <class T> void Products(const std::string& type) {
  for (int columns : {64, 128, 256})
    for (int warpgroups : {1, 2})
      for (uint64_t seed = 1; seed <= 4; seed++) {
        const std::string suffix = type + "_" + std::to_string(columns);
        Product<T>(("multiply_" + suffix).c_str(), columns, false, warpgroups, false, seed);
        Product<T>(("multiply_" + suffix).c_str(), columns, false, warpgroups, true, seed);
        Product<T>(("transposed_" + suffix).c_str(), columns, true, warpgroups, true, seed);
      }
}

void Groups() {
  const float none = -1, wanted[] = {none, 0, none, none, 32, none, 32, none, 32, none, 32, 32, 32, 32};  // none: NaN
  for (uint64_t seed = 1; seed <= 10; seed++) {
    Ok("watches_groups", {1, 128, kOnesBytes}, With(0), Seed(seed));
    for (int i = 0; i < 128; i++)
      for (int at = 0; at < 14; at++) {
        const float x = out[16 * i + at];
        Check(wanted[at] == none ? std::isnan(x) : x == wanted[at], "thread %d, number %d: %g", i, at, x);
      }
  }
  for (int n = 0; n < 3; n++) {  // either the old ones, or the new ones
    out.assign(64, 0);
    Ok("operands_change", {64, 128, kOnesBytes}, With(n), Seed(5, false));
    int old = 0, fresh = 0;
    for (int i = 0; i < 64; i++) old += out[i] == 16, fresh += out[i] == 18;
    Check(old + fresh == 64 && (n == 0 ? fresh == 0 : old > 8 && fresh > 8), "operands that change, %d: %d old, %d new", n, old, fresh);
  }
}

/// The kernel is well, and caught when wrong, whatever the order of its warps.
void Caught(const char* kernel, Shape shape, int n, std::initializer_list<const char*> parts, bool races = true) {
  for (uint64_t seed = 1; seed <= 10; seed++) {
    Ok(kernel, shape, With(kRight), Seed(seed));
    Refused(kernel, shape, With(n), parts, Seed(seed, races));
  }
}
void Faults() {
  const Shape shape = {1, 128, kOnesBytes}, two = {1, 256, kOnesBytes};
  Caught("never_waits_for_products", shape, kWrong, {"ended with 2 warpgroup products", "never waited for, 1 of them in no group"}, false);
  Caught("forgets_the_fence", shape, kWrong, {"no warpgroup_fence since it last waited"}, false);
  Refused("starts_without_fence", shape, With(0), {"no warpgroup_fence"});
  Ok("part_of_a_warpgroup", two, With(0));
  Refused("part_of_a_warpgroup", {1, 160, kOnesBytes}, With(0), {"a block of 160 threads is not made of warpgroups"});
  for (int n = 1; n <= 3; n++) Caught("lanes_differ", shape, n, {"lane 7 of its warp brings another"}, false);
  Caught("lanes_differ", shape, 4, {"divergence: ", "warpgroup_wait", "warpgroup_commit", "emulation_warpgroup_test.cc:"}, false);
  for (int barrier = 0; barrier <= 8; barrier += 8) {
    Ok("warps_differ", two, With(barrier));
    Caught("warps_differ", two, barrier + 1, {"warp 4 has issued 1 ", "1 commits, warp 6 2 and 1 ("}, false);
    Caught("warps_differ", two, barrier + 2, {"warp 6 1 and 1 with other operands"}, false);
    Caught("warps_differ", two, barrier + 3, {"warp 6 1 and 1 with other operands"}, false);
    Caught("warps_differ", two, barrier + 4, {"warp 4 has issued 1 ", "1 commits, warp 6 1 and 2 ("}, false);
  }
  for (int n = 9; n <= 12; n++) {
    out[0] = 0;
    Refused("warps_differ", two, With(n), {"the warps of a warpgroup differ"});
    Check(out[0] == 0, "a thread left the barrier");
  }
  for (int n : {1 << 6, 1 << 9, 1 << 22, 1 << 23}) Refused("descriptors", shape, With(n), {"matrix descriptor ", "128-byte swizzle"});
  Caught("multiplies_past_shared", shape, 1024, {"warpgroup_multiply: bytes 16384 to 16400 of shared memory"}, false);
  Caught("shares_accumulators", shape, kWrong, {"some of its accumulators"}, false);
  Caught("writes_accumulators", shape, kWrong, {"lane 3 of its warp wrote accumulators"}, false);
}
void RacesOnOperands() {
  const Shape shape = {1, 128, kOnesBytes};
  for (int n : {1, 2, 3}) Caught("publishes", {1, 256, kOnesBytes}, n, {"race: it multiplies by", "did not publish"});
  Caught("publishes_late", shape, kWrong, {"race: it multiplies by", "did not publish"});
  Caught("publishes_again", shape, kWrong, {"race: it multiplies by bytes 8192 and 8193", "thread 40 wrote or copied and did not publish"});
  Caught("publishes_copies", shape, kWrong, {"race: it multiplies by", "did not publish"});
  Caught("multiplies_copies", shape, kWrong, {"race: it multiplies by bytes 8192 and 8193", "copy of thread 0 is under way"});
  Caught("meets_before_products", shape, kWrong, {"race: it multiplies by ", " wrote, with no "});
  Caught("changes_operands", shape, 1, {"thread 40 ", "race: it writes bytes 8192", "a warpgroup product under way reads"});
  Caught("changes_operands", shape, 2, {"thread 40 ", "race: it copies to bytes 8192", "a warpgroup product under way reads"});
  Caught("changes_operands", shape, 3, {"race: it writes bytes 8192", "shared memory, which"});
  for (uint64_t seed = 1; seed <= 10; seed++) Ok("changes_own_rows", shape, With(0), Seed(seed));
}

}  // namespace

int main() {
  Products<f16>("f16");
  Products<bf16>("bf16");
  Groups();
  Faults();
  RacesOnOperands();
  return Finish();
}
