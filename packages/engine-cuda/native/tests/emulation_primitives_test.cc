// Each function of device.h in the emulation against its definition, in straight loops.
#include <thread>

#include "emulation_check.h"

using namespace heed;
using namespace heed::test;

namespace {

struct Words {
  const uint32_t* in;
  uint32_t* out;
};
struct Floats {
  const float* in;
  float* out;
};
struct Doubles {
  const double* in;
  double* out;
};

}  // namespace

HEED_KERNEL(indices, Words, 1024) {
  const int i = block_x() * block_threads() + thread_x();
  args.out[i] = static_cast<uint32_t>(lane() + 32 * warp()) | static_cast<uint32_t>(grid_x() + grid_y() + grid_z()) << 16;
}
HEED_KERNEL(places, Words, 32) {
  const int at = block_x() + grid_x() * (block_y() + grid_y() * block_z());
  atomic_fetch_add(&args.out[at], 1);
}
HEED_KERNEL(shuffles, Floats, 64) {
  const float v = args.in[thread_x()];
  for (int m = 0; m < 32; m++) args.out[thread_x() * 64 + m] = shuffle_xor(v, m);
  for (int l = 0; l < 32; l++) args.out[thread_x() * 64 + 32 + l] = shuffle(v, l + lane());
}
HEED_KERNEL(shuffles_wide, Doubles, 32) { args.out[thread_x()] = shuffle_xor(args.in[thread_x()], 5); }
HEED_KERNEL(ballots, Words, 64) { args.out[thread_x()] = ballot(args.in[thread_x()] & 1); }
HEED_KERNEL(matrices, Words, 32) {
  Shared<uint16_t> s = shared<uint16_t>(0, 256);
  for (int i = thread_x(); i < 256; i += 32) s[i] = static_cast<uint16_t>(args.in[i]);
  sync_warp();
  uint32_t r[4];
  load_matrix_x4(r, s.address(lane() * 8));
  for (int i = 0; i < 4; i++) args.out[lane() * 8 + i] = r[i];
  load_matrix_x4_transposed(r, s.address(lane() * 8));
  for (int i = 0; i < 4; i++) args.out[lane() * 8 + 4 + i] = r[i];
}
// in: a [16, 16], b [16, 8], c [16, 8]; out: [16, 8].
template <typename T> static void Product(const Floats& args) {
  const int row = lane() / 4, column = lane() % 4 * 2;
  const float *a = args.in, *b = a + 256, *c = b + 128;
  const auto pair_of_a = [&](int r, int k) { return pack2<T>(a[r * 16 + k], a[r * 16 + k + 1]); };
  const uint32_t fragment[4] = {pair_of_a(row, column), pair_of_a(row + 8, column), pair_of_a(row, column + 8),
                                pair_of_a(row + 8, column + 8)};
  const uint32_t b0 = pack2<T>(b[column * 8 + row], b[column * 8 + 8 + row]);
  const uint32_t b1 = pack2<T>(b[(column + 8) * 8 + row], b[(column + 9) * 8 + row]);
  float sum[4];
  for (int i = 0; i < 4; i++) sum[i] = c[(row + i / 2 * 8) * 8 + column + i % 2];
  mma_16x8x16<T>(sum, fragment, b0, b1);
  for (int i = 0; i < 4; i++) args.out[(row + i / 2 * 8) * 8 + column + i % 2] = sum[i];
}
HEED_KERNEL(product_bf16, Floats, 32) { Product<bf16>(args); }
HEED_KERNEL(product_f16, Floats, 32) { Product<f16>(args); }
HEED_KERNEL(copies, Words, 32) {
  Shared<uint32_t> s = shared<uint32_t>(0, 256);
  for (int half = 0; half < 2; half++) {
    copy_async_16(s.address(half * 128 + thread_x() * 4), args.in + half * 128 + thread_x() * 4, half == 0 || thread_x() % 2);
    copy_async_commit();
  }
  copy_async_wait<1>();
  for (int i = 0; i < 4; i++) args.out[thread_x() * 12 + i] = s[thread_x() * 4 + i];
  for (int i = 0; i < 4; i++) args.out[thread_x() * 12 + 4 + i] = s[128 + thread_x() * 4 + i];  // still under way
  copy_async_wait<0>();
  for (int i = 0; i < 4; i++) args.out[thread_x() * 12 + 8 + i] = s[128 + thread_x() * 4 + i];
}
HEED_KERNEL(long_queue, Words, 32) {  // three copies under way at any time, 500 in all
  Shared<uint32_t> s = shared<uint32_t>(0, 4 * 32 * 4);
  uint32_t sum = 0;
  for (int i = 0; i < 502; i++) {
    if (i < 500) copy_async_16(s.address((i % 4 * 32 + thread_x()) * 4), args.in + i * 4, true);
    copy_async_commit();
    copy_async_wait<2>();
    if (i >= 2) sum += s[((i - 2) % 4 * 32 + thread_x()) * 4];
  }
  args.out[thread_x()] = sum;
}
HEED_KERNEL(reversal, Words, 1024) {
  const int n = block_threads(), i = thread_x();
  Shared<uint32_t> s = shared<uint32_t>(0, n);
  for (int round = 0; round < 5; round++) {
    s[i] = round * 7919 + i;
    sync_block();
    const uint32_t other = s[n - 1 - i];
    sync_block();
    if (round == 4) args.out[block_x() * n + i] = other;
  }
}
HEED_KERNEL(additions, Floats, 128) {
  atomic_add(args.out, args.in[0]);
  atomic_add(reinterpret_cast<double*>(args.out + 2), 1.0);
  atomic_fetch_add(reinterpret_cast<uint32_t*>(args.out + 4), 3);
}
HEED_KERNEL(atomics_in_shared, Words, 256) {
  Shared<uint32_t> s = shared<uint32_t>(0, 1);
  if (thread_x() == 0) s[0] = 0;
  sync_block();
  atomic_fetch_add(&s[0], 1);
  sync_block();
  if (thread_x() == 7) args.out[block_x()] = s[0];
}
HEED_KERNEL(vectors, Words, 32) {
  Shared<uint32_t> s = shared<uint32_t>(0, 128);
  store_16(&s[thread_x() * 4], load_16(args.in + thread_x() * 4));
  sync_warp();
  store_16(args.out + thread_x() * 4, load_16(&s[(31 - thread_x()) * 4]));
}
HEED_KERNEL(fresh_shared, Floats, 32) { args.out[block_x() * 32 + thread_x()] = shared<float>(0, 32)[thread_x()]; }
HEED_KERNEL(spoils_shared, Floats, 32) { shared<float>(0, 32)[thread_x()] = 1.0f; }

