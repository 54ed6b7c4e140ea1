// The bytes in which a program crosses from TypeScript, decoded once and checked as if a stranger had written them.
//
// Little-endian: u32 magic "HDLP", u32 version, u32 count of buffers, buffers, u32 count of instructions, instructions.
// A buffer: u8 kind, u8 dtype, u8 rank, u8 0, u32 index, i64 dims[rank]. An instruction: u16 length + name; u16 count +
// u32 ids of its inputs; the same of its outputs; u16 count of attributes, each u16 length + key, u8 type, payload.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "program/kernel.h"

namespace heddle {

/// In place of a buffer id: an optional operand that was left out.
inline constexpr uint32_t kAbsent = 0xffffffffU;

enum class BufferKind : uint8_t { kTemp = 0, kInput = 1, kOutput = 2, kBound = 3, kAlias = 4 };

struct BufferDeclaration {
  /// That of the root, for an alias.
  BufferKind kind = BufferKind::kTemp;
  DType dtype = DType::kF32;
  Shape shape;
  /// Which input, output or bound tensor.
  uint32_t index = 0;
  /// The buffer whose memory this one is; its own id unless it is an alias.
  uint32_t root = 0;
  size_t bytes = 0;
};

struct Instruction {
  std::string op;
  std::vector<uint32_t> inputs;
  std::vector<uint32_t> outputs;
  Attributes attributes;
};

struct InstructionList {
  std::vector<BufferDeclaration> buffers;
  std::vector<Instruction> instructions;
  /// Buffer ids by input and output index.
  std::vector<uint32_t> inputs;
  std::vector<uint32_t> outputs;
  /// Per buffer, set at roots: whether some instruction writes it.
  std::vector<bool> written;
};

/// Throws kFormat or kShape. What it lets through reads no temp or output before it is written, writes no input,
/// and writes every output; overlaps within an instruction are for the caller to judge, who knows the kernels.
InstructionList decode_instruction_list(std::span<const std::byte> bytes);

}  // namespace heddle
