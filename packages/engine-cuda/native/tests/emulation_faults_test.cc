// What kernels do wrong, one tiny kernel each, and the words that the emulation finds for it. After each the emulation works on.
#include "emulation_check.h"

using namespace heed;
using namespace heed::test;

namespace {

struct Args {
  const float* in;
  float* out;
  int n;
};
enum Way { kRight, kWrong };  // args.n: each kernel is right or wrong in one place

}  // namespace

HEED_KERNEL(waits, Args, 128) {  // a copy, then its use
  Shared<float> s = shared<float>(0, 4 * block_threads());
  copy_async_16(s.address(4 * thread_x()), args.in + 4 * thread_x(), true);
  copy_async_commit();
  if (args.n == kRight) copy_async_wait<0>();
  args.out[thread_x()] = s[4 * thread_x()];
  copy_async_wait<0>();
}
HEED_KERNEL(waits_for_too_few, Args, 128) {  // two groups, the wait leaves one of them
  Shared<float> s = shared<float>(0, 8 * block_threads());
  for (int half = 0; half < 2; half++) {
    copy_async_16(s.address(8 * thread_x() + 4 * half), args.in + 4 * thread_x(), true);
    copy_async_commit();
  }
  if (args.n == kRight) copy_async_wait<0>();
  copy_async_wait<1>();
  args.out[thread_x()] = s[8 * thread_x() + 4];
  copy_async_wait<0>();
}
HEED_KERNEL(never_waits, Args, 32) { copy_async_16(shared_start() + 16 * thread_x(), args.in, true); }
HEED_KERNEL(publishes, Args, 128) {  // each thread reads what another warp's thread wrote
  Shared<float> s = shared<float>(0, block_threads());
  s[thread_x()] = args.in[thread_x()];
  if (args.n == kRight) sync_block();
  args.out[thread_x()] = s[thread_x() ^ 32];
}
HEED_KERNEL(publishes_in_warp, Args, 128) {
  Shared<float> s = shared<float>(0, block_threads());
  s[thread_x()] = args.in[thread_x()];
  if (args.n == kRight) sync_warp();
  if (args.n == kWrong) ballot(true);  // orders no memory
  args.out[thread_x()] = s[thread_x() ^ 1];
}
HEED_KERNEL(writes_again, Args, 128) {  // the next round's write must not meet this round's reads
  Shared<float> s = shared<float>(0, block_threads());
  for (int round = 0; round < 2; round++) {
    s[thread_x()] = args.in[thread_x()] + round;
    sync_block();
    args.out[thread_x()] = s[thread_x() ^ 64];
    if (args.n == kRight) sync_block();
  }
}
HEED_KERNEL(copies_again, Args, 64) {  // a stage is filled again while the others still read it
  Shared<float> s = shared<float>(0, 4 * block_threads());
  for (int round = 0; round < 3; round++) {
    copy_async_16(s.address(4 * thread_x()), args.in + 4 * thread_x(), true);
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
    args.out[thread_x()] = s[4 * (thread_x() ^ 32)];
    if (args.n == kRight) sync_block();
  }
}
HEED_KERNEL(writes_after_reads, Args, 32) {  // all reads come before all writes, by a collective that orders no memory
  Shared<float> s = shared<float>(0, 32);
  s[lane()] = args.in[lane()];
  sync_warp();
  const float other = s[lane() ^ 1];
  if (args.n == kRight) sync_warp();
  ballot(true);
  s[lane()] = other;
}
HEED_KERNEL(copies_after_reads, Args, 32) {
  Shared<float> s = shared<float>(0, 128);
  for (int i = 0; i < 4; i++) s[4 * lane() + i] = args.in[lane()];
  sync_warp();
  args.out[lane()] = s[4 * (lane() ^ 1)];
  if (args.n == kRight) sync_warp();
  ballot(true);
  copy_async_16(s.address(4 * lane()), args.in, true);
  copy_async_commit();
  copy_async_wait<0>();
}
HEED_KERNEL(shares_copies, Args, 64) {  // waiting is for one's own copies: others' need a barrier
  Shared<float> s = shared<float>(0, 4 * block_threads());
  copy_async_16(s.address(4 * thread_x()), args.in + 4 * thread_x(), true);
  copy_async_commit();
  copy_async_wait<0>();
  if (args.n == kRight) sync_block();
  args.out[thread_x()] = s[4 * (thread_x() ^ 33)];
}
HEED_KERNEL(loads_matrices, Args, 64) {
  Shared<float> s = shared<float>(0, 256);
  for (int i = 0; i < 4; i++) s[4 * thread_x() + i] = 1;
  if (args.n == kRight) sync_block();
  uint32_t r[4];
  load_matrix_x4(r, s.address(4 * (thread_x() ^ 32)));
  args.out[thread_x()] = static_cast<float>(r[0]);
}
HEED_KERNEL(adds, Args, 64) {
  Shared<float> s = shared<float>(0, 1);
  if (thread_x() == 0) s[0] = 0;
  sync_block();
  if (args.n == kRight)
    atomic_add(&s[0], 1.0f);
  else
    s[0] += 1.0f;
}
HEED_KERNEL(halves_of_a_word, Args, 64) { shared<uint16_t>(0, 64)[thread_x() / 2 + thread_x() % 2 * 32] = 7; }
HEED_KERNEL(diverges, Args, 64) {
  if (args.n == kWrong && lane() == 5)
    ballot(true);
  else
    shuffle_xor(1.0f, 1);
  if (args.n == kRight) ballot(true);
}
HEED_KERNEL(diverges_by_place, Args, 64) {
  if (args.n == kWrong && lane() < 16)
    sync_warp();
  else
    sync_warp();
}
HEED_KERNEL(two_barriers, Args, 64) {
  if (args.n == kWrong && warp() == 1)
    sync_block();
  else
    sync_block();
}
HEED_KERNEL(leaves_barrier, Args, 64) {
  if (args.n == kWrong && thread_x() == 40) return;
  sync_block();
}
HEED_KERNEL(leaves_collective, Args, 64) {
  if (args.n == kWrong && thread_x() == 40) return;
  shuffle(1.0f, 0);
}
HEED_KERNEL(barrier_against_shuffle, Args, 64) {
  if (args.n == kWrong && thread_x() == 3) sync_block();
  shuffle(1.0f, 0);
  if (args.n == kWrong && thread_x() == 3) return;
  sync_block();
}
HEED_KERNEL(part_of_a_warp, Args, 64) { ballot(true); }
HEED_KERNEL(indexes, Args, 64) { shared<float>(16, 60)[args.n] = 1; }
HEED_KERNEL(takes_shared, Args, 64) { args.out[0] = shared<float>(static_cast<uint32_t>(args.n), 16).address(0); }
HEED_KERNEL(stores_past_shared, Args, 64) { *(&shared<float>(0, 64)[63] + args.n) = 1; }
HEED_KERNEL(copies_to, Args, 64) {
  copy_async_16(shared_start() + args.n, args.in, true);
  copy_async_commit();
  copy_async_wait<0>();
}
HEED_KERNEL(copies_from, Args, 64) {
  copy_async_16(shared_start(), reinterpret_cast<const char*>(args.in) + args.n, args.n != 1 << 20);
  copy_async_commit();
  copy_async_wait<0>();
}
HEED_KERNEL(loads_at, Args, 64) {
  uint32_t r[4];
  load_matrix_x4(r, shared_start() + args.n + 16 * lane());
}
HEED_KERNEL(loads_vector, Args, 64) { args.out[0] = static_cast<float>(load_16(args.in + args.n).words[0]); }
HEED_KERNEL(stores_vector, Args, 64) { store_16(args.out + args.n, Vec16{{1, 2, 3, 4}}); }
HEED_KERNEL(counts, Args, 64) { atomic_add(args.out + args.n, 1.0f); }
HEED_KERNEL(writes, Args, 64) { args.out[args.n] = 1; }
HEED_KERNEL(source_changes, Args, 32) {
  Shared<float> s = shared<float>(0, 4);
  const_cast<float*>(args.in)[0] = 1;
  if (thread_x() == 0) {
    copy_async_16(s.address(0), args.in, true);
    copy_async_commit();
    const_cast<float*>(args.in)[0] = 2;
    copy_async_wait<0>();
    args.out[block_x()] = s[0];
  }
}
HEED_KERNEL(deep, Args, 64) {  // a local array near the size of the stack
  volatile char large[64 * 1024 - 512];
  large[sizeof large - 1] = 1;
  if (args.n == kWrong) sync_block();
  args.out[0] = large[sizeof large - 1];
}

