#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace emulator {

Place place;

namespace {

enum class State { kReady, kAtBlockBarrier, kAtWarpExchange, kSpinning, kEnded };

constexpr size_t kStack = 128 * 1024;
constexpr size_t kGuard = 64;  // bytes behind each piece of shared memory
constexpr unsigned char kPoison = 0xff;

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t first;
  jmp_buf there;
  bool begun = false;
  State state = State::kReady;
  Index thread;
};

struct Warp {
  uint32_t given[32][kWords], published[32][kWords];
};

struct Piece {
  std::unique_ptr<unsigned char[]> memory;
  size_t bytes;

  explicit Piece(size_t size) : memory(new unsigned char[size + kGuard + 16]), bytes(size) {
    std::memset(memory.get(), kPoison, size + kGuard + 16);
  }
  void* data() { return memory.get() + (16 - reinterpret_cast<uintptr_t>(memory.get()) % 16) % 16; }
  bool overrun() {
    const auto* behind = static_cast<unsigned char*>(data()) + bytes;
    return std::any_of(behind, behind + kGuard - 16, [](unsigned char c) { return c != kPoison; });
  }
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::map<const void*, Piece> pieces;
std::string reason;
const std::function<void()>* body;
Fiber* running;
int running_number;
jmp_buf scheduler;
int order = 0;
bool progress = false;

__attribute__((noinline)) void switch_to_scheduler(State state) {
  running->state = state;
  if (!_setjmp(running->there)) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    (*body)();
    switch_to_scheduler(State::kEnded);
  }
}

__attribute__((noinline)) void resume(Fiber* fiber, int number) {
  running = fiber;
  running_number = number;
  place.thread = fiber->thread;
  if (_setjmp(scheduler)) return;
  if (fiber->begun) _longjmp(fiber->there, 1);
  fiber->begun = true;
  getcontext(&fiber->first);
  fiber->first.uc_stack.ss_sp = fiber->stack.get();
  fiber->first.uc_stack.ss_size = kStack;
  fiber->first.uc_link = nullptr;
  makecontext(&fiber->first, fiber_main, 0);
  setcontext(&fiber->first);
}

// A failed block leaves fibers in the middle of their kernel: they are not used again.
bool fail(const std::string& why) {
  reason = why;
  fibers.clear();
  return false;
}

// The i-th of n: forwards, backwards, or in a fixed disorder.
int turn(int i, int n) {
  if (order == 0) return i;
  if (order == 1) return n - 1 - i;
  int stride = n / 2 | 1;
  while (std::__gcd(stride, n) != 1) stride += 2;
  return static_cast<int>((static_cast<int64_t>(i) * stride + n / 3) % n);
}

bool release_warps(int threads) {
  bool released = false;
  for (int w = 0; w * 32 < threads; ++w) {
    int waiting = 0;
    for (int lane = 0; lane < 32; ++lane) waiting += fibers[w * 32 + lane]->state == State::kAtWarpExchange;
    if (waiting < 32) continue;
    std::memcpy(warps[w].published, warps[w].given, sizeof(warps[w].given));
    for (int lane = 0; lane < 32; ++lane) fibers[w * 32 + lane]->state = State::kReady;
    released = true;
  }
  return released;
}

bool run_block(int threads) {
  for (;;) {
    progress = false;
    bool ran = false;
    for (int i = 0; i < threads; ++i) {
      const int number = turn(i, threads);
      const State before = fibers[number]->state;
      if (before != State::kReady && before != State::kSpinning) continue;
      resume(fibers[number].get(), number);
      ran |= before == State::kReady || fibers[number]->state != State::kSpinning;
    }
    if (release_warps(threads)) continue;
    int counts[5] = {0, 0, 0, 0, 0};
    for (int i = 0; i < threads; ++i) ++counts[static_cast<int>(fibers[i]->state)];
    if (counts[int(State::kEnded)] == threads) return true;
    if (counts[int(State::kAtBlockBarrier)] == threads) {
      for (int i = 0; i < threads; ++i) fibers[i]->state = State::kReady;
      continue;
    }
    if (progress || (ran && counts[int(State::kSpinning)] > 0)) continue;
    return fail("threads wait for others that never come: " + std::to_string(counts[int(State::kAtBlockBarrier)]) +
                " at a barrier, " + std::to_string(counts[int(State::kAtWarpExchange)]) + " at a shuffle, " +
                (counts[int(State::kSpinning)] ? std::to_string(counts[int(State::kSpinning)]) + " in a loop, " : "") +
                std::to_string(counts[int(State::kEnded)]) + " have ended, of " + std::to_string(threads));
  }
}

}  // namespace

