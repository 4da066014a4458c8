// mbarriers, named barriers and register hand-over in the emulation: what they order, and what kernels do wrong with them.
#include "emulation_check.h"

using namespace heed;
using namespace heed::test;

namespace {

struct Args {
  const uint16_t* in;
  float* out;
  int tiles, way;  // way: kRight, or in which place the kernel is wrong
};
enum Way { kRight, kWrong };

constexpr uint32_t kTile = 64 * 128;  // bytes: 64 rows of 64 numbers
constexpr int kStages = 2;
constexpr uint32_t kBarriers = (1 + kStages) * kTile;
enum Wrong {
  kNoWait = 1, kNoWaitForEmpty, kNoPublish, kArrivesBeforeCopies, kReleasesProductsUnderWay, kPublishesLate, kForgetsToRelease, kOtherParity,
  kOneWarpReleases, kOneGroupDoesNotWait
};

}  // namespace

static uint32_t barrier(int i) { return shared_start() + kBarriers + 8 * static_cast<uint32_t>(i); }
static uint32_t full(int stage) { return barrier(stage); }
static uint32_t empty(int stage) { return barrier(kStages + stage); }
static uint64_t tile(int n, int k) { return matrix_descriptor(shared_start() + static_cast<uint32_t>(n) * kTile + k * 32, 16, 1024); }

// A producer warpgroup copies tiles, the others multiply ones by them: c [64, 64] of each is 64 times the tiles' numbers, in sum. All rows of
// a tile are alike, so that the swizzle needs no care. `elected`: one lane arrives for its warp.
template <bool elected> static void release(uint32_t at) {
  if (!elected) return barrier_arrive(at);
  sync_warp();
  if (lane() == 0) barrier_arrive(at);
}
template <bool elected> static void produce(const Args& args) {
  give_registers<24>();
  const auto deliver = [&](int t) {
    if (args.way != kNoPublish && args.way != kPublishesLate) publish_shared();
    release<elected>(full(t % kStages));
    if (args.way == kPublishesLate) publish_shared();
  };
  for (int t = 0; t < args.tiles; t++) {
    const int stage = t % kStages;
    if (args.way != kNoWaitForEmpty) barrier_wait(empty(stage), t / kStages % 2 ^ 1);
    for (uint32_t i = thread_x(); i < kTile / 16; i += 128)
      copy_async_16(shared_start() + static_cast<uint32_t>(1 + stage) * kTile + 16 * i, args.in + t * (kTile / 2) + 8 * i, true);
    copy_async_commit();
    if (t > 0 && args.way != kArrivesBeforeCopies) copy_async_wait<1>();
    if (t > 0) deliver(t - 1);
  }
  copy_async_wait<0>();
  deliver(args.tiles - 1);
}
template <bool elected> static void consume(const Args& args) {
  take_registers<240>();
  float c[8][4] = {};
  for (int t = 0; t < args.tiles; t++) {
    const int stage = t % kStages;
    if (args.way != kNoWait && (args.way != kOneGroupDoesNotWait || warp() < 8 || t == 0))
      barrier_wait(full(stage), t / kStages % 2 ^ (args.way == kOtherParity && t == 2));
    warpgroup_fence();
    for (int k = 0; k < 4; k++) warpgroup_multiply<bf16, 64>(c, tile(0, k), tile(1 + stage, k), true);
    warpgroup_commit();
    if (args.way == kReleasesProductsUnderWay) release<elected>(empty(stage));
    warpgroup_wait<0>();
    if (args.way == kReleasesProductsUnderWay || (args.way == kForgetsToRelease && t == 1 && warp() == 5)) continue;
    if (args.way != kOneWarpReleases) release<elected>(empty(stage));
    if (args.way == kOneWarpReleases && warp() % 4 == 1)  // for the warpgroup
      for (int i = 0; i < 4; i++) release<elected>(empty(stage));
  }
  for (int n = 0; n < 8; n++)
    for (int e = 0; e < 4; e++) args.out[(thread_x() - 128) * 32 + 4 * n + e] = c[n][e];
}
template <bool elected> static void stream(const Args& args) {
  const int each = elected ? 4 : 128, groups = block_threads() / 128 - 1;
  if (thread_x() == 130) {
    for (int s = 0; s < kStages; s++) barrier_init(full(s), each);
    for (int s = 0; s < kStages; s++) barrier_init(empty(s), each * groups);
  }
  for (uint32_t i = thread_x(); i < kTile / 16; i += block_threads())
    store_16(&shared<Vec16>(16 * i, 1)[0], Vec16{{0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80}});
  publish_shared();
  sync_block();
  if (warp() < 4)
    produce<elected>(args);
  else
    consume<elected>(args);
}
HEED_KERNEL(streams, Args, 512) { stream<false>(args); }
HEED_KERNEL(streams_elected, Args, 512) { stream<true>(args); }