namespace {

emulation::Options Seed(uint64_t seed, int host_threads = 0) {
  emulation::Options options;
  options.seed = seed;
  options.races = true;
  options.host_threads = host_threads;
  return options;
}

void Indices() {
  std::vector<uint32_t> out(3 * 100);
  Ok("indices", {3, 100, 0}, Words{nullptr, out.data()}, Seed(3));
  for (int i = 0; i < 300; i++) Check(out[i] == (static_cast<uint32_t>(i % 100) | 5u << 16), "thread %d: %x", i, out[i]);
  for (uint64_t seed = 1; seed < 20; seed++) {  // each block once, in any order
    std::vector<uint32_t> times(7 * 5 * 3);
    const Words args = {nullptr, times.data()};
    emulation::Launch launch = {{7, 5, 3}, 1, 0, &args, sizeof args};
    Check(emulation::Run(*emulation::Find("places"), launch, Seed(seed)).empty(), "places");
    for (uint32_t n : times) Check(n == 1, "a block ran %u times", n);
  }
}

void Warps() {
  emulation::Random random = {5};
  std::vector<float> in(64), out(64 * 64);
  for (float& x : in) x = Uniform(random);
  Ok("shuffles", {1, 64, 0}, Floats{in.data(), out.data()}, Seed(2));
  for (int t = 0; t < 64; t++)
    for (int m = 0; m < 32; m++) {
      Check(out[t * 64 + m] == in[t ^ m], "shuffle_xor(%d) of thread %d", m, t);
      Check(out[t * 64 + 32 + m] == in[t / 32 * 32 + (m + t) % 32], "shuffle from %d of thread %d", m, t);
    }
  std::vector<double> wide(32), got(32);
  for (int i = 0; i < 32; i++) wide[i] = i + 1e-12;
  Ok("shuffles_wide", {}, Doubles{wide.data(), got.data()});
  for (int i = 0; i < 32; i++) Check(got[i] == wide[i ^ 5], "double %d", i);
  std::vector<uint32_t> votes(64), masks(64);
  for (uint32_t& v : votes) v = static_cast<uint32_t>(random.Next());
  Ok("ballots", {1, 64, 0}, Words{votes.data(), masks.data()});
  for (int t = 0; t < 64; t++)
    for (int l = 0; l < 32; l++) Check((masks[t] >> l & 1) == (votes[t / 32 * 32 + l] & 1), "ballot of %d, lane %d", t, l);
}

void Matrices() {
  std::vector<uint32_t> in(256), out(256);
  for (int i = 0; i < 256; i++) in[i] = 1000 + i;
  Ok("matrices", {1, 32, 512}, Words{in.data(), out.data()}, Seed(1));
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) {
      const auto element = [&](int row, int column) { return in[(8 * i + row) * 8 + column]; };
      const int g = l / 4, q = l % 4 * 2;
      Check(out[l * 8 + i] == (element(g, q) | element(g, q + 1) << 16), "ldmatrix lane %d matrix %d", l, i);
      Check(out[l * 8 + 4 + i] == (element(q, g) | element(q + 1, g) << 16), "ldmatrix.trans lane %d matrix %d", l, i);
    }
}

