#include "heed_cuda_args.h"
#include "layout.h"

const std::vector<heed::BlockLayout>& heed::ArgsLayouts() {
  static const auto* blocks = new std::vector<BlockLayout>{
#include "layout_args.inc"
  };
  return *blocks;
}

const std::vector<heed::BlockLayout>& heed::SharedLayouts() {
  static const auto* blocks = new std::vector<BlockLayout>{
#include "layout_shared.inc"
  };
  return *blocks;
}