// A token goes round the warps: who has it writes all numbers anew. A lane waits, a lane arrives; sync_warp for the others.
HEED_KERNEL(passes_token, Args, 512) {
  const int warps = block_threads() / 32, next = (warp() + 1) % warps;
  Shared<float> s = shared<float>(0, 64);
  if (lane() == 7) barrier_init(barrier(warp()), 1);
  sync_block();
  if (warp() == 0) s[lane()] = s[32 + lane()] = 0;
  for (int round = 0; round < args.tiles; round++) {
    const int turn = warp() > 0 ? round : round - 1;  // of the token, before it comes here
    if (turn >= 0 && !(args.way == 1 && warp() == 2) && lane() == 3) barrier_wait(barrier(warp()), turn & 1);
    if (args.way != 2) sync_warp();
    const float other = s[lane() ^ 1];
    sync_warp();
    s[lane()] = other + 1;
    s[32 + lane()] = s[32 + lane()] + 1;
    if (args.way != 3) sync_warp();
    if (lane() == 20) barrier_arrive(barrier(next));
  }
  if (warp() == 0) {
    barrier_wait(barrier(0), (args.tiles - 1) % 2);
    args.out[lane()] = s[lane()] + 1000 * s[32 + lane()];
  }
}
HEED_KERNEL(phases, Args, 128) {  // an mbarrier for all threads; way 1: which one does not wait for, 2: which one waits for too early
  Shared<float> s = shared<float>(0, 2 * block_threads());
  if (thread_x() == 0) barrier_init(barrier(0), block_threads());
  sync_block();
  barrier_wait(barrier(0), 1);
  float x = 1;
  for (int round = 0; round < args.tiles; round++) {
    const int half = round % 2 * block_threads();
    s[half + thread_x()] = x;
    if (args.way == 2 && round == 1 && thread_x() == 70) barrier_wait(barrier(0), round & 1);
    barrier_arrive(barrier(0));
    if (args.way != 1 || thread_x() != 70) barrier_wait(barrier(0), round & 1);
    x = s[half + (thread_x() ^ 32)] + 1;
  }
  args.out[thread_x()] = x;
}
HEED_KERNEL(orders_lanes, Args, 32) {  // within a warp, without sync_warp
  Shared<float> s = shared<float>(0, 1);
  if (lane() == 9) barrier_init(barrier(0), 1);
  sync_warp();
  if (lane() == 4) {
    s[0] = 5;
    barrier_arrive(barrier(0));
    if (args.way == 2) s[0] = 6;
  }
  if (args.way != 1) barrier_wait(barrier(0), 0);
  if (args.way == 3 && lane() == 11) s[0] = 7;
  args.out[lane()] = s[0];
}
HEED_KERNEL(polls_late, Args, 96) {  // lane 0 or lane 2 waits for phase 0 before its arrival, yet may look too late
  if (thread_x() == 0) barrier_init(barrier(0), 1), barrier_init(barrier(1), 1);
  sync_block();
  if (thread_x() == 1) barrier_arrive(barrier(1));
  if (thread_x() == 0 || thread_x() == 2) {
    barrier_wait(barrier(0), 0);
    args.out[thread_x()] = 1;
  }
  if (thread_x() != 32) return;
  barrier_wait(barrier(1), 0);
  barrier_arrive(barrier(0));
  barrier_wait(barrier(0), 0);
  barrier_arrive(barrier(0));
}