namespace {

float in[4096], out[4096];
const Args kGood = {in, out, kRight}, kBad = {in, out, kWrong};
Args With(int n) { return {in, out, n}; }
emulation::Options Races(uint64_t seed = 1) {
  emulation::Options options;
  options.races = true;
  options.seed = seed;
  return options;
}

/// The kernel is well, and caught when wrong, whatever the order of its warps.
void Caught(const char* kernel, Shape shape, std::initializer_list<const char*> parts) {
  for (uint64_t seed = 1; seed <= 10; seed++) {
    Ok(kernel, shape, kGood, Races(seed));
    Refused(kernel, shape, kBad, parts, Races(seed));
  }
}

void Waits() {
  Caught("waits", {2, 128, 2048}, {"block (", "thread ", "race: it touches", "copy of thread", "under way", "(seed "});
  Caught("waits_for_too_few", {1, 128, 4096}, {"copy of thread", "under way"});
  Refused("never_waits", {1, 32, 512}, kBad, {"ended with 1 asynchronous copies"});
  Ok("waits", {1, 128, 2048}, kBad);  // without the mode no words, but NaN
  for (int i = 0; i < 128; i++) Check(std::isnan(out[i]), "what has not landed is %g", out[i]);
  Ok("waits", {1, 128, 2048}, kGood);
  for (int i = 0; i < 128; i++) Check(out[i] == in[4 * i], "what has landed is %g", out[i]);
  std::vector<float> seen(64);
  Ok("source_changes", {64, 32, 16}, Args{in, seen.data(), 0});
  int early = 0;
  for (float x : seen) early += x == 1;
  Check(early > 8 && early < 56, "%d of 64 copies read their source before it changed", early);
}

void RacesOnShared() {
  Caught("publishes", {2, 128, 512}, {"race: it ", "which warp", "no barrier of the block"});
  Caught("publishes_in_warp", {1, 128, 512}, {"race: it reads", "lane", "wrote", "no sync_warp"});
  Caught("writes_again", {1, 128, 512}, {"race: it ", "with no barrier of the block"});
  Caught("copies_again", {1, 64, 1024}, {"race: it ", "shared memory"});
  Caught("writes_after_reads", {1, 32, 128}, {"race: it writes", "lane", "read, with no sync_warp"});
  Caught("copies_after_reads", {1, 32, 512}, {"race: it copies to", "lane", "read, with no sync_warp"});
  Caught("shares_copies", {1, 64, 1024}, {"race: it "});
  Caught("loads_matrices", {1, 64, 1024}, {"race: it ", "with no barrier of the block"});
  Caught("adds", {1, 64, 4}, {"race: it ", "bytes 0 and 1"});
  Ok("halves_of_a_word", {1, 64, 128}, kGood, Races());
}

void Meetings() {
  Caught("diverges", {1, 64, 0}, {"divergence: it is at", "ballot", "shuffle_xor", "emulation_faults_test.cc:", "lane "});
  Caught("diverges_by_place", {1, 64, 0}, {"divergence: it is at sync_warp", "waits at sync_warp"});
  Caught("two_barriers", {1, 64, 0}, {"divergence: it is at sync_block", "32 threads"});
  Caught("leaves_barrier", {1, 64, 0}, {"deadlock: thread 0", "waits at sync_block", "thread 40 (warp 1, lane 8) has ended"});
  Caught("leaves_collective", {1, 64, 0}, {"deadlock: thread 32", "waits at shuffle", "thread 40 (warp 1, lane 8) has ended"});
  Caught("barrier_against_shuffle", {1, 32, 0}, {"deadlock: ", "waits at shuffle", "thread 3 (warp 0, lane 3) waits at sync_block"});
  Refused("part_of_a_warp", {1, 40, 0}, kGood, {"waits at ballot", "only 8 threads of 32"});
}

void SharedBounds() {
  Ok("indexes", {1, 1, 256}, With(59));
  Refused("indexes", {1, 1, 256}, With(60), {"[60] of 60"});
  Refused("indexes", {1, 1, 256}, With(-1), {"[-1] of 60"});
  Refused("indexes", {1, 1, 252}, With(0), {"shared: bytes 16 to 256", "of which there are 252"});
  Ok("takes_shared", {1, 1, 128}, With(64));
  Refused("takes_shared", {1, 1, 128}, With(66), {"byte 66", "not a multiple of 4"});
  Refused("takes_shared", {1, 1, 128}, With(68), {"bytes 68 to 132"});
  Refused("stores_past_shared", {1, 1, 256}, With(3), {"wrote past the 256 bytes of dynamic shared memory, at byte 264"});
  Refused("copies_to", {1, 1, 64}, With(8), {"copy_async_16: byte 8", "multiple of 16"});
  Refused("copies_to", {1, 1, 64}, With(64), {"copy_async_16: bytes 64 to 80"});
  Refused("copies_to", {1, 1, 64}, With(-16), {"copy_async_16: bytes -16 to 0"});
  Refused("loads_at", {1, 32, 512}, With(4), {"load_matrix_x4: byte ", "not a multiple of 16"});
  Refused("loads_at", {1, 32, 512}, With(16), {"thread 31", "load_matrix_x4: bytes 512 to 528"});
}

void GlobalMemory() {
  emulation::Memory memory;
  emulation::Options options;
  options.memory = &memory;
  float* data = static_cast<float*>(memory.Allocate(400));
  const auto at = [&](int n) { return Args{data, data, n}; };
  Check(data && std::isnan(data[0]) && memory.BytesInUse() == 400, "an allocation starts as NaN");
  Ok("copies_from", {1, 1, 64}, at(384), options);
  Refused("copies_from", {1, 1, 64}, at(8), {"source", "not a multiple of 16"}, options);
  Refused("copies_from", {1, 1, 64}, at(400), {"in no allocation", "byte 400 from the start of one of 400"}, options);
  Refused("copies_from", {1, 1, 64}, at(-16), {"in no allocation"}, options);
  Ok("copies_from", {1, 1, 64}, at(1 << 20), options);  // not valid: not looked at
  Ok("loads_vector", {1, 1, 0}, at(96), options);
  Refused("loads_vector", {1, 1, 0}, at(1), {"load_16: address", "multiple of 16"}, options);
  Refused("loads_vector", {1, 1, 0}, at(100), {"load_16", "in no allocation"}, options);
  Refused("stores_vector", {1, 1, 0}, at(100), {"store_16", "in no allocation"}, options);
  Refused("counts", {1, 1, 0}, at(100), {"atomic", "in no allocation"}, options);
  Ok("writes", {1, 1, 0}, at(99), options);
  Refused("writes", {1, 1, 0}, at(100), {"allocation of 400 bytes was written past its end, at byte 40"}, options);
  Check(memory.Free(data).find("past its end") != std::string::npos, "the poison is checked when freed");
  Check(!memory.Free(data).empty() && memory.BytesInUse() == 0, "freed twice");
  data = static_cast<float*>(memory.Allocate(256));
  Refused("writes", {1, 1, 0}, at(-1), {"allocation of 256 bytes was written before its start, at byte -4"}, options);
  memory.Free(data);
  Check(memory.Allocate(SIZE_MAX) == nullptr && memory.Allocate(SIZE_MAX / 4) == nullptr, "too much");
  float* none = static_cast<float*>(memory.Allocate(0));
  Check(none && memory.Free(none).empty(), "no bytes are an allocation");
}

void Launches() {
  Ok("two_barriers", {1, 64, 0}, kGood);
  Refused("two_barriers", {1, 65, 0}, kGood, {"65 threads", "1 to 64"});
  Refused("two_barriers", {1, 0, 0}, kGood, {"0 threads"});
  Refused("two_barriers", {0, 64, 0}, kGood, {"grid size 0 of axis 0"});
  Refused("two_barriers", {1ll << 31, 64, 0}, kGood, {"grid size 2147483648"});
  Refused("two_barriers", {1, 64, 232449}, kGood, {"232449 bytes of shared memory", "232448"});
  Refused("two_barriers", {1, 64, -1}, kGood, {"-1 bytes"});
  Refused("two_barriers", {1, 64, 0}, int32_t{1}, {"4 bytes of arguments", "takes 24"});
  emulation::Launch launch;
  launch.args_bytes = sizeof(Args);
  Check(!emulation::Run(*emulation::Find("writes"), launch).empty(), "null arguments");
  Check(emulation::Find("nothing") == nullptr, "an unknown kernel");
  Refused("deep", {1, 64, 0}, kBad, {"more than 65536 bytes of stack"});
}

}  // namespace

int main() {
  for (int i = 0; i < 4096; i++) in[i] = static_cast<float>(i) + 0.5f;
  Waits();
  RacesOnShared();
  Meetings();
  SharedBounds();
  GlobalMemory();
  Launches();
  return Finish();
}
