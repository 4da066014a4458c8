// How a call's work is cut: waves of units whose packed keys and values fit a budget, tasks of rows (prefill) or of keys (decode),
// longest first, and the sum of what split keys left. The cut depends on shapes and lengths alone.
#pragma once
#include "../runtime/parallel.h"
#include "../runtime/scratch.h"
#include "../runtime/status.h"
#include "attention-decode-inl.h"
#include "attention-prefill-inl.h"

namespace heed::HEED_ISA {
constexpr int64_t kWaveBytes = 48 << 20;   // of packed blocks at a time, unless one unit alone needs more
constexpr int64_t kWaveTasks = 1 << 16;
constexpr int64_t kShortestSplit = 512;    // keys of a task at least: of 256 float16 keys, 8 us, starting the task is a tenth
constexpr int64_t kLongestSplit = 4096;
constexpr int64_t kWantedTasks = 32;       // of a decode step, where the keys are long enough
constexpr int64_t kThreadTasks = 4;        // of a thread at least, when a task takes several key heads
constexpr int64_t kNearHeads = 64 << 10;   // bytes from a head's row to the next head's, at most, for one task to take both
constexpr int64_t kHeadsBytes = 64 << 10;  // of what a task keeps for its heads, at most: half a second-level cache of 128 KiB

/// How one unit is computed.
struct UnitPlan {
  KeySpan keys;               // that any of its queries sees
  int64_t row_blocks, splits; // one of them is 1
  bool decode;
  int64_t packed_blocks;      // of kKeyBlock keys; 0: tasks pack for themselves, or read in place
};
struct AttentionTask {
  int64_t sequence, partial, packed, finite;  // indices into the wave's buffers; -1: none
  int64_t partial_step;                       // from a key head to the next
  KeySpan packed_keys;
  int64_t cost;
  RowBlock block;
  bool decode;
};
struct Unit {
  int64_t sequence, head;
  UnitPlan plan;
  int64_t partial, packed, finite;
};

template <class T> UnitPlan PlanUnit(const Problem<T>& a, const Sequence& s, int64_t split) {
  UnitPlan u = {};
  const int64_t rows = s.queries * a.G;
  u.keys = SpanOf(a, s, 0, s.queries);
  u.row_blocks = (s.queries + BlockQueries(a.G) - 1) / BlockQueries(a.G);
  u.splits = 1;
  const bool in_place = a.k_strides.step == a.kv_bytes && a.v_strides.step == a.kv_bytes;
  u.decode = rows <= kDecodeRows && in_place;
  const int64_t window = u.keys.end - u.keys.WindowBegin();
  if (u.row_blocks > 1) u.packed_blocks = u.keys.Blocks();
  else if (window > split) u.splits = (window + split - 1) / split;
  return u;
}
/// Keys per task of units that are split: kWantedTasks in all, within limits.
template <class T> int64_t SplitLength(const Problem<T>& a) {
  int64_t keys = 0;
  for (int64_t n = 0; n < a.sequences; n++) {
    const Sequence s = a.sequence(a, n);
    if (s.queries <= BlockQueries(a.G)) keys += s.length * a.Hkv;
  }
  const int64_t split = RoundUp(keys / kWantedTasks, kKeyBlock);
  return split < kShortestSplit ? kShortestSplit : split > kLongestSplit ? kLongestSplit : split;
}
/// Key heads that a decode task walks together, key block by key block. Where the heads' rows lie side by side, as in a page or in
/// token-major tensors, memory is then read in longer runs. Changes no result: the parts of keys and their order stay those of one head.
template <class T> int64_t HeadsTogether(const Problem<T>& a, int64_t split) {
  const int64_t near_k = a.k_strides.head < 0 ? -a.k_strides.head : a.k_strides.head;
  const int64_t near_v = a.v_strides.head < 0 ? -a.v_strides.head : a.v_strides.head;
  if (near_k > kNearHeads || near_v > kNearHeads) return 1;
  int64_t tasks = 0, rows = 1;
  for (int64_t n = 0; n < a.sequences; n++) {
    const Sequence s = a.sequence(a, n);
    const UnitPlan u = PlanUnit(a, s, split);
    if (!u.decode) continue;
    tasks += u.splits * a.Hkv;
    if (s.queries * a.G > rows) rows = s.queries * a.G;
  }
  const int64_t kept = DecodeTask<T, T>::HeadSize(RoundUp(rows, 4), a.D, a.Dv) * static_cast<int64_t>(sizeof(T));
  const int64_t fit = kHeadsBytes / kept, spare = tasks / (kThreadTasks * Threads()), most = fit < spare ? fit : spare;
  return most < 1 ? 1 : most < a.Hkv ? most : a.Hkv;
}
/// Longest first; Shell's sort with Ciura's gaps.
HEED_NOINLINE void SortTasks(AttentionTask* tasks, int64_t n) {
  constexpr int64_t gaps[] = {57375, 25500, 11333, 5037, 2239, 995, 442, 196, 87, 39, 17, 7, 3, 1};
  for (int64_t gap : gaps)
    for (int64_t i = gap; i < n; i++) {
      if (tasks[i].cost <= tasks[i - gap].cost) continue;
      const AttentionTask t = tasks[i];
      int64_t j = i;
      for (; j >= gap && tasks[j - gap].cost < t.cost; j -= gap) tasks[j] = tasks[j - gap];
      tasks[j] = t;
    }
}

/// A range of units that is computed together.
template <class T> struct Wave {
  const Problem<T>& a;
  int64_t split, together;
  int64_t units = 0, tasks = 0, packed_blocks = 0, partials = 0;  // partials: numbers
  bool out_of_memory = false;
  Unit* unit = nullptr;
  AttentionTask* task = nullptr;
  T *packed = nullptr, *partial = nullptr;
  uint8_t* finite = nullptr;

  int64_t PartialSize(const UnitPlan& u, const Sequence& s) const {
    return u.splits > 1 ? u.splits * s.queries * a.G * (Padded<T>(a.Dv) + 2) : 0;
  }
  /// Takes units from `next` on while they fit; returns the first that is left.
  int64_t Take(int64_t next) {
    const int64_t total = a.sequences * a.Hkv, block_bytes = PackedSize<T>(a.D, a.Dv) * static_cast<int64_t>(sizeof(T));
    int64_t sequence = -1;
    Sequence s = {};
    UnitPlan u = {};
    for (; next < total; next++) {
      if (next / a.Hkv != sequence) {
        sequence = next / a.Hkv;
        s = a.sequence(a, sequence);
        u = PlanUnit(a, s, split);
      }
      const int64_t more = u.row_blocks * u.splits;
      const int64_t bytes = (packed_blocks + u.packed_blocks) * block_bytes +
                            (partials + PartialSize(u, s)) * static_cast<int64_t>(sizeof(T));
      if (units > 0 && (bytes > kWaveBytes || tasks + more > kWaveTasks)) break;
      units++;
      tasks += more;
      packed_blocks += u.packed_blocks;
      partials += PartialSize(u, s);
    }
    return next;
  }
  bool Allocate() {
    unit = static_cast<Unit*>(SharedScratch(0, units * sizeof(Unit) + 64));
    task = static_cast<AttentionTask*>(SharedScratch(1, tasks * sizeof(AttentionTask) + 64));
    packed = static_cast<T*>(SharedScratch(2, packed_blocks * PackedSize<T>(a.D, a.Dv) * sizeof(T) + 64));
    finite = static_cast<uint8_t*>(SharedScratch(3, packed_blocks + 64));
    partial = static_cast<T*>(SharedScratch(4, partials * sizeof(T) + 64));
    return unit && task && packed && finite && partial;
  }
  /// Lists the units from `next` on and their tasks.
  void List(int64_t next) {
    int64_t blocks = 0, numbers = 0, count = 0, taken = 0;  // taken: units, by tasks listed before
    for (int64_t i = 0; i < units; i++, next++) {
      const int64_t sequence = next / a.Hkv;
      const Sequence s = a.sequence(a, sequence);
      const UnitPlan u = PlanUnit(a, s, split);
      unit[i] = {sequence, next % a.Hkv, u, u.splits > 1 ? numbers : -1, u.packed_blocks > 0 ? blocks : -1, blocks};
      if (taken == 0) {
        taken = 1;
        while (u.decode && taken < together && i + taken < units && unit[i].head + taken < a.Hkv) taken++;
        ListTasks(unit[i], s, taken, &count);
      }
      taken--;
      blocks += u.packed_blocks;
      numbers += PartialSize(u, s);
    }
    tasks = count;
    SortTasks(task, tasks);
  }
  /// Of `heads` units from `of` on, which have one plan.
  void ListTasks(const Unit& of, const Sequence& s, int64_t heads, int64_t* count) {
    const UnitPlan& u = of.plan;
    const int64_t begin = u.keys.WindowBegin(), per_block = BlockQueries(a.G);
    for (int64_t r = 0; r < u.row_blocks; r++)
      for (int64_t c = 0; c < u.splits; c++) {
        AttentionTask& t = task[(*count)++];
        t = {of.sequence, of.partial, of.packed, of.finite, PartialSize(u, s), u.keys, 0, {}, u.decode};
        const int64_t left = s.queries - r * per_block;
        t.block = {of.head, heads, r * per_block, left < per_block ? left : per_block, {}};
        KeySpan& keys = t.block.keys;
        if (u.splits > 1) {
          const int64_t from = begin + c * split;
          keys = {c == 0 ? u.keys.sinks : 0, from > u.keys.first ? from : u.keys.first, from + split < u.keys.end ? from + split : u.keys.end};
          t.partial += c * s.queries * a.G * (Padded<T>(a.Dv) + 2);
        } else {
          keys = SpanOf(a, s, t.block.query, t.block.queries);
        }
        t.cost = (keys.sinks + keys.end - keys.first) * t.block.queries * heads;
      }
  }
  /// The block with this number among all packed blocks of the wave.
  void Pack(int64_t number) {
    int64_t low = 0, high = units;  // units with packed blocks hold rising ranges of numbers
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (unit[middle].finite <= number ? low : high) = middle;
    }
    const Unit& u = unit[low];
    const int64_t j0 = u.plan.keys.KeyOf(number - u.finite);
    T* unpacked = nullptr;
    if (a.unpack != nullptr) {
      unpacked = static_cast<T*>(ThreadScratch(static_cast<uint64_t>(UnpackedSize(a)) * sizeof(T)));
      if (unpacked == nullptr) return __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
    }
    finite[number] =
        PackBlock(a, a.sequence(a, u.sequence), u.head, j0, u.plan.keys.end, packed + number * PackedSize<T>(a.D, a.Dv), unpacked);
  }
  void RunTask(const AttentionTask& t) {
    const Sequence s = a.sequence(a, t.sequence);
    const int64_t rows = t.block.queries * a.G;
    T* to = t.partial < 0 ? nullptr : partial + t.partial;
    const int64_t bytes = t.decode ? DecodeTask<T, T>::Bytes(rows, t.block.heads, a.D, a.Dv) : PrefillTask<T>::Bytes(rows, a.D, a.Dv, t.packed < 0);
    const int64_t unpacked = t.decode || t.packed < 0 ? UnpackedSize(a) * static_cast<int64_t>(sizeof(T)) : 0;
    char* scratch = static_cast<char*>(ThreadScratch(bytes + unpacked));
    if (scratch == nullptr) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    if (t.decode) return a.decode(a, s, t.block, scratch, to, t.partial_step);
    const int64_t size = PackedSize<T>(a.D, a.Dv);
    Prefill(a, s, t.block, t.packed < 0 ? nullptr : packed + t.packed * size, t.packed < 0 ? nullptr : finite + t.packed,
            t.packed_keys, scratch, to);
  }
  /// One row of a split unit: the parts in order of their keys, and the sink.
  void Combine(const Unit& u, const Sequence& s, int64_t r, T* acc) const {
    const int64_t Dv = Padded<T>(a.Dv), rows = s.queries * a.G, size = rows * (Dv + 2), head = u.head * a.G + r % a.G;
    const T none = -static_cast<T>(__builtin_inf());
    const T* part = partial + u.partial + r * (Dv + 2);
    T most = a.rules.Sink(head);
    for (int64_t c = 0; c < u.plan.splits; c++) most = part[c * size] > most ? part[c * size] : most;
    const T sink = a.rules.Sink(head);
    T sum = sink == none ? T{0} : Exp2<T>(Set1(sink - most))[0];
    memset(acc, 0, static_cast<size_t>(Dv) * sizeof(T));
    for (int64_t c = 0; c < u.plan.splits; c++) {
      const T* from = part + c * size;
      // A part whose maximum is -inf saw nothing, or NaN alone: its sum is 0 or NaN, and either passes through a weight of 0.
      const T weight = from[0] == none ? T{0} : Exp2<T>(Set1(from[0] - most))[0];
      sum += weight * from[1];
      for (int64_t d = 0; d < Dv; d += Width<T>) Store<T>(acc + d, Fma(Set1(weight), Load(from + 2 + d), Load(acc + d)));
    }
    StoreRow(a, s, head, r / a.G, acc, most, sum);
  }
  void CombineUnit(const Unit& u) {
    if (u.partial < 0) return;
    const Sequence s = a.sequence(a, u.sequence);
    T* acc = static_cast<T*>(ThreadScratch(Padded<T>(a.Dv) * sizeof(T)));
    if (acc == nullptr) return __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
    for (int64_t r = 0; r < s.queries * a.G; r++) Combine(u, s, r, acc);
  }
};