// Warps 0 and 1 meet at one barrier, the others at another, round by round; then all.
HEED_KERNEL(meets_in_groups, Args, 256) {
  Shared<float> s = shared<float>(0, block_threads());
  const int rest = block_threads() - 64, first = warp() < 2 ? 0 : 64, count = warp() < 2 ? 64 : rest;
  s[thread_x()] = 0;
  for (int round = 0; round < args.tiles; round++) {
    if (warp() < 2)
      sync_threads(1, 64);
    else if (args.way != 1)
      sync_threads(15, rest);
    const float other = s[first + (thread_x() - first + 32) % count];
    if (args.way == 3 && warp() == 3) sync_block();
    sync_threads(warp() < 2 ? 2 : 1 + 6 * (args.way != 5), count);
    s[thread_x()] = other + 1;
  }
  if (args.way != 2) sync_threads(9, block_threads());
  args.out[thread_x()] = s[(thread_x() + 64) % block_threads()];
}
HEED_KERNEL(named_wrong, Args, 256) {
  if (args.way == 0) sync_threads(1, 256);
  if (args.way == 1) sync_threads(0, 256);
  if (args.way == 2) sync_threads(16, 256);
  if (args.way == 3) sync_threads(1, 0);
  if (args.way == 4) sync_threads(1, 40);
  if (args.way == 5) sync_threads(1, 288);
  if (args.way == 6) sync_threads(1, warp() == 3 ? 64 : 128);
  if (args.way == 7) sync_threads(lane() == 7 ? 2 : 1, 256);
  if (args.way == 8) {  // three warps at a barrier of two
    if (warp() < 3) sync_threads(1, 64);
  }
  if (args.way == 9) {
    if (lane() == 4)
      sync_threads(1, 256);
    else
      sync_threads(1, 256);
  }
  if (args.way == 10 && warp() == 6) return;
  if (args.way == 10) sync_threads(1, 256);
}
// Warps 4 to 7 multiply and meet; way 1: one does so once more, 2: with another warpgroup that does nothing of the kind.
HEED_KERNEL(products_differ, Args, 256) {
  float c[8][4] = {};
  if (warp() < 4) return args.way == 2 ? sync_threads(3, 256) : void();
  warpgroup_fence();
  for (int i = 0; i < (args.way == 1 && warp() == 6 ? 2 : 1); i++) warpgroup_multiply<bf16, 64>(c, tile(0, 0), tile(0, 0), false);
  warpgroup_commit();
  warpgroup_wait<0>();
  sync_threads(3, args.way == 2 ? 256 : 128);
  args.out[0] = 1;
}
HEED_KERNEL(barrier_wrong, Args, 64) {
  Shared<uint32_t> words = shared<uint32_t>(0, 64);
  const uint32_t at = shared_start() + 16;
  if (args.way == 1 && thread_x() == 0) barrier_arrive(at);
  if (args.way == 2 && thread_x() == 0) barrier_wait(at, 0);
  if (thread_x() == 0) barrier_init(at, args.way == 3 ? 0 : args.way == 4 ? 1 << 20 : 2);
  if (args.way == 5 && thread_x() == 0) barrier_init(at, 2);
  if (args.way == 6 && thread_x() == 0) barrier_init(at + 4, 2);
  if (args.way == 7 && thread_x() == 0) barrier_init(shared_start() + 256, 2);
  sync_block();
  if (args.way == 8 && thread_x() == 0) barrier_arrive(at + 8);
  if (args.way == 9 && thread_x() == 0) words[5] = 0;
  if (args.way == 10 && thread_x() == 0) barrier_wait(at, 2);
  if (thread_x() < (args.way == 11 ? 3 : args.way == 12 ? 1 : 2)) barrier_arrive(at);
  sync_warp();
  if (args.way == 13 && warp() == 1) return;
  if (args.way == 14 && warp() == 1) sync_block();
  barrier_wait(at, 0);
  if (args.way >= 13) barrier_wait(at, 1);
}
HEED_KERNEL(inits_without_barrier, Args, 64) {
  const uint32_t at = barrier(0);
  if (thread_x() == 0) barrier_init(at, 1);
  if (args.way == kWrong && thread_x() == 40) barrier_arrive(at);
  sync_block();
  if (args.way == kRight && thread_x() == 40) barrier_arrive(at);
}
template <int N> static void registers(bool more) { more ? take_registers<N>() : give_registers<N>(); }
HEED_KERNEL(hands_over, Args, 32) {
  if (args.way / 2 == 0) registers<24>(args.way % 2), registers<256>(args.way % 2), registers<168>(args.way % 2);
  if (args.way / 2 == 1) registers<16>(args.way % 2);
  if (args.way / 2 == 2) registers<264>(args.way % 2);
  if (args.way / 2 == 3) registers<100>(args.way % 2);
}

