// The threads of a block as fibers: each has a stack of its own and runs until it has to wait.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_emulation.h"

namespace cuda_emulation {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kWarp = 32;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool started = false;
  State state = State::kDone;
};

// Values in flight. A lane may be one exchange ahead of the others, so there are two of them.
struct Exchange {
  uint64_t values[2][kWarp];
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Exchange> exchanges;
std::vector<unsigned char> parity;  // per thread
int current = 0;
jmp_buf scheduler;
const std::function<void()>* body = nullptr;

// longjmp in place of swapcontext: no system call.
__attribute__((noinline)) void wait_as(State state) {
  Fiber& fiber = *fibers[current];
  fiber.state = state;
  if (_setjmp(fiber.place) == 0) _longjmp(scheduler, 1);
}

void live() {
  while (true) {
    (*body)();
    wait_as(State::kDone);
  }
}

__attribute__((noinline)) void resume(int thread) {
  current = thread;
  thread_index = dim3(unsigned(thread), 0, 0);
  Fiber& fiber = *fibers[thread];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, live, 0);
  setcontext(&fiber.context);
}

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "CUDA emulation: %s (block %u)\n", what, block_index.x);
  abort();
}

bool all(int begin, int end, State state) {
  for (int i = begin; i < end; ++i) {
    if (fibers[i]->state != state) return false;
  }
  return true;
}

void run_block(int threads, std::minstd_rand& random) {
  std::vector<int> warps(threads / kWarp), lanes(kWarp);
  std::iota(warps.begin(), warps.end(), 0);
  std::iota(lanes.begin(), lanes.end(), 0);
  for (int i = 0; i < threads; ++i) fibers[i]->state = State::kReady;
  while (!all(0, threads, State::kDone)) {
    std::shuffle(warps.begin(), warps.end(), random);
    std::shuffle(lanes.begin(), lanes.end(), random);
    for (const int warp : warps) {
      const int begin = warp * kWarp, end = begin + kWarp;
      while (true) {
        for (const int lane : lanes) {
          if (fibers[begin + lane]->state == State::kReady) resume(begin + lane);
        }
        if (!all(begin, end, State::kAtWarp)) break;
        for (int i = begin; i < end; ++i) fibers[i]->state = State::kReady;
      }
      for (int i = begin; i < end; ++i) {
        if (fibers[i]->state == State::kAtWarp) fail("lanes of a warp wait for others in vain");
      }
    }
    if (all(0, threads, State::kAtBlock)) {
      for (int i = 0; i < threads; ++i) fibers[i]->state = State::kReady;
    } else if (!all(0, threads, State::kDone)) {
      fail("some threads wait at a barrier that others never reach");
    }
  }
}

}  // namespace

void wait_for_block() { wait_as(State::kAtBlock); }

const uint64_t* exchange(uint64_t value) {
  const int thread = current;
  Exchange& warp = exchanges[thread / kWarp];
  const int side = parity[thread] ^= 1;
  warp.values[side][thread % kWarp] = value;
  wait_as(State::kAtWarp);
  return warp.values[side];
}

void run_grid(dim3 blocks, int threads, const std::function<void()>& kernel) {
  static std::minstd_rand random(1);
  if (threads % kWarp != 0) fail("blocks must be whole warps");
  while (int(fibers.size()) < threads) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->stack.reset(new char[kStackBytes]);
  }
  exchanges.resize(threads / kWarp);
  parity.assign(threads, 0);
  body = &kernel;
  block_size = dim3(unsigned(threads));
  grid_size = blocks;
  for (unsigned block = 0; block < blocks.x; ++block) {
    block_index = dim3(block, 0, 0);
    run_block(threads, random);
  }
}

}  // namespace cuda_emulation