int thread_number() { return running_number; }

void spin() { switch_to_scheduler(State::kSpinning); }

void progressed() { progress = true; }

void block_barrier() { switch_to_scheduler(State::kAtBlockBarrier); }

const uint32_t* warp_exchange(const uint32_t* words, int count) {
  Warp& warp = warps[running_number / 32];
  std::memcpy(warp.given[running_number % 32], words, count * sizeof(uint32_t));
  switch_to_scheduler(State::kAtWarpExchange);
  return &warp.published[0][0];
}

void* static_shared(const void* key, size_t bytes) {
  auto found = pieces.find(key);
  if (found == pieces.end()) found = pieces.emplace(key, Piece(bytes)).first;
  return found->second.data();
}

void* dynamic_shared() { return pieces.at(nullptr).data(); }

bool run(const std::function<void()>& thread, Index grid, Index block, size_t shared) {
  const int threads = static_cast<int>(block.x * block.y * block.z);
  const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y * grid.z;
  if (blocks == 0 || threads == 0) return fail("an empty grid or block");
  if (threads > 1024 || threads % 32 != 0) return fail(std::to_string(threads) + " threads: not whole warps, up to 1024");
  if (shared > 227 * 1024) return fail(std::to_string(shared) + " bytes of shared memory");
  if (grid.y > 65535 || grid.z > 65535) return fail("a grid's y or z is above 65535");
  while (static_cast<int>(fibers.size()) < threads) fibers.push_back(std::make_unique<Fiber>());
  warps.resize(std::max<size_t>(warps.size(), threads / 32));
  body = &thread;
  place.block_dim = block;
  place.grid_dim = grid;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t n = order == 0 ? i : blocks - 1 - i;
    place.block = {unsigned(n % grid.x), unsigned(n / grid.x % grid.y), unsigned(n / grid.x / grid.y)};
    pieces.clear();
    pieces.emplace(nullptr, Piece(shared));
    for (int t = 0; t < threads; ++t) {
      fibers[t]->state = State::kReady;
      fibers[t]->thread = {unsigned(t % block.x), unsigned(t / block.x % block.y), unsigned(t / block.x / block.y)};
    }
    if (!run_block(threads)) return false;
    for (auto& [key, piece] : pieces) {
      if (piece.overrun()) return fail("a block wrote behind its shared memory");
    }
  }
  return true;
}

const char* failure() { return reason.c_str(); }

}  // namespace emulator

// --- the runtime's functions that launchers and bindings call --------------------------------------------------------

namespace {
cudaError_t simulated = cudaSuccess, last = cudaSuccess;
size_t shared_limit = 48 * 1024;
}  // namespace

cudaError_t emulated_launch(const std::function<void()>& thread, const cudaLaunchConfig_t& config) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  if (simulated != cudaSuccess) return last = simulated;
  if (config.dynamicSmemBytes > shared_limit) return last = cudaErrorInvalidValue;
  const bool done = emulator::run(thread, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z},
                                  config.dynamicSmemBytes);
  return last = done ? cudaSuccess : cudaErrorLaunchFailure;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  shared_limit = std::max<size_t>(shared_limit, value);
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return simulated;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? simulated : cudaErrorInvalidDevice; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
  }
  return "unknown error";
}
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorLaunchFailure) return emulator::failure();
  return error == cudaErrorInsufficientDriver ? "there is no driver" : "emulated";
}

// --- for tests -------------------------------------------------------------------------------------------------------

extern "C" {
// In which order a block's threads, and the blocks, run: 0, 1 or 2. Results must not depend on it.
__attribute__((visibility("default"))) void emulator_order(int value) { emulator::order = value; }
// What every call answers from now on: 0 for none.
__attribute__((visibility("default"))) void emulator_fail_with(int error) { simulated = static_cast<cudaError_t>(error); }
}