template <typename T> void Products(const char* kernel) {
  emulation::Random random = {9};
  for (int round = 0; round < 20; round++) {
    std::vector<float> in(512), out(128, NAN);
    const float scale = round % 4 == 1 ? 1e-6f : 1.0f;  // subnormal in float16
    for (float& x : in) x = to_float(from_float<T>(scale * Uniform(random)));
    if (round == 2) in[17] = INFINITY;
    if (round == 3) in[300] = NAN;
    Ok(kernel, {}, Floats{in.data(), out.data()});
    for (int i = 0; i < 16; i++)
      for (int j = 0; j < 8; j++) {
        double sum = in[384 + i * 8 + j], size = fabs(sum);
        for (int k = 0; k < 16; k++) {
          const double term = static_cast<double>(in[i * 16 + k]) * in[256 + k * 8 + j];
          sum += term, size += fabs(term);
        }
        const float got = out[i * 8 + j];
        // 17 roundings to float32 of sums no larger than `size`.
        const bool close = std::isnan(sum) ? std::isnan(got) : std::isinf(sum) ? got == sum : fabs(got - sum) <= 17 * 0x1p-24 * size;
        Check(close, "%s round %d (%d, %d): %g, not %g", kernel, round, i, j, got, sum);
      }
  }
}

void Copies() {
  std::vector<uint32_t> in(2000), out(32 * 12);
  for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<uint32_t>(7 * i + 1);
  emulation::Options quiet;  // the kernel reads what is under way
  Ok("copies", {1, 32, 1024}, Words{in.data(), out.data()}, quiet);
  for (int t = 0; t < 32; t++)
    for (int i = 0; i < 4; i++) {
      Check(out[t * 12 + i] == in[t * 4 + i], "the first group has landed: thread %d", t);
      Check(out[t * 12 + 4 + i] == ~0u, "the second group has not: thread %d", t);
      Check(out[t * 12 + 8 + i] == (t % 2 ? in[128 + t * 4 + i] : 0), "then it has, zeros where not valid: thread %d", t);
    }
  uint32_t sum = 0;
  for (int i = 0; i < 500; i++) sum += in[i * 4];
  Ok("long_queue", {1, 32, 2048}, Words{in.data(), out.data()}, Seed(1));
  for (int t = 0; t < 32; t++) Check(out[t] == sum, "long queue, thread %d: %u, not %u", t, out[t], sum);
}

