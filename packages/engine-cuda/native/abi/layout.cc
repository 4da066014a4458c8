// The memory layout of every block, in words, so that a test can hold the TypeScript binding to it.
#include "layout.h"

#include <string.h>

#include <string>

#include "heed_cuda.h"

const std::vector<heed::BlockLayout>& heed::AbiLayouts() {
  static const auto* blocks = new std::vector<BlockLayout>{
#include "layout_abi.inc"
  };
  return *blocks;
}

extern "C" const char* heed_cuda_layout(const char* name) {
  if (name == nullptr) return nullptr;
  thread_local std::string text;
  for (const auto* blocks : {&heed::AbiLayouts(), &heed::ArgsLayouts(), &heed::SharedLayouts()}) {
    for (const heed::BlockLayout& block : *blocks) {
      if (strcmp(name, block.name) != 0) continue;
      text = std::to_string(block.size);
      for (const heed::FieldLayout& field : block.fields) text += std::string(";") + field.name + "=" + std::to_string(field.offset);
      return text.c_str();
    }
  }
  return nullptr;
}
