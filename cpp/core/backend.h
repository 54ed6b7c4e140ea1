/* What a device is to the core: a table of C functions. The executor runs instructions on the table that owns the
 * program's buffers and knows nothing else about the device. An addon hands its table over as an N-API External.
 *
 * Every function that can fail returns 0, or a heddle_status after filling `error`; no exception crosses this border.
 * `self` is always the table's own `self`. */
#ifndef HEDDLE_CORE_BACKEND_H
#define HEDDLE_CORE_BACKEND_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Grows with every incompatible change; the core refuses a table of another version. */
#define HEDDLE_BACKEND_VERSION 4
#define HEDDLE_MAX_RANK 8

/* 0, or 1 + the number of a heddle::ErrorCode. */
typedef int32_t heddle_status;

typedef struct heddle_error {
  char place[128];
  char expected[256];
  char got[256];
} heddle_error;

/* How a kernel takes a frozen input where the memory is not the host's. The core makes each form once and keeps it on
 * the device for all programs, until the contents change. */
typedef enum heddle_form {
  HEDDLE_ELEMENTS = 0, /* as the operand's dtype and shape say */
  HEDDLE_BF16 = 1,     /* f32 elements rounded to bf16 */
  HEDDLE_BLOCKS = 2    /* the blocks that the elements are decoded from, in planes (cpp/io/encoding.h) */
} heddle_form;

/* Contents that no instruction of the program writes: they may be packed into the device's own layout.
 * `storage` points to the core's std::shared_ptr<heddle::Storage>; other backends read through `data`. */
typedef struct heddle_frozen {
  void* storage;
  heddle_status (*data)(void* storage, const void** bytes, heddle_error* error);
  const char*
      encoding; /* of the rows that the elements are decoded from, such as "q4_1"; null: they are no such rows */
} heddle_frozen;

typedef struct heddle_operand {
  int64_t dims[HEDDLE_MAX_RANK];
  const heddle_frozen* frozen; /* null unless the contents are frozen */
  uint32_t buffer;             /* equal numbers mean equal memory */
  uint8_t dtype;               /* heddle::DType */
  uint8_t rank;
  uint8_t present; /* 0: an optional operand that was left out */
} heddle_operand;

typedef enum heddle_attribute_type {
  HEDDLE_I64 = 0,
  HEDDLE_F64 = 1,
  HEDDLE_STRING = 2,
  HEDDLE_I64_ARRAY = 3,
  HEDDLE_F64_ARRAY = 4,
  HEDDLE_STRING_ARRAY = 5
} heddle_attribute_type;

typedef struct heddle_string {
  const char* text;
  uint64_t length;
} heddle_string;

typedef struct heddle_attribute {
  heddle_string name;
  heddle_attribute_type type;
  uint64_t count;     /* elements; 1 for the plain types */
  const void* values; /* int64_t, double or heddle_string */
} heddle_attribute;

typedef struct heddle_instruction {
  heddle_string op;
  const heddle_operand* inputs;
  const heddle_operand* outputs;
  const heddle_attribute* attributes;
  uint64_t input_count;
  uint64_t output_count;
  uint64_t attribute_count;
} heddle_instruction;

typedef struct heddle_pair {
  uint32_t input;
  uint32_t output;
} heddle_pair;

typedef struct heddle_input_form {
  uint32_t input;
  uint32_t form; /* heddle_form */
} heddle_input_form;

/* A compiled instruction. The arrays belong to it and live until destroy(). */
typedef struct heddle_kernel {
  void* implementation;
  uint64_t scratch_per_thread;
  const uint32_t* consumed; /* inputs whose frozen contents were packed: run() gets null for them */
  uint64_t consumed_count;
  const heddle_pair* in_place; /* operands that may share memory */
  uint64_t in_place_count;
  const heddle_input_form* forms; /* of frozen inputs that run() gets in another form than their elements */
  uint64_t form_count;
  uint32_t recordable; /* 0: run() waits, or does what a recording cannot hold */
  uint32_t announced;  /* 1: announce() is of use */
} heddle_kernel;

typedef struct heddle_backend {
  uint32_t version; /* HEDDLE_BACKEND_VERSION */
  const char* name;
  void* self;
  /* 1: the host reads and writes this memory as its own, and the core copies nothing. */
  uint32_t host_memory;

  /* 64-byte aligned memory of the device. */
  heddle_status (*allocate)(void* self, uint64_t bytes, void** memory, heddle_error* error);
  void (*release)(void* self, void* memory, uint64_t bytes);
  /* Between any two of: the device's memory, the host's. After everything started before it; on return `source` may
   * be overwritten, and a target in the host's memory is filled. */
  heddle_status (*copy)(void* self, void* target, const void* source, uint64_t bytes, heddle_error* error);

  /* Between begin and end the number of threads (regions of scratch) stays the same. */
  uint32_t (*begin)(void* self);
  void (*end)(void* self);

  /* Where the memory is not the host's, the core has had the CPU's kernel check the instruction before. */
  heddle_status (*compile)(void* self, const heddle_instruction* instruction, heddle_kernel* kernel,
                           heddle_error* error);
  void (*destroy)(void* self, heddle_kernel* kernel);
  /* Null, or tells of a kernel that is announced and follows the next one: what it will read may be fetched while that
   * one runs. Its inputs may not be computed yet. */
  void (*announce)(void* self, const heddle_kernel* kernel, const void* const* inputs);
  /* Starts the kernel; operands that are absent or consumed are null. */
  heddle_status (*run)(void* self, const heddle_kernel* kernel, const void* const* inputs, void* const* outputs,
                       void* scratch, heddle_error* error);
  /* Returns when everything started has ended. */
  heddle_status (*wait)(void* self, heddle_error* error);

  /* The device's clock; null where run() returns when its work is done. A mark stands behind everything started before
   * it; the seconds between two are known after wait(). */
  heddle_status (*mark)(void* self, void** mark, heddle_error* error);
  heddle_status (*elapsed)(void* self, void* from, void* to, double* seconds, heddle_error* error);
  void (*unmark)(void* self, void* mark);

  /* Null where runs cannot be recorded. Between record() and recorded(), within begin() and end(), what this thread
   * hands to run() is written down instead of being done; recorded() must follow whatever run() has said. replay() does
   * it all, on the same operands; every kernel in it must still live. */
  heddle_status (*record)(void* self, heddle_error* error);
  heddle_status (*recorded)(void* self, void** recording, heddle_error* error);
  heddle_status (*replay)(void* self, void* recording, heddle_error* error);
  void (*forget)(void* self, void* recording);
} heddle_backend;

#ifdef __cplusplus
}
#endif

#endif
