#include "cuda/host/fibre.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace heddle::cuda::host {

namespace {

constexpr size_t kStackBytes = size_t{256} << 10;

std::byte* map_stack() {
  void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(stack);
}

#if defined(__x86_64__) || defined(__aarch64__)
/// Stacks that all began at the same place of a page would crowd the same few sets of the first cache.
size_t next_colour() {
  constexpr size_t kLine = 64, kColours = 64, kLinesOfAFrame = 5;
  static size_t made = 0;
  return made++ * kLinesOfAFrame % kColours * kLine;
}
#endif

}  // namespace

#if defined(__x86_64__) || defined(__aarch64__)

// Saves the registers that a call preserves on the stack that runs, keeps its end in *from, and goes on with the other
// one. Signal masks and rounding modes are the thread's and stay: that is what makes it a hundred times faster than
// swapcontext().
extern "C" void heddle_switch_stack(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl heddle_switch_stack
.hidden heddle_switch_stack
.type heddle_switch_stack, @function
heddle_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size heddle_switch_stack, .-heddle_switch_stack
)");
/// Registers, the address to return to, and what aligns the stack as after a call.
constexpr size_t kFrameWords = 8;
constexpr size_t kReturnWord = 6;
#else
asm(R"(
.text
.globl heddle_switch_stack
.hidden heddle_switch_stack
heddle_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr size_t kFrameWords = 20;
constexpr size_t kReturnWord = 11;
#endif

struct Fibre::Context {
  Entry entry;
  void* argument;
  std::byte* stack;
  void* own = nullptr;

  /// Where resume() was called.
  static inline thread_local void* caller = nullptr;
  /// The context that starts: there is no register in which a first switch could bring an argument.
  static inline thread_local Context* starting = nullptr;

  [[noreturn]] static void start() {
    Context* const self = starting;
    self->entry(self->argument);
    __builtin_trap();
  }
};

Fibre::Fibre(Entry entry, void* argument) : context_(new Context{entry, argument, map_stack()}) {
  auto* const top = reinterpret_cast<uint64_t*>(context_->stack + kStackBytes - next_colour());
  uint64_t* const frame = top - kFrameWords;
  std::memset(frame, 0, kFrameWords * sizeof(uint64_t));
  frame[kReturnWord] = reinterpret_cast<uint64_t>(&Context::start);
  context_->own = frame;
}

void Fibre::resume() {
  Context::starting = context_.get();
  heddle_switch_stack(&Context::caller, context_->own);
}

void Fibre::suspend() { heddle_switch_stack(&context_->own, Context::caller); }

void Fibre::switch_to(Fibre& other) { heddle_switch_stack(&context_->own, other.context_->own); }

#else

struct Fibre::Context {
  Entry entry;
  void* argument;
  std::byte* stack;
  ucontext_t own{};

  static inline thread_local ucontext_t caller{};
  static inline thread_local Context* starting = nullptr;
  static void start() {
    Context* const self = starting;
    self->entry(self->argument);
    __builtin_trap();
  }
};

Fibre::Fibre(Entry entry, void* argument) : context_(new Context{entry, argument, map_stack()}) {
  getcontext(&context_->own);
  context_->own.uc_stack.ss_sp = context_->stack;
  context_->own.uc_stack.ss_size = kStackBytes;
  makecontext(&context_->own, &Context::start, 0);
}

void Fibre::resume() {
  Context::starting = context_.get();
  swapcontext(&Context::caller, &context_->own);
}

void Fibre::suspend() { swapcontext(&context_->own, &Context::caller); }

void Fibre::switch_to(Fibre& other) { swapcontext(&context_->own, &other.context_->own); }

#endif

Fibre::~Fibre() { munmap(context_->stack, kStackBytes); }

}  // namespace heddle::cuda::host