/// Attention of all sequences of a problem.
template <class T> int RunAttention(const Problem<T>& a, const char* name) {
  const int64_t total = a.sequences * a.Hkv, split = SplitLength(a), together = HeadsTogether(a, split);
  for (int64_t next = 0; next < total;) {
    Wave<T> wave{a, split, together};
    const int64_t after = wave.Take(next);
    if (!wave.Allocate()) wave.out_of_memory = true;
    if (!wave.out_of_memory) {
      wave.List(next);
      ParallelFor(wave.packed_blocks, [&](int64_t i, int) { wave.Pack(i); });
      ParallelFor(wave.tasks, [&](int64_t i, int) { wave.RunTask(wave.task[i]); });
      // A decode step's parts are a few kilobytes: waking threads for them costs more than adding them.
      if (wave.partials < (1 << 18)) {
        for (int64_t i = 0; i < wave.units; i++) wave.CombineUnit(wave.unit[i]);
      } else {
        ParallelFor(wave.units, [&](int64_t i, int) { wave.CombineUnit(wave.unit[i]); });
      }
    }
    if (wave.out_of_memory)
      return Fail(HEED_OUT_OF_MEMORY, "[%s] no memory for scratch: %lld packed blocks of %lld bytes; shorten the batch or the sequence",
                  name, static_cast<long long>(wave.packed_blocks),
                  static_cast<long long>(PackedSize<T>(a.D, a.Dv) * static_cast<int64_t>(sizeof(T))));
    next = after;
  }
  return HEED_OK;
}
}  // namespace heed::HEED_ISA
