// Runs a kernel on the CPU: a block's threads are fibers, which take turns at barriers and shuffles. Blocks follow one
// another. Whatever a GPU leaves undefined and the emulator notices is a failed launch with a reason.
#pragma once

#include <cstdint>
#include <functional>

namespace emulator {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

struct Place {  // of the thread that runs now
  Index thread, block, block_dim, grid_dim;
};
extern Place place;

// Waits for all threads of the block.
void block_barrier();

// Each lane of a warp gives `count` words; all 32 lanes' words, lane by lane, kWords apart.
constexpr int kWords = 10;
const uint32_t* warp_exchange(const uint32_t* words, int count);

// The running thread's number in its block.
int thread_number();

// Lets others run. `progressed` says that what a thread may wait for in a loop has changed.
void spin();
void progressed();

// Shared memory of the running block, poisoned with NaN at its start.
void* dynamic_shared();
void* static_shared(const void* key, size_t bytes);

// Runs `thread` once for every thread; false, and `failure()` says why, where that failed.
bool run(const std::function<void()>& thread, Index grid, Index block, size_t shared);
const char* failure();

}  // namespace emulator