void Blocks() {
  for (const int64_t threads : {1, 31, 32, 33, 256, 1024})
    for (uint64_t seed = 1; seed <= 4; seed++) {
      std::vector<uint32_t> out(9 * threads);
      Ok("reversal", {9, threads, threads * 4}, Words{nullptr, out.data()}, Seed(seed));
      for (int64_t i = 0; i < 9 * threads; i++)
        Check(out[i] == 4 * 7919 + threads - 1 - i % threads, "reversal of %lld: %lld", (long long)threads, (long long)i);
    }
}

// Launches from several host threads at once, with more helpers than cores.
void HostThreads() {
  std::vector<std::thread> callers;
  std::vector<std::vector<uint32_t>> outs(4, std::vector<uint32_t>(200 * 64));
  std::vector<std::string> words(4);
  for (int c = 0; c < 4; c++)
    callers.emplace_back([&, c] {
      for (int round = 0; round < 20 && words[c].empty(); round++) {
        std::fill(outs[c].begin(), outs[c].end(), 0);
        words[c] = Try("reversal", {200, 64, 256}, Words{nullptr, outs[c].data()}, Seed(round, 5));
        for (int i = 0; i < 200 * 64 && words[c].empty(); i++)
          if (outs[c][i] != static_cast<uint32_t>(4 * 7919 + 63 - i % 64)) words[c] = "wrong at " + std::to_string(i);
      }
    });
  for (std::thread& caller : callers) caller.join();
  for (const std::string& w : words) Check(w.empty(), "%s", w.c_str());
}

void Atomics() {
  const float one = 1.0f;
  alignas(8) float out[6] = {};
  Ok("additions", {20000, 128, 0}, Floats{&one, out}, Seed(1, 4));
  double d;
  uint32_t n;
  memcpy(&d, out + 2, 8);
  memcpy(&n, out + 4, 4);
  Check(out[0] == 2560000 && d == 2560000 && n == 7680000, "%g %g %u", out[0], d, n);
  std::vector<uint32_t> counts(5);
  Ok("atomics_in_shared", {5, 256, 4}, Words{nullptr, counts.data()}, Seed(1));
  for (uint32_t count : counts) Check(count == 256, "%u", count);
}

void SharedMemory() {
  alignas(16) uint32_t in[128], out[128];
  for (int i = 0; i < 128; i++) in[i] = i;
  Ok("vectors", {1, 32, 512}, Words{in, out}, Seed(1));
  for (int i = 0; i < 128; i++) Check(out[i] == static_cast<uint32_t>((31 - i / 4) * 4 + i % 4), "vectors %d", i);
  std::vector<float> fresh(96);
  emulation::Options alone;
  alone.host_threads = 1;  // the same memory is used again
  Ok("spoils_shared", {3, 32, 128}, Floats{nullptr, fresh.data()}, alone);
  Ok("fresh_shared", {3, 32, 128}, Floats{nullptr, fresh.data()}, alone);
  for (float x : fresh) Check(std::isnan(x), "shared memory starts as %g", x);
}

