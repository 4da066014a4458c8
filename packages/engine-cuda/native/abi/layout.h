// Tables of layouts: the build writes a list of BLOCK lines for each header, a source that includes the header turns it into a table.
// (Two sources, since a parameter block may have the name of a function of the ABI.)
#pragma once
#include <stddef.h>

#include <vector>

namespace heed {
struct FieldLayout {
  const char* name;
  size_t offset;
};
struct BlockLayout {
  const char* name;
  size_t size;
  std::vector<FieldLayout> fields;
};
const std::vector<BlockLayout>& AbiLayouts();
const std::vector<BlockLayout>& ArgsLayouts();
const std::vector<BlockLayout>& SharedLayouts();
}  // namespace heed
#define F(field) {#field, offsetof(Here, field)},
#define BLOCK(name, fields) [] { using Here = name; return heed::BlockLayout{#name, sizeof(Here), {fields}}; }(),
