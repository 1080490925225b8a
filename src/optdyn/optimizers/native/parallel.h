// Blocks of rows, spread over XLA's threads. How rows are cut depends on the number of
// threads asked for alone, and sums are kept by block, so that results do not depend on timing.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace optdyn {

constexpr int64_t kRowsWorthAThread = 512;
constexpr int64_t kBlocksPerThread = 4;  // a thread that starts late then does fewer

inline int64_t block_count(int64_t threads, int64_t rows) {
  if (threads == 1) return 1;
  return std::max<int64_t>(1, std::min(kBlocksPerThread * threads, rows / kRowsWorthAThread));
}

// Runs work(block, begin, end) for every block of rows; the caller takes part, so that it
// never waits for a thread that has not started.
template <typename Work>
void in_blocks(xla::ffi::ThreadPool& pool, int64_t threads, int64_t rows, const Work& work) {
  const int64_t blocks = block_count(threads, rows);
  if (blocks == 1) return work(0, 0, rows);
  struct Progress {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto progress = std::make_shared<Progress>();
  auto take = [progress, blocks, rows, &work] {
    for (int64_t b; (b = progress->next.fetch_add(1)) < blocks;) {
      work(b, rows * b / blocks, rows * (b + 1) / blocks);
      std::lock_guard<std::mutex> lock(progress->mutex);
      if (++progress->done == blocks) progress->all_done.notify_all();
    }
  };
  for (int64_t helper = 1; helper < std::min(threads, blocks); ++helper) pool.Schedule(decltype(take)(take));
  take();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all_done.wait(lock, [&] { return progress->done == blocks; });
}

}  // namespace optdyn