namespace {

constexpr int64_t kShared = kBarriers + 512;
constexpr int kMostTiles = 9, kSeeds = 16;
std::vector<uint16_t> in(kMostTiles * kTile / 2);
std::vector<float> out(512 * 32);

emulation::Options Seed(uint64_t seed, bool races = true) {
  emulation::Options options;
  options.seed = seed;
  options.races = races;
  return options;
}
Args With(int way, int tiles = 4) { return {in.data(), out.data(), tiles, way}; }

/// Wrong in these words, at least in one of the seeds; in all with `always`. Never in others.
void Caught(const char* kernel, Shape shape, Args args, std::initializer_list<const char*> parts, bool always = true, bool races = true) {
  int caught = 0;
  for (uint64_t seed = 1; seed <= kSeeds; seed++) {
    const std::string words = Try(kernel, shape, args, Seed(seed, races));
    if (words.empty() && !always) continue;
    bool all = true;
    for (const char* part : parts) all = all && words.find(part) != std::string::npos;
    caught += all;
    Check(all, "%s, way %d, seed %d: expected other words than '%s'", kernel, args.way, static_cast<int>(seed), words.c_str());
  }
  Check(caught > 0, "%s, way %d: not caught in any seed", kernel, args.way);
}

void Streams() {
  for (int t = 0; t < kMostTiles; t++)
    for (uint32_t i = 0; i < kTile / 2; i++) in[t * (kTile / 2) + i] = from_float<bf16>(static_cast<float>(t + 1)).bits;
  for (const char* kernel : {"streams", "streams_elected"})
    for (int threads : {256, 384, 512})
      for (int tiles : {1, 2, 3, 4, 9})
        for (uint64_t seed = 1; seed <= kSeeds; seed++) {
          std::fill(out.begin(), out.end(), -1.0f);
          if (!Ok(kernel, {1, threads, kShared}, With(kRight, tiles), Seed(seed, seed % 4 != 0))) continue;
          int wrong = 0;
          for (int i = 0; i < (threads - 128) * 32; i++) wrong += out[i] != 64 * tiles * (tiles + 1) / 2;
          Check(wrong == 0, "%s, %d threads, %d tiles: %d numbers differ", kernel, threads, tiles, wrong);
        }
}
void StreamsWrong() {
  const Shape shape = {1, 384, kShared};
  for (const char* kernel : {"streams", "streams_elected"}) {
    Caught(kernel, shape, With(kNoWait, 2), {"race: it "});
    Caught(kernel, shape, With(kOneGroupDoesNotWait, 2), {"race: it "});
    Caught(kernel, shape, With(kNoWaitForEmpty, 9), {""});  // races, or arrivals that no phase takes
    Caught(kernel, shape, With(kNoPublish), {"race: it multiplies by bytes ", "did not publish"});
    Caught(kernel, shape, With(kPublishesLate), {"race: it multiplies by bytes ", "did not publish"});
    Caught(kernel, shape, With(kArrivesBeforeCopies), {"race: it multiplies by bytes ", "copy of thread"});
    Caught(kernel, shape, With(kReleasesProductsUnderWay, 9), {"race: it copies to bytes ", "shared memory, which"});
    Caught(kernel, shape, With(kForgetsToRelease), {"deadlock: thread 0 (warp 0, lane 0) waits at barrier_wait (emulation_barriers_test.cc:",
                                                    "for parity 0, phase 0, of the barrier at byte 24600, which lacks ",
                                                    "waits at barrier_wait", "phase 1, of the barrier at byte 24576"});
  }
  Caught("streams_elected", shape, With(kForgetsToRelease), {"which lacks 1 of 8 arrivals, but ", "lacks 4 of 4 arrivals"}, true, false);
  Caught("streams", shape, With(kOtherParity), {"race: it "}, false);
  Caught("streams_elected", shape, With(kOneWarpReleases, 9), {"race: it copies to bytes ", "shared memory, which"});
}
void Tokens() {
  for (int warps : {2, 3, 5, 16})
    for (int rounds : {1, 2, 5})
      for (uint64_t seed = 1; seed <= kSeeds; seed++) {
        if (!Ok("passes_token", {1, 32 * warps, kShared}, With(kRight, rounds), Seed(seed))) continue;
        for (int i = 0; i < 32; i++) Check(out[i] == 1001.0f * warps * rounds, "%d warps, %d rounds: %g", warps, rounds, out[i]);
      }
  const Shape shape = {1, 128, kShared};
  Caught("passes_token", shape, With(1), {""});
  Caught("passes_token", shape, With(2), {"race: it "}, false);
  Caught("passes_token", shape, With(3), {"race: it "}, false);
  for (uint64_t seed = 1; seed <= kSeeds; seed++) {
    for (int races = 0; races < 2; races++) {
      Ok("phases", {1, 128, kShared}, With(kRight, 7), Seed(seed, races));
      for (int i = 0; i < 128; i++) Check(out[i] == 8, "thread %d: %g", i, out[i]);
    }
    Ok("orders_lanes", {1, 32, kShared}, With(kRight), Seed(seed));
    for (int i = 0; i < 32; i++) Check(out[i] == 5, "lane %d read %g", i, out[i]);
  }
  Caught("phases", {1, 128, kShared}, With(1), {"race: it "}, false);
  Caught("phases", {1, 128, kShared}, With(2), {"deadlock: ", "barrier_wait", "phase 1, of the barrier at byte 24576, which lacks 1 of 128"});
  for (int way : {1, 2, 3}) Caught("orders_lanes", {1, 32, kShared}, With(way), {"race: it ", "of its warp ", "with no sync_warp"}, way != 2);
  int late = 0;
  for (uint64_t seed = 1; seed <= 40; seed++) {
    out[0] = out[2] = 0;
    const std::string words = Try("polls_late", {1, 96, kShared}, With(0), Seed(seed));
    late += out[0] == 0 && out[2] == 0;
    Check(words.empty() == (out[0] == 1 && out[2] == 1), "waits, but '%s'", words.c_str());
    Check(words.empty() || words.find("lane 1) has ended") != std::string::npos, "%s", words.c_str());
  }
  Check(late > 0 && late < 40, "late in %d of 40", late);
}
void Named() {
  for (int threads : {128, 192, 256})
    for (int rounds : {1, 2, 7})
      for (uint64_t seed = 1; seed <= kSeeds; seed++) {
        if (!Ok("meets_in_groups", {1, threads, 1024}, With(kRight, rounds), Seed(seed, seed % 4 != 0))) continue;
        for (int i = 0; i < threads; i++) Check(out[i] == rounds, "thread %d: %g", i, out[i]);
      }
  const Shape shape = {1, 256, 1024};
  Caught("meets_in_groups", shape, With(1), {"race: it ", "with no barrier of the block or of both warps"});
  Caught("meets_in_groups", shape, With(2), {"race: it ", "with no barrier of the block or of both warps"}, false);
  Caught("meets_in_groups", shape, With(3), {"deadlock: thread 0 (warp 0, lane 0) waits at sync_threads (emulation_barriers_test.cc:",
                                             "barrier 9, to which 64 of 256 threads have come, but thread 64 (warp 2, lane 0) waits ",
                                             "barrier 7, to which 160 of 192 threads have come; thread 96 (warp 3, lane 0) waits at sync_block"});
  Ok("named_wrong", shape, With(0));
  Refused("named_wrong", shape, With(1), {"sync_threads: barrier 0; there are 1 to 15"});
  Refused("named_wrong", shape, With(2), {"sync_threads: barrier 16; "});
  Refused("named_wrong", shape, With(3), {"sync_threads: 0 threads"});
  Refused("named_wrong", shape, With(4), {"sync_threads: 40 threads in a block of 256; whole warps meet"});
  Refused("named_wrong", shape, With(5), {"sync_threads: 288 threads"});
  Caught("named_wrong", shape, With(6), {"sync_threads: barrier 1 of ", " threads, at which warp ", "emulation_barriers_test.cc:"}, false);
  Caught("named_wrong", shape, With(7), {"of its warp brings barrier ", " of 256 threads, this one barrier "});
  Caught("named_wrong", shape, With(8), {"deadlock: ", "barrier 1, to which 32 of 64 threads have come, but ", "has ended"});
  Caught("named_wrong", shape, With(9), {"divergence: it is at sync_threads"});
  Caught("named_wrong", shape, With(10), {"to which 224 of 256 threads have come, but thread 192 (warp 6, lane 0) has ended"});
  Refused("named_wrong", {1, 72, 0}, With(10), {"sync_threads: 256 threads in a block of 72"});
  Ok("products_differ", {1, 256, kShared}, With(0), Seed(1, false));
  Ok("products_differ", {1, 256, kShared}, With(2), Seed(1, false));
  out[0] = 0;
  Caught("products_differ", {1, 256, kShared}, With(1), {"the warps of a warpgroup differ: warp 4 has issued 1 ", "warp 6 2 and 1"}, true, false);
  Check(out[0] == 0, "a thread left the barrier");
}
void Faults() {
  const Shape shape = {1, 64, 256};
  const auto caught = [&](int way, std::initializer_list<const char*> parts) { Caught("barrier_wrong", shape, With(way), parts, true, way % 2); };
  for (uint64_t seed = 1; seed <= kSeeds; seed++) Ok("barrier_wrong", shape, With(0), Seed(seed));
  caught(1, {"barrier_arrive: no barrier was initialised at byte 16 of shared memory"});
  caught(2, {"barrier_wait: no barrier was initialised at byte 16"});
  caught(3, {"barrier_init: a phase of 0 arrivals"});
  caught(4, {"barrier_init: a phase of 1048576 arrivals"});
  caught(5, {"barrier_init: the barrier at byte 16 of shared memory is initialised already"});
  caught(6, {"barrier_init: byte 20 of shared memory is not a multiple of 8"});
  caught(7, {"barrier_init: bytes 256 to 264 of shared memory, of which there are 256"});
  caught(8, {"barrier_arrive: no barrier was initialised at byte 24"});
  caught(9, {"the barrier at byte 16 of shared memory was written over"});
  caught(10, {"barrier_wait: a parity of 2"});
  Caught("barrier_wrong", shape, With(11), {"barrier_arrive: phase 0 of the barrier at byte 16", "has had its 2 arrivals"}, false, false);
  caught(12, {"deadlock: ", "for parity 0, phase 0, of the barrier at byte 16, which lacks 1 of 2 arrivals"});
  caught(13, {"deadlock: ", "for parity 1, phase 1, of the barrier at byte 16, which lacks 2 of 2 arrivals, but thread 32", "has ended"});
  caught(14, {"deadlock: ", "for parity 1, phase 1, ", "thread 32 (warp 1, lane 0) waits at sync_block"});
  for (uint64_t seed = 1; seed <= kSeeds; seed++) Ok("inits_without_barrier", {1, 64, kShared}, With(kRight), Seed(seed));
  Caught("inits_without_barrier", {1, 64, kShared}, With(kWrong), {"barrier_arrive: no barrier was initialised"}, false, false);
  Caught("inits_without_barrier", {1, 64, kShared}, With(kWrong), {"barrier"});
  for (int way = 0; way < 8; way++) {
    const char* const what = way % 2 ? "take_registers: " : "give_registers: ";
    if (way < 2)
      Ok("hands_over", {1, 32, 0}, With(way));
    else
      Refused("hands_over", {1, 32, 0}, With(way), {what, "registers; there are 24 to 256, in steps of 8"});
  }
}

}  // namespace

int main() {
  Streams();
  StreamsWrong();
  Tokens();
  Named();
  Faults();
  return Finish();
}