// float16 and bfloat16: every value survives, and rounding goes to the nearest, of two as near to the even one.
template <typename T> void Halves(uint32_t infinity) {
  for (uint32_t bits = 0; bits < infinity; bits++) {
    const T half = {static_cast<uint16_t>(bits)}, next = {static_cast<uint16_t>(bits + 1)};
    const float x = to_float(half), y = to_float(next);
    Check(from_float<T>(x).bits == bits && from_float<T>(-x).bits == (bits | 0x8000), "%x survives", bits);
    if (bits + 1 == infinity) continue;
    const float middle = static_cast<float>((static_cast<double>(x) + y) / 2);
    Check(from_float<T>(middle).bits == bits + (bits & 1), "the middle after %x goes to the even one", bits);
    Check(from_float<T>(nextafterf(middle, x)).bits == bits && from_float<T>(nextafterf(middle, y)).bits == bits + 1,
          "beside the middle after %x", bits);
    Check(y > x, "the numbers rise at %x", bits);
  }
  Check(from_float<T>(INFINITY).bits == infinity && from_float<T>(-INFINITY).bits == (infinity | 0x8000), "infinity");
  Check(from_float<T>(NAN).bits == 0x7fff && std::isnan(to_float(T{0x7fff})) && std::isnan(to_float(T{0xffff})), "NaN");
}
// OCP 8-bit floating point, 4 exponent bits of bias 7 and 3 mantissa bits; no infinity, and one NaN of each sign.
double E4m3(uint32_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double size = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
  return code & 0x80 ? -size : size;
}
void Codes() {
  for (uint32_t code = 0; code < 256; code++) {
    const Pair x = unpack2<f16>(e4m3_to_f16x2(static_cast<uint16_t>(code | (255 - code) << 8)));
    const auto same = [](float got, uint32_t wanted) {
      return (wanted & 0x7f) == 0x7f ? std::isnan(got) : got == E4m3(wanted) && std::signbit(got) == (wanted >= 0x80);
    };
    Check(same(x.low, code) && same(x.high, 255 - code), "e4m3 codes %x and %x are %g and %g", code, 255 - code, x.low, x.high);
  }
  Check(permute_bytes(0x33221100, 0x77665544, 0x7250) == 0x77225500 && permute_bytes(0x33221100, 0x77665544, 0x3210) == 0x33221100, "bytes in another order");
  Check(subtract2<f16>(pack2<f16>(3, -1), pack2<f16>(1, 4)) == pack2<f16>(2, -5), "differences of float16");
  Check(subtract2<bf16>(pack2<bf16>(256, 1), pack2<bf16>(128, 0x1p-9f)) == pack2<bf16>(128, 1), "differences of bfloat16, rounded");
}
void Numbers() {
  Codes();
  Halves<f16>(0x7c00);
  Halves<bf16>(0x7f80);
  Check(to_float(f16{1}) == 0x1p-24f && to_float(f16{0x7bff}) == 65504.0f && to_float(f16{0x3c00}) == 1.0f, "float16");
  Check(from_float<f16>(65519.996f).bits == 0x7bff && from_float<f16>(65520.0f).bits == 0x7c00, "the largest float16");
  Check(to_float(bf16{0x3f80}) == 1.0f && from_float<bf16>(3.3962e38f).bits == 0x7f80, "bfloat16");
  Check(float_bits(1.0f) == 0x3f800000 && bits_float(0xc0000000) == -2.0f, "bits");
  const Pair pair = unpack2<bf16>(pack2<bf16>(1.5f, -2.0f));
  Check(pair.low == 1.5f && pair.high == -2.0f && pack2<f16>(1.0f, 2.0f) == 0x40003c00, "pairs");
  emulation::Random random = {11};
  for (int i = 0; i < 2000; i++) {
    const float x = 100 * Uniform(random);
    Check(fabs(exp2_approx(x) / exp2(static_cast<double>(x)) - 1) <= 0x1p-22, "exp2 %g", x);
    Check(fabs(reciprocal_approx(x) * static_cast<double>(x) - 1) <= 0x1p-23, "1 / %g", x);
    Check(fabs(log2_approx(fabsf(x)) - log2(fabs(static_cast<double>(x)))) <= 0x1p-22 * fmax(1, fabs(log2(fabs(static_cast<double>(x))))), "log2 %g", x);
  }
  Check(exp2_approx(-INFINITY) == 0 && exp2_approx(-127) == 0 && exp2_approx(-126) > 0 && exp2_approx(128) == INFINITY, "ends of exp2");
  Check(log2_approx(1e-40f) == -INFINITY && reciprocal_approx(1e-40f) == INFINITY && reciprocal_approx(2e38f) == 0, "subnormals are zeros");
}

}  // namespace

int main() {
  Indices();
  Warps();
  Matrices();
  Products<bf16>("product_bf16");
  Products<f16>("product_f16");
  Copies();
  Blocks();
  HostThreads();
  Atomics();
  SharedMemory();
  Numbers();
  return Finish();
}
